"""Runs Snakemake for the Makefile: readable progress, one run at a time, and nothing left behind.

    python tools/pipeline.py TARGET... [--cores N | --executor NAME] [--config KEY=VALUE ...]
        [-- SNAKEMAKE OPTION ...]

Two processes share the work. The *driver*, which the Makefile starts, holds a lock on `.snakemake/simo.lock`
and watches. The *worker*, in a session of its own, runs Snakemake. All steps belong to the worker's process
group, except notebook kernels, which Jupyter puts in sessions of their own. They are found by an environment
variable with the folder of the run (on Linux; elsewhere a kernel ends itself a second after its parent).

With `--executor slurm` Snakemake reads `profiles/slurm/config.yaml`, and each step is a job of Slurm, which
inherits the isolated environment but not the variable. Jobs are found by their name, which begins with
`job_prefix` of the folder.

What is guaranteed for steps, on this machine or in Slurm's queue:

- Ctrl-C, SIGTERM and a closed terminal interrupt every step; what is left after `GRACE` seconds is killed.
- If the driver is killed, even by ``kill -9``, a pipe closes, and the worker kills every step and itself.
- If the worker is killed, the driver kills the steps; if both are killed, the next run kills them first.
- Snakemake's own lock is cleared only if a run of this program died; its unfinished steps are run again.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

GRACE = 10.0  # seconds between an interrupt and a kill: enough for a notebook kernel to close
QUEUE_WAIT = 60.0  # seconds that Slurm has to end the jobs that it was asked to cancel
LOCK_WAIT = 3.0  # seconds to wait for the lock: a run whose driver was killed needs a moment to end
MARK = "SIMO_RUN_FOLDER"


# what would bring other code or settings into a run; HOME and settings of threads, GPU and network stay
FOREIGN = ("SNAKEMAKE", "PYTHON", "JUPYTER", "IPYTHON", "PAPERMILL", "NUMBA", "MPL", "MATPLOTLIB", "BASH_ENV")
PRIVATE = Path(".snakemake") / "private"  # caches and settings of the run, in place of the user's


class Stopped(Exception):
    """A signal asked the driver to stop."""


def isolated(environment, folder):
    """Environment of a run that depends on nobody's settings, and needs no other folder than its own.

    Weights that are downloaded stay in the user's cache, if that can be written to.

    Parameters
    ----------
    environment : mapping of str to str
        The user's.
    folder : Path
        For caches and settings.
    """
    own = {name: value for name, value in environment.items() if not name.startswith(FOREIGN)}
    home = Path(own.get("HOME") or folder)
    usual = Path(own.get("XDG_CACHE_HOME") or home / ".cache")
    there = next(path for path in (usual, *usual.parents) if path.exists())
    for name, cache in {"HF_HOME": "huggingface", "TORCH_HOME": "torch"}.items():
        own.setdefault(name, str((usual if os.access(there, os.W_OK) else folder) / cache))
    places = ("XDG_CACHE_HOME", "IPYTHONDIR", "MPLCONFIGDIR", "NUMBA_CACHE_DIR")
    places += tuple(f"JUPYTER_{kind}_DIR" for kind in ("CONFIG", "DATA", "RUNTIME"))
    own |= {name: str(folder / name.lower()) for name in places}
    return own | {"JUPYTER_NO_CONFIG": "1", "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1"}


def as_text(pair):
    """Write `KEY=VALUE` so that the Snakefile gets VALUE as it is, never as a number or a list."""
    key, _, value = pair.partition("=")
    return f"{key}= {json.dumps(value, ensure_ascii=False)} "  # spaces: it strips quotes at the ends


def refusal(folder):
    """Return why no file can be written to a folder, or None; for one that is not there, where it will be.

    Permissions alone do not tell (read-only disks, quotas), so a file is made, which has no name.
    """
    path = Path(folder).absolute()
    try:
        for each in (path, *path.parents):
            with suppress(FileNotFoundError, NotADirectoryError):
                each.lstat()
                break
        with tempfile.TemporaryFile(dir=each):
            return None
    except OSError as error:
        return f"{error.strerror}: {each}"


def kill_steps(folder):
    """Kill every process of a run in `folder`, except this one, until none is left."""
    mark = os.fsencode(f"{MARK}={folder}")
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # ended meanwhile, or someone else's
                if mark in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
        found = [pid for pid in found if pid != os.getpid()]
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def job_prefix(folder):
    """Return what the names of all Slurm jobs of runs in `folder` begin with, and no other job's."""
    return "simo-" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def cancel_jobs(folder):
    """Cancel every Slurm job of a run in `folder`, until none is left; nothing where none was submitted."""
    squeue, scancel = shutil.which("squeue"), shutil.which("scancel")
    deadline = time.monotonic() + QUEUE_WAIT
    while squeue and Path(folder, ".snakemake/slurm_logs").is_dir() and time.monotonic() < deadline:
        command = [squeue, "--me", "--noheader", "--format=%i %j"]
        queue = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        ours = [line.split()[0] for line in queue if f" {job_prefix(folder)}" in line]
        if not ours:
            return
        subprocess.run([scancel, *ours], capture_output=True)
        time.sleep(1.0)


def end_steps(folder):
    """End what a run in `folder` left, here and in Slurm's queue."""
    kill_steps(folder)
    cancel_jobs(folder)


def run_snakemake(arguments):
    """Run Snakemake's command line in this process, with our lines as its output; return the exit code."""
    import progress  # beside this file; it needs Snakemake, which the driver does not
    from snakemake import cli
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_simo", progress)
    try:
        cli.main([*arguments, "--logger", "simo"])
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:
        return 1


def work(options, snakemake_options):
    """Be the worker: plan with a dry run, then run; return the exit code."""
    from progress import LogHandler, roughly, time_left

    def end_with_driver():
        os.read(options.alive, 1)  # returns when the driver, which has the other end, is gone
        try:
            end_steps(os.getcwd())
        finally:
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def interrupt(*_):
        LogHandler.interrupted = True
        raise KeyboardInterrupt

    threading.Thread(target=end_with_driver, daemon=True).start()
    signal.signal(signal.SIGINT, interrupt)
    LogHandler.cores, LogHandler.submitted = options.cores, bool(options.executor)
    arguments = [*options.targets, "--rerun-incomplete", "--profile", "none"]
    if options.executor:
        os.environ.pop(MARK)  # a job may run on this machine, but is not ours to kill
        prefix = job_prefix(os.getcwd())
        arguments += ["--workflow-profile", f"profiles/{options.executor}", "--slurm-jobname-prefix", prefix]
    else:
        arguments += ["--workflow-profile", "none", "--cores", str(options.cores)]
    arguments += snakemake_options
    if options.config:
        arguments += ["--config", *map(as_text, options.config)]
    if options.unlock and (code := run_snakemake([*arguments, "--unlock"])):
        return code
    if code := run_snakemake([*arguments, "--dry-run"]):
        return code
    planned = LogHandler.planned
    if not planned:
        print("nothing to be done: everything is up to date", flush=True)
        return 0
    longest = max(seconds for seconds, _ in planned)
    expected = "about " + roughly(max(time_left(planned, [], [], options.cores), longest))
    if not all(seconds for seconds, _ in planned):
        expected = "a time that is not known"
    room = f"handed to {options.executor}" if options.executor else f"threads at once: {options.cores}"
    print(f"steps to do: {len(planned)}, in {expected} ({room})", flush=True)
    return run_snakemake(arguments)


def acquire_lock(path):
    """Lock the file of this run; the lock ends with the last process that holds the file, however it ends.

    Returns
    -------
    file or None
        The locked file; None, after a message, if another run is alive.
    bool
        Whether the run before this one died. A run that ends by itself leaves the file empty.
    """
    path.parent.mkdir(exist_ok=True)
    file = path.open("a+b", buffering=0)  # of a full disk, writing tells, and not closing later
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                print(f"another run is at work in {Path.cwd()} ({file.read().decode().strip()}).")
                print("Wait for its end, or stop it with Ctrl-C in its terminal; then run this again.")
                return None, False
            time.sleep(0.1)
    file.seek(0)
    died = bool(file.read())
    file.truncate(0)
    file.write(f"process {os.getpid()}, started at {time.strftime('%H:%M:%S')}".encode())
    return file, died


def drive(argv):
    """Be the driver: take the lock, start the worker, wait, leave nothing running; return the exit code."""
    path = Path(".snakemake/simo.lock")
    try:
        lock, died = acquire_lock(path)
    except OSError as error:  # one of a full disk names no file
        what = f"cannot write {error.filename or path} ({error.strerror})"
        print(f"{what}: the project needs a folder that you may write to, and room there.")
        print(f"Free some, copy {Path.cwd()} elsewhere, or change its permissions; then run this again.")
        return 1
    if lock is None:
        return 1
    if died:
        print("the run before this one was killed; its unfinished steps are run again", flush=True)
        end_steps(os.getcwd())

    def stop(signum, _):
        raise Stopped(signum)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
        signal.signal(signal.SIGHUP, stop)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    alive, held = os.pipe()  # nothing is ever written; that this process holds one end is the message
    worker = subprocess.Popen(
        [sys.executable, __file__, f"--alive={alive}", *(["--unlock"] if died else []), *argv],
        start_new_session=True,
        pass_fds=(alive, lock.fileno()),  # the worker holds the lock, too, until it has ended its steps
        # PATH so that `python` in the Snakefile is this one
        env=isolated(os.environ, PRIVATE.absolute()) | {MARK: os.getcwd(), "PATH": path},
    )
    try:
        code = worker.wait()
    except Stopped as stopped:
        print("\nstopping; the steps that are done are kept", flush=True)
        code = 128 + stopped.args[0]
        with suppress(Stopped, subprocess.TimeoutExpired, ProcessLookupError):
            os.killpg(worker.pid, signal.SIGINT)
            worker.wait(GRACE)
    finally:
        with suppress(ProcessLookupError, PermissionError):  # macOS: no permission where all have ended
            os.killpg(worker.pid, signal.SIGKILL)
        end_steps(os.getcwd())
        worker.wait()
        os.close(held)
    if worker.returncode >= 0:  # not killed: Snakemake has removed its own lock
        lock.truncate(0)
    elif code < 0:
        print(f"Snakemake was killed (signal {-code}), most often because the memory was full; try --cores 1")
        code = 1
    if 0 < code < 128:
        print("Not finished. What is done is kept: correct the cause and run the same command again.")
    return code


def main(argv=None):
    """Run as the driver, or as its worker if it says so; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a folder's name that the terminal cannot show
    end = argv.index("--") if "--" in argv else len(argv)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description="Run the pipeline. Options after -- go to Snakemake.")
    parser.add_argument("targets", nargs="+", help="rules or files of the Snakefile")
    parser.add_argument("--cores", type=int, help="threads at once; default: all")
    parser.add_argument(
        "--executor", metavar="NAME", help="hand the steps to a cluster, as profiles/NAME says"
    )
    parser.add_argument("--config", nargs="+", metavar="KEY=VALUE", help="settings for the Snakefile")
    parser.add_argument("--alive", type=int, help=argparse.SUPPRESS)  # makes this process the worker
    parser.add_argument("--unlock", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv[:end])
    if options.executor and options.cores:
        parser.error("--cores is for this machine; with --executor the profile says what a step gets")
    options.cores = cores if options.cores is None else options.cores
    if options.cores < 1:
        parser.error(f"--cores must be 1 or more, not {options.cores}")
    if options.executor and not Path("profiles", options.executor, "config.yaml").is_file():
        parser.error(f"--executor {options.executor}: no profiles/{options.executor}/config.yaml")
    if options.executor and not find_spec("snakemake_executor_plugin_slurm"):
        parser.error("--executor needs the extra slurm: make environment, or pip install -e '.[slurm]'")
    for pair in options.config or ():
        if "=" not in pair:
            parser.error(f"--config: expected KEY=VALUE, not {pair!r}")
    if options.alive is not None:
        return work(options, argv[end + 1 :])
    given = dict(pair.partition("=")[::2] for pair in options.config or ())
    build = given.get("build") or f"build/{given.get('profile') or 'miniature'}"
    if not refusal(".") and (why := refusal(build)):  # of the project, `acquire_lock` speaks
        print(f"cannot write to BUILD={build} ({why}).")
        print("Choose a folder that you may write to, such as BUILD=build/mine; then run this again.")
        return 1
    return drive(argv)


if __name__ == "__main__":
    sys.exit(main())
