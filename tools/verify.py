"""Computes a committed record again, with all that it needs, and says whether it is the same.

    python tools/verify.py records/miniature/nyuv2/seed0/merge_ties.json [--cores N] [--config KEY=VALUE ...]

The same processor gives the same record, number by number, apart from seconds. Another one adds
floating-point numbers in another order, and hundreds of training steps amplify the last bit: then metrics may
differ by as much as between seeds. Exit status 0: equal, or every result within tolerance; 1: not. Results
are all numbers but the losses on the way (`history`).
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report.notebooks import ROOT
from simo.errors import SimoError
from simo.files import read_json

TOLERANCE = 3.0  # per cent of a result
LEAST = 0.01  # results nearer to 0 count as this: of a cosine of .001, 3 % would be nothing
TIMES = {"seconds", "provenance"}  # what differs between any two runs
SHOWN = 8  # differences that are listed


def leaves(value, path=()):
    """Yield (path, value) of every number, text or null of a record, times and provenance left out."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None:
        yield path, value
        return
    for key, part in items:
        if key not in TIMES:
            yield from leaves(part, (*path, str(key)))


def differences(committed, computed):
    """What differs between two records.

    Parameters
    ----------
    committed, computed : dict
        See `report.records`.

    Returns
    -------
    (dict, int)
        By path, the pair of values; one that only one record has stands beside None. And how many values
        were compared.
    """
    old, new = dict(leaves(committed)), dict(leaves(computed))
    paths = old.keys() | new.keys()
    return {
        path: (old.get(path), new.get(path)) for path in sorted(paths) if old.get(path) != new.get(path)
    }, len(paths)


def change(pair):
    """Relative difference of two numbers in per cent of the first; infinite where they are no numbers."""
    old, new = pair
    if not all(isinstance(value, int | float) for value in pair):
        return float("inf")
    return 100 * abs(new - old) / max(abs(old), LEAST)


def compare(committed, computed):
    """Say in lines how a record differs from the committed one.

    Returns
    -------
    (bool, list of str)
        Whether it is equal, or all its results are within `TOLERANCE`; and the lines.
    """
    found, count = differences(committed, computed)
    if not found:
        return True, [f"equal: all {count} values"]
    # what only a new notebook records is told, and says nothing of the committed values
    own = {path for path, _ in leaves(committed) if "history" not in path}
    results = {path: change(pair) for path, pair in found.items() if path in own}
    far = [path for path, size in results.items() if size > TOLERANCE]
    order = sorted(found, key=lambda path: (path in far, path in results, change(found[path])), reverse=True)
    largest = order[:SHOWN]
    verdict = "not the same" if far else "within tolerance"
    lines = [
        f"{verdict}: {len(found)} of {count} values differ, {len(results)} of them results, "
        f"{len(far)} by more than {TOLERANCE:g} %"
    ]
    lines += [f"  {'.'.join(path)}: {found[path][0]} committed, {found[path][1]} now" for path in largest]
    return not far, lines


def compute(path, options):
    """Run the pipeline up to a committed record; return the record that it wrote."""
    try:
        _, profile, study, seed = path.resolve().relative_to(ROOT).parts[:-1]
        number = int(seed.removeprefix("seed"))
    except ValueError as error:
        raise SimoError(
            f"{path}: expected a committed record, records/PROFILE/STUDY/seedN/NAME.json of {ROOT}"
        ) from error
    build = f"build/verify/{profile}"
    target = f"{build}/records/{study}/seed{number}/{path.name}"
    config = [f"profile={profile}", f"studies={study}", f"seeds={number}", "further=all", f"build={build}"]
    cores = ["--cores", str(options.cores)] if options.cores else []
    command = [sys.executable, "tools/pipeline.py", target, *cores, "--config", *config, *options.config]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SimoError(f"{target} was not computed: see above")
    return read_json(ROOT / target)


def main(argv=None):
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("record", type=Path, help="a file below records/")
    parser.add_argument("--cores", type=int, help="threads at once; default: all")
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE", help="such as data=FOLDER")
    options = parser.parse_args(argv)
    try:
        if not options.record.is_file():
            advice = "RECORD=records/miniature/nyuv2/seed0/joint.json names one"
            raise SimoError(f"{options.record} is no file: expected a committed record, {advice}")
        committed = read_json(options.record)
        computed = compute(options.record, options)
    except SimoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    same, lines = compare(committed, computed)
    hashes = [record["provenance"].get("commit", "unknown") for record in (committed, computed)]
    print(f"{options.record}, of commit {hashes[0]}, beside one of commit {hashes[1]}")
    print("\n".join(lines))
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
