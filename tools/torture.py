"""Kill, starve and disturb the smoke run, and see that it ends as if nothing had happened.

    python tools/torture.py --seed 7 --kills 20 --fuzz 1000

Everything happens in copies of the project in a temporary folder. What was found goes, with date, commit and
seed, into `book/torture.json`. A line a trial; the exit status is 1 if any failed.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from simo.files import listed

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ["--config", "profile=smoke", "studies=nyuv2", "further=no"]
VOLATILE = {"seconds", "started", "resumed", "peak_memory_mb"}  # of two runs these differ
PAUSE = 60  # seconds that a run is stopped
BLOCK = 4096  # bytes that a disk writes at a time
RECENT = 30  # seconds after which a system has written what it was given
FILE_SIZES = (0, 1 << 12, 1 << 16, 1 << 20)  # bytes that a file may have, in place of a full disk
MEMORY = (1 << 30, 3 << 30)  # bytes of addresses for each process


def copy_project(folder):
    """Copy what git knows, and what it does not ignore, into a new folder."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607 - on PATH
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def start(project, limits=(), **options):
    """Start the smoke run in a project; `limits` are (resource, bytes) of its processes."""

    def limit():
        for what, size in limits:
            resource.setrlimit(what, (size, size))

    output = open(project / "torture.log", "w", encoding="utf-8")  # noqa: SIM115 - the run writes it
    command = [sys.executable, "tools/pipeline.py", "records", *CONFIG]
    options = {"stdout": output, "stderr": subprocess.STDOUT, "preexec_fn": limit} | options
    return subprocess.Popen(command, cwd=project, start_new_session=True, **options)


def finish(project):
    """Run to the end; return what is wrong, or None."""
    code = start(project).wait()
    return f"exit status {code}: {last_line(project)}" if code else None


def last_line(project):
    """Return the last line that a run printed."""
    lines = (project / "torture.log").read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")


def lasting(value):
    """A record without what differs between two runs."""
    if isinstance(value, dict):
        return {key: lasting(each) for key, each in value.items() if key not in VOLATILE}
    return [lasting(each) for each in value] if isinstance(value, list) else value


def records(project):
    """Return the records of a run by path, as texts."""
    found = {}
    for path in listed(project / "build/smoke/records", "**/*.json"):
        found[str(path.relative_to(project))] = json.dumps(lasting(json.loads(path.read_text())))
    return found


def everything(process):
    """Return a process and all that it started, alive."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def send(processes, number):
    """Send a signal to processes that may have ended."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(number)


def kill(process, project):
    """Kill the driver alone, as the system does for lack of memory; the rest has to notice."""
    process.send_signal(signal.SIGKILL)


def kill_all(process, project):
    """Kill everything at once."""
    send(everything(process), signal.SIGKILL)


def terminate(process, project):
    """Ask the driver to end."""
    process.send_signal(signal.SIGTERM)


def stop(process, project):
    """Stop everything for a while, as a laptop does that is closed; it goes on by itself."""
    processes = everything(process)
    send(processes, signal.SIGSTOP)
    time.sleep(PAUSE)
    send(processes, signal.SIGCONT)


def cut_power(process, project):
    """Kill everything, and truncate what was just written to whole blocks.

    But for files that were renamed into place: file systems write these before the rename.
    """
    kill_all(process, project)
    process.wait()
    for path in [*project.glob(".snakemake/**/*"), *project.glob("build/**/*")]:
        unfinished = ".snakemake" in path.parts or path.name.startswith(".") or path.suffix == ".log"
        with suppress(OSError):
            if unfinished and path.is_file() and time.time() - path.stat().st_mtime < RECENT:
                os.truncate(path, path.stat().st_size // BLOCK * BLOCK)


WAYS = (kill, kill_all, terminate, stop, cut_power)


def kills(project, expected, count, length, chance):
    """Yield (trial, what is wrong) for kills at random moments, each followed by a run to the end."""
    for number in range(count):
        shutil.rmtree(project / "build", ignore_errors=True)
        way, moment = WAYS[number % len(WAYS)], chance.uniform(0, length)
        process = start(project)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        way(process, project)
        process.wait()
        yield f"{way.__name__} after {moment:.0f} s", finish(project) or compare(project, expected)


def compare(project, expected):
    """Say which record differs from that of the undisturbed run; None if none does."""
    found = records(project)
    different = sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
    return f"differs: {', '.join(different)}" if different else None


def together(project, other, expected):
    """Yield (trial, what is wrong) for two runs at once, in one folder and in two."""
    for folder in (project, other):
        shutil.rmtree(folder / "build", ignore_errors=True)
    first = start(project)
    time.sleep(5)
    late = subprocess.run(
        [sys.executable, "tools/pipeline.py", "records", *CONFIG],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    refused = late.returncode == 1 and "another run is at work" in late.stdout
    wrong = first.wait() or not refused
    yield "two at once in one folder", late.stdout[-200:] if wrong else compare(project, expected)
    shutil.rmtree(project / "build")
    runs = [start(project), start(other)]
    codes = [run.wait() for run in runs]
    wrong = f"exit status {codes}" if any(codes) else compare(project, expected) or compare(other, expected)
    yield "two at once in two folders", wrong


def limited(project, expected):
    """Yield (trial, what is wrong) for files that may not grow, and for little memory.

    Such a run has to fail, in words, and to end well once the limit is gone.
    """
    trials = [(f"files of {size} bytes at most", resource.RLIMIT_FSIZE, size) for size in FILE_SIZES]
    trials += [(f"{size >> 30} GiB of addresses", resource.RLIMIT_AS, size) for size in MEMORY]
    for what, kind, size in trials:
        shutil.rmtree(project / "build", ignore_errors=True)
        # what the run prints does not count as a file of its own
        code = start(project, [(kind, size)], stdout=subprocess.DEVNULL).wait()
        yield f"{what} (exit status {code})", finish(project) or compare(project, expected)


def fuzz(project, count):
    """Yield (trial, what is wrong) for `count` changed files of each kind."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_fuzz.py"]
    done = subprocess.run(
        command,
        cwd=project,
        env=os.environ | {"FUZZ": str(count)},
        capture_output=True,
        text=True,
        check=False,
    )
    summary = done.stdout.strip().splitlines()[-1:]
    yield f"{count} changed files of each kind", None if done.returncode == 0 else str(summary)


def commit():
    """Return the commit that is checked out, and a plus if something was changed since."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def main(arguments=None):
    """Run all trials, print them, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--kills", type=int, default=20, help="how many; default: 20")
    parser.add_argument("--fuzz", type=int, default=1000, help="changed files of each kind; default: 1000")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    chance, began, trials = random.Random(options.seed), time.monotonic(), []  # noqa: S311 - no secret
    with tempfile.TemporaryDirectory(prefix="torture") as temporary:
        project = copy_project(Path(temporary) / "project")
        wrong = finish(project)
        if wrong:
            print(f"the undisturbed run failed: {wrong}")
            return 1
        length, expected = time.monotonic() - began, records(project)
        print(f"undisturbed: {length:.0f} s, {len(expected)} records", flush=True)
        other = copy_project(Path(temporary) / "other")
        plan = [kills(project, expected, options.kills, length, chance)]
        plan += [together(project, other, expected), limited(project, expected)]
        plan += [fuzz(project, options.fuzz)] if options.fuzz else []
        for trial, wrong in (each for part in plan for each in part):
            trials.append({"trial": trial, "wrong": wrong})
            print(f"{'FAIL' if wrong else 'ok  '} {trial}{f': {wrong}' if wrong else ''}", flush=True)
    failed = sum(bool(trial["wrong"]) for trial in trials)
    result = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "seed": options.seed, "trials": trials}
    result |= {"hours": round((time.monotonic() - began) / 3600, 2)}
    (ROOT / "book/torture.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{len(trials) - failed} of {len(trials)} as they should be; written to book/torture.json")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
