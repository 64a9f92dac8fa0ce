"""Makes `.venv`, with every package of constraints.txt, from nothing; does nothing if it is up to date.

    python3 tools/bootstrap.py

Only the standard library is used, and syntax that an old Python can read, so that it can say it is too old.
"""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = ROOT / "build" / "logs" / "install.log"
INPUTS = ("pyproject.toml", "constraints.txt", "tools/bootstrap.py")
TAIL_LINES = 20
# of a disk that is full or locked, or a folder that is somebody else's
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
# of pip's and uv's settings these say where packages come from, and how to get there; others change what is
# installed or where to, and are left out
REACH = re.compile(
    "INDEX|FIND_LINKS|HOST|PROXY|CERT|TLS|KEYRING|TIMEOUT|RETRIES|CACHE|OFFLINE|HTTP|LINK_MODE"
)
LISTED = re.compile("EXTRA_INDEX|FIND_LINKS|HOST")  # of these, all count


def stamp():
    """Return what `.venv/.ok` holds when it is up to date: the folder, the Python, and a hash of `INPUTS`."""
    content = b"".join((ROOT / name).read_bytes() for name in INPUTS)
    return f"{ROOT}\n{sys.version.split()[0]}\n{hashlib.sha256(content).hexdigest()}\n"


def fail(message):
    """Stop with a message for people."""
    print(message, file=sys.stderr)
    sys.exit(1)


def isolated(environment, settings):
    """Return an environment in which pip and uv install into `.venv` alone, from where the user says.

    Parameters
    ----------
    environment : mapping of str to str
        The user's.
    settings : dict of str to list of str
        The user's settings of pip, as `pip_settings` returns them; pip's files are not read again.
    """
    own = {}
    for name, value in environment.items():
        foreign = name.startswith("PYTHON") or (name.startswith(("PIP_", "UV_")) and not REACH.search(name))
        if not foreign:
            own[name] = value
    for name, values in settings.items():
        variable = "PIP_" + name.upper().replace("-", "_")
        if REACH.search(variable):
            own[variable] = " ".join(values if LISTED.search(variable) else values[-1:])
    return {**own, "PIP_CONFIG_FILE": os.devnull, "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1"}


@lru_cache(maxsize=1)
def user_settings():
    """Return the user's settings of pip, by name, as the pip of `.venv` knows them."""
    command = [str(PYTHON), "-m", "pip", "config", "list"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return pip_settings(done.stdout)


def call(command, **environment):
    """Run a command, its output added to the log; return whether it succeeded."""
    with LOG.open("a", encoding="utf-8") as log:
        settings = [f"{name}={value}" for name, value in environment.items()]
        log.write("\n$ {}\n".format(" ".join([*settings, *map(str, command)])))
        log.flush()
        own = {**isolated(os.environ, user_settings() if PYTHON.exists() else {}), **environment}
        return subprocess.call(command, cwd=ROOT, stdout=log, stderr=log, env=own) == 0


def step(text, *attempts):
    """Make attempts, functions that return whether they succeeded, until one does; report in one line."""
    print(f"{text:<58}", end=" ", flush=True)
    start = time.monotonic()
    if not any(attempt() for attempt in attempts):
        print(f"FAILED after {time.monotonic() - start:.0f} s\n", flush=True)
        tail = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        lines = "\n".join("    | " + line for line in tail)
        fail(f"{lines}\n    whole log: {LOG}\nCorrect the cause and run the same command again.")
    print(f"{time.monotonic() - start:.0f} s", flush=True)


def has_gpu():
    """Tell whether an NVIDIA GPU can be used."""
    program = shutil.which("nvidia-smi")
    return program is not None and call([program, "-L"])


def pip_settings(text):
    """Return the values, by name, that `pip config list` prints; it knows pip's files and its variables.

    The last is the one that pip takes where it takes one: a variable's, else the section `install`'s.
    """
    values = {}
    found = re.findall(r"^(\S*)\.([\w-]+)=(['\"])(.*)\3$", text, re.MULTILINE)
    order = ("global", "install", ":env:")
    for section in order:
        for name, value in [(each[1], each[3]) for each in found if each[0] == section]:
            values.setdefault(name, []).extend(value.replace("\\n", " ").split())
    return values


def cpu_wheel_folder(folders, version):
    """Return the first folder that holds a CPU build of torch for this Python, or None."""
    wheel = "torch-{}+cpu-cp{}{}-".format(version, *sys.version_info[:2])
    for folder in map(Path, folders):
        if folder.is_dir() and any(path.name.startswith(wheel) for path in folder.iterdir()):
            return folder
    return None


def torch_choices(gpu, folder):
    """Return, best first, the (options, environment) with which uv should try to get torch.

    Parameters
    ----------
    gpu : bool
        Whether an NVIDIA GPU can be used.
    folder : Path or None
        A folder with a CPU build of torch.

    Returns
    -------
    list of (list of str, dict)
        The last is always PyPI: a CUDA build of some 2.7 GB on Linux, a CPU build elsewhere.
    """
    if gpu:
        return [(["--torch-backend=auto"], {}), ([], {})]
    local = [([], {"UV_FIND_LINKS": str(folder)})] if folder else []
    index = [(["--torch-backend=cpu"], {})] if sys.platform == "linux" else []
    return local + index + [([], {})]


def install(options, environment):
    """Install everything with uv; return whether it succeeded."""
    command = [PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, "-c", "constraints.txt"]
    return call([*command, *options, "-e", ".[book,data,onnx,slurm,test]"], **environment)


def install_choices():
    """Return the ways to install everything, best first, as functions that return whether they succeeded."""
    settings = user_settings()
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    torch = re.search(r"^torch==(\S+)", constraints, re.MULTILINE).group(1)
    choices = torch_choices(has_gpu(), cpu_wheel_folder(settings.get("find-links", []), torch))
    # uv reads none of pip's settings; a mirror of the package index is the one that may be indispensable
    mirror = {"UV_DEFAULT_INDEX": settings["index-url"][-1]} if "index-url" in settings else {}
    return [lambda o=options, e=environment: install(o, {**mirror, **e}) for options, environment in choices]


def main():
    """Make or renew `.venv` unless `.venv/.ok` says that it is up to date."""
    if sys.version_info < OLDEST:
        found, needed = (".".join(map(str, version)) for version in (sys.version_info[:3], OLDEST))
        fail(
            f"This needs Python {needed} or newer; {sys.executable} is Python {found}.\n"
            "Name a newer one, for example: make PYTHON=python3.12"
        )
    ok = VENV / ".ok"
    before = ok.read_text(encoding="utf-8") if ok.exists() else ""
    if before == stamp():
        return
    if VENV.is_symlink() and (VENV / "pyvenv.cfg").exists() and before.splitlines()[:1] != [str(ROOT)]:
        fail(
            f"{VENV} leads to another environment, {VENV.resolve()}, which would be emptied: remove the link"
        )
    LOG.parent.mkdir(parents=True, exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    # an environment that was moved, or is another Python's, is made from nothing
    if before.splitlines()[:2] != stamp().splitlines()[:2]:
        step(
            "making .venv with Python " + sys.version.split()[0],
            lambda: call([sys.executable, "-m", "venv", "--clear", VENV]),
        )
        step(
            "installing uv, a fast installer",
            lambda: call([PYTHON, "-m", "pip", "install", "-c", "constraints.txt", "uv"]),
        )
    # until it ends well, what is installed is of no stamp, not even of the one before
    ok.write_text("\n".join(stamp().splitlines()[:2]) + "\n", encoding="utf-8")
    step("installing the packages (1.3 GB; 4 GB with CUDA)", *install_choices())
    step(
        "checking that they fit together",
        lambda: (
            call([PYTHON, "-m", "uv", "pip", "check", "--python", PYTHON])
            and call([PYTHON, "-c", "import simo, torch, timm; print(torch.__version__, timm.__version__)"])
        ),
    )
    ok.write_text(stamp(), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        place = error.filename or VENV  # that of a full disk names no file
        if error.errno in UNWRITABLE:
            advice = "free some space, or copy the project to a folder that you may write to"
            fail(f"cannot write {place} ({error.strerror}): {advice}")
        fail(f"{place}: {error.strerror}. If it is in .venv, remove .venv; then run the same command again")
    except KeyboardInterrupt:
        fail("\nstopped; run the same command again to go on")
