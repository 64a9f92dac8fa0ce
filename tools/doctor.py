"""Says what is there and what stands in the way, on one screen; only the standard library is used.

    python tools/doctor.py [--quick] [--config KEY=VALUE ...]

With `--quick`, only what must or should be corrected before `make book`, in well under a second.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bootstrap
import pipeline

ROOT = bootstrap.ROOT
LEAST_DISK, LEAST_MEMORY, LEAST_SHARED = 2.0, 3.0, 0.5  # GB: a book of the miniature, a notebook, workers
HARMLESS = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8", "PIP_DISABLE_PIP_VERSION_CHECK"}
HARMLESS |= {"PYTHON"}  # the Makefile's own, which `make PYTHON=...` hands on
OK, NOTE, WARN, FAIL = "ok", "note", "!", "FAIL"


def is_writable(folder):
    """Whether a file can be made in a folder: permissions alone do not tell (read-only disks, quotas)."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def gigabytes(folder):
    """Free space of the disk that a folder is on or will be made on, in GB."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free / 1e9


def memory():
    """Memory of this machine or, if smaller, of the container, in GB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text) if text.isdigit() else total) / 1e9


def examine_machine(build):
    """Findings `(level, topic, text)` about Python, folders, disk and memory."""
    version, oldest = sys.version.split()[0], ".".join(map(str, bootstrap.OLDEST))
    fine = sys.version_info >= bootstrap.OLDEST
    yield (
        OK if fine else FAIL,
        "Python",
        version + ("" if fine else f"; make PYTHON=... with {oldest} or newer"),
    )
    if not is_writable(ROOT):
        yield FAIL, "project", f"{ROOT} cannot be written to: copy the project to a folder of yours"
    if not is_writable(os.environ.get("HOME") or "/nowhere"):
        yield NOTE, "HOME", "cannot be written to: caches go into the project"
    if why := pipeline.refusal(build):
        yield FAIL, "BUILD", f"{build} cannot be written to ({why}): name another folder"
    else:
        free = gigabytes(build)
        yield OK if free > LEAST_DISK else WARN, "disk", f"{free:.1f} GB free for {build}"
    size = memory()
    yield OK if size > LEAST_MEMORY else WARN, "memory", f"{size:.1f} GB, {os.cpu_count()} processors"
    memory_folder = "/dev/shm"  # noqa: S108 - nothing is written there
    if Path(memory_folder).is_dir():
        shared = gigabytes(memory_folder)
        more = (
            ""
            if shared > LEAST_SHARED
            else ": too little for `workers`; docker run --shm-size=2g, or workers: 0"
        )
        yield NOTE if more else OK, memory_folder, f"{shared:.2f} GB free{more}"


def examine_settings():
    """Findings about settings of the user, which are left out of a run."""
    kept = pipeline.isolated(os.environ, pipeline.PRIVATE).keys() & bootstrap.isolated(os.environ, {}).keys()
    if given := sorted(os.environ.keys() - kept - HARMLESS):
        yield NOTE, "settings", ", ".join(given) + ": not used by this project"
    for profile in ("profiles/default", "workflow/profiles/default"):
        if (ROOT / profile).exists():
            yield NOTE, "profile", f"{profile} is not used; `tools/pipeline.py ... -- --profile` takes one"
    shared = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "jupyter"
    for folder in [*filter(None, os.environ.get("JUPYTER_PATH", "").split(os.pathsep)), shared]:
        if Path(folder, "kernels", "python3").is_dir():
            yield NOTE, "kernel", f"{folder} has a python3, which is not used: notebooks run in .venv"


def examine_program():
    """Findings about what is installed."""
    python = ROOT / ".venv" / "bin" / "python"
    if not (ROOT / ".venv" / ".ok").is_file():
        yield NOTE, ".venv", "not made, or not to its end: `make environment`, which `make book` begins with"
    elif not python.exists():
        yield FAIL, ".venv", "its Python is gone: `make distclean`, then `make environment`"
    else:
        yield OK, ".venv", "installed"
    program = shutil.which("nvidia-smi")
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False) if program else None
    gpus = done.stdout.strip().splitlines() if done and done.returncode == 0 else []
    yield OK, "GPU", "; ".join(gpus) or "none: the miniature needs none, PROFILE=paper does"


def examine_data(build, data):
    """Findings about data sets and weights, under build/ and in the user's folder."""
    places = sorted({*ROOT.glob("build/*/data/*"), *Path(build).glob("data/*")})
    if data:
        if not Path(data).is_dir():
            yield FAIL, "DATA", f"{data} is no folder"
        places += sorted(path for path in Path(data).glob("*") if path.is_dir())
    for place in places:
        if (place / "prepared.json").is_file():
            try:
                made = json.loads((place / "prepared.json").read_text(encoding="utf-8"))
                yield OK, "data", f"{place}: {sum(made['splits'].values())} images, from {made['source']}"
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                yield WARN, "data", f"{place}: prepared.json cannot be read: delete it and run `make data`"
        elif (place / "request.json").is_file():
            yield WARN, "data", f"{place}: begun, not finished; `make data` continues"
        else:
            yield NOTE, "data", f"{place}: not prepared; raw data, if it is one of ours"
    weights = {*ROOT.glob("build/*/weights/*.safetensors"), *Path(build).glob("weights/*.safetensors")}
    for path in sorted(weights):
        sound = path.with_suffix(".json").is_file()
        yield (
            OK if sound else WARN,
            "weights",
            f"{path}" + ("" if sound else ": no recipe beside it; delete it"),
        )


def advice(findings, data):
    """What to do next, in one line."""
    if any(level == FAIL for level, _, _ in findings):
        return "correct what is marked FAIL, then run this again"
    if data and any(topic == "data" for _, topic, _ in findings):
        return "make book PROFILE=paper DATA=... (or PROFILE=photos on a CPU)"
    return "make book, which needs no data, no GPU and some 25 minutes; `make help` lists the rest"


def main(argv=None):
    """Print the findings; return 1 if anything must be corrected first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only what stands in the way")
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE", help="as for the pipeline")
    parser.add_argument("--cores", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    given = dict(pair.partition("=")[::2] for pair in options.config)
    build, data = str((ROOT / (given.get("build") or "build/miniature")).absolute()), given.get("data")
    findings = [*examine_machine(build), *examine_settings()]
    if not options.quick:
        findings += [*examine_program(), *examine_data(build, data)]
    shown = [each for each in findings if not options.quick or each[0] != OK]
    for level, topic, text in shown:
        print(f"{level:<5}{topic:<10}{text}")
    if not options.quick:
        print(f"\nnext: {advice(findings, data)}")
    return int(any(level == FAIL for level, _, _ in findings))


if __name__ == "__main__":
    sys.exit(main())
