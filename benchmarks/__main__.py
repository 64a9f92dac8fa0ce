"""Measure speed and memory against what one would otherwise run, in turns, and write the results.

    python -m benchmarks [merging realigning training growing starting] [--rounds 3] [--size tiny] [--out F]

Minutes on two idle cores; `--size tiny` takes seconds and says nothing. The page "Speed and memory, measured"
draws `benchmarks/results.json`.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.pairs import measure
from report.notebooks import ROOT
from report.run import repository
from simo.checkpoints import versions
from simo.files import write_json
from simo.training import device_name

GROUPS = ("merging", "realigning", "training", "growing", "starting")


def main(arguments=None):
    """Run the command line; the exit status is 0 whatever aims were reached: other work may be in the way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("groups", nargs="*", default=[], help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="of each pair (default 3)")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: to try the programs")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1, as in the notebooks)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json", help="the file")
    options = parser.parse_args(arguments)
    groups = options.groups or GROUPS
    if options.rounds < 1 or options.threads < 1 or not set(groups) <= set(GROUPS):
        parser.error(f"expected at least one round and thread, and groups of {', '.join(GROUPS)}")
    before, start = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(options.threads)
    around = surroundings()
    try:
        rows = [row for group in groups for row in measured(group, options)]
    finally:
        torch.set_num_threads(before)
    minutes = round((time.monotonic() - start) / 60, 1)
    chosen = {"size": options.size, "rounds": options.rounds, "threads": options.threads, "minutes": minutes}
    write_json(options.out, around | chosen | {"pairs": rows})
    return 0


def measured(group, options):
    """Measure a group's pairs, in a folder of their own, and print a line for each as it is done."""
    with tempfile.TemporaryDirectory() as folder:
        for pair in import_module(f"benchmarks.{group}").pairs(options.size, Path(folder)):
            row = {"group": group} | measure(pair, options.rounds)
            middle, low, high = row["ratio"]
            said = {None: "", True: "reached", False: "not reached"}[row["reached"]]
            memory = f", {row['ours_memory']:.2f} checkpoints" if "ours_memory" in row else ""
            print(f"{pair.name}: {middle:.2f} ({low:.2f} to {high:.2f}) times as fast as {pair.against}"
                  f"{memory} {said}", flush=True)  # fmt: skip
            yield row


def surroundings():
    """Date, commit, machine, what else it does, and versions."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine = {
        "processor": device_name("cpu"),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "load": busy,
    }
    return {"date": time.strftime("%Y-%m-%d"), **repository(), "machine": machine, "versions": versions()}


if __name__ == "__main__":
    sys.exit(main())
