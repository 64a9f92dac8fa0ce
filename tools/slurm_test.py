"""Runs the smoke records through a real Slurm on this machine alone, and compares them with a local run.

    python tools/slurm_test.py          # as root; Debian's packages slurm-wlm and munge

A Slurm of one node with two made-up GPUs is started, its state in a temporary folder and its settings, while
it lasts, in `/etc/slurm`. A copy of the project is handed to it by `profiles/slurm/config.yaml` as it stands.
A job is cancelled, then the driver killed, then the run ends; each record must be that of a local run, apart
from times and provenance. All is taken down again. Exit status 0: as it should be.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report.experiments import records_of
from simo.errors import SimoError
from simo.files import read_json
from simo.tasks import tasks_of
from tools.torture import copy_project
from tools.verify import differences

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
SETTINGS = Path("/etc/slurm")  # a job of the plugin forgets SLURM_CONF
WAIT = 120.0  # seconds that anything but a step may take
STEPS = 3600.0  # seconds that steps may take until two run, on a machine with other work
GPUS = ("/dev/null", "/dev/zero")  # Slurm only counts them
CONFIG = """
ClusterName=simo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=200000 Gres=gpu:{gpus}
PartitionName=gpu Nodes={host} MaxTime=INFINITE
PartitionName=cpu Nodes={host} MaxTime=INFINITE
"""
STUDY = ["--config", "profile=smoke", "studies=nyuv2", "further=no", "build=build/smoke"]
RECORDS = "build/smoke/records/nyuv2/seed0"
OPTIONS = ["--", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5"]


def names():
    """Names of the records that the smoke run computes."""
    return records_of("nyuv2", [task.name for task in tasks_of("nyuv2")], "no")


def wait_for(what, condition, seconds=WAIT):
    """Return the first true value of a condition; raise `SimoError` if it has none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SimoError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.5)
    return value


def said(*command):
    """Return what a command of Slurm prints."""
    return subprocess.run(command, capture_output=True, text=True).stdout


@contextmanager
def service(folder, *command):
    """A program in the foreground, its output in a file; it is ended with the block."""
    with open(folder / f"{command[0]}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(WAIT)


def free_ports(count):
    """Return ports that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def cluster(folder):
    """A Slurm of this machine alone; no job outlives the block."""
    host = socket.gethostname().split(".")[0]
    config = CONFIG.format(host=host, folder=folder, ports=free_ports(2), gpus=len(GPUS))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key-file").write_bytes(os.urandom(1024))
    (folder / "munge.key-file").chmod(0o600)
    os.environ.pop("SLURM_CONF", None)
    files = ("socket", "key-file", "pid-file", "log-file", "seed-file")
    munge = [f"--{name}={folder}/munge.{name}" for name in files]
    gpus = "".join(f"Name=gpu File={name}\n" for name in GPUS)
    with ExitStack() as stack:
        for name, text in {"slurm.conf": config, "gres.conf": gpus}.items():
            with open(SETTINGS / name, "x", encoding="utf-8") as file:
                stack.callback((SETTINGS / name).unlink)
                file.write(text)
        stack.enter_context(service(folder, "munged", "--foreground", "--force", *munge))
        wait_for("munge", (folder / "munge.socket").exists)
        stack.enter_context(service(folder, "slurmctld", "-D"))
        stack.enter_context(service(folder, "slurmd", "-D"))
        wait_for("an idle node", lambda: "idle" in said("sinfo", "--noheader", "--format=%T"))
        try:
            yield
        finally:
            said("scancel", "--me")
            wait_for("the end of all jobs", lambda: not said("squeue", "--noheader"))


@contextmanager
def pipeline(project, *options):
    """The pipeline in a copy of the project, its output in `output.log` there; it is ended with the block."""
    targets = [f"{RECORDS}/{name}.json" for name in names()]
    command = [sys.executable, "tools/pipeline.py", *targets, *options]
    with open(project / "output.log", "a", encoding="utf-8") as log:
        run = subprocess.Popen(command, cwd=project, stdout=log, stderr=log)
        try:
            yield run
        finally:
            run.terminate()
            run.wait(WAIT)


def running():
    """Return the GPU of each running job that has one, by the job's number."""
    jobs = said("scontrol", "show", "job", "--details", "--oneliner").splitlines()
    jobs = [re.search(r"JobId=(\d+) .*JobState=RUNNING .*gpu\S*\(IDX:([\d,-]+)\)", job) for job in jobs]
    return dict(job.groups() for job in jobs if job)


def two_at_once():
    """Return the running jobs if there are two; raise `SimoError` if they share a GPU."""
    found = running()
    if len(set(found.values())) < len(found):
        raise SimoError(f"jobs share a GPU: {found}")
    return found if len(found) == 2 else None


def unlocked(project):
    """Whether no process of a run holds the project's lock."""
    with open(project / ".snakemake/simo.lock", encoding="utf-8") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def through_slurm(project):
    """Run the smoke records through Slurm, with a cancelled job and a killed driver on the way."""
    options = ("--executor", "slurm", *STUDY, *OPTIONS)
    with pipeline(project, *options) as run:
        jobs = wait_for("two jobs at once", two_at_once, STEPS)
        print(f"two jobs at once, on GPUs {' and '.join(sorted(jobs.values()))}; cancelling one", flush=True)
        said("scancel", min(jobs))
        wait_for("the end of the run", lambda: run.poll() is not None, STEPS)
    if run.returncode != 1:
        raise SimoError(f"after a cancelled job the pipeline ended with {run.returncode}, not 1")
    print(f"the pipeline says so and ends, {done(project)} of {len(names())} records done", flush=True)
    with pipeline(project, *options) as run:
        wait_for("a job", running, STEPS)
        run.kill()
        wait_for("the end of the jobs of a killed driver", lambda: not said("squeue", "--noheader"))
        wait_for("the end of its worker", lambda: unlocked(project))
    print("driver killed while a job ran: no job is left", flush=True)
    with pipeline(project, *options) as run:
        while run.poll() is None:
            two_at_once()
            time.sleep(1.0)
    if run.returncode:
        raise SimoError(f"the last run ended with {run.returncode}, not 0")
    print(f"resumed: {done(project)} of {len(names())} records done", flush=True)


def done(project):
    """How many records there are."""
    return len(list((project / RECORDS).glob("*.json")))


def compare(projects):
    """Raise `SimoError` for the first record that differs between two projects."""
    count = 0
    for name in names():
        found, values = differences(*(read_json(project / RECORDS / f"{name}.json") for project in projects))
        if found:
            path, pair = next(iter(found.items()))
            raise SimoError(f"{name}: {len(found)} values differ, first {'.'.join(path)}: {json.dumps(pair)}")
        count += values
    print(f"{len(names())} records equal those of the local run: all {count} values", flush=True)


def main():
    """Run the test; return the exit status."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing or os.geteuid():
        print(f"missing: {', '.join(missing) or 'root'}; this needs root and Debian's slurm-wlm and munge")
        return 1
    if there := list(SETTINGS.glob("[sg]*.conf")):
        print(f"{there[0]}: this machine has a Slurm of its own, which is left alone")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all is taken down
    with tempfile.TemporaryDirectory(prefix="simo-slurm-") as temporary:
        local, slurm, services = (Path(temporary, name) for name in ("local", "slurm", "services"))
        services.mkdir()
        try:
            with pipeline(copy_project(local), "--cores", "2", *STUDY) as run:
                if run.wait():
                    raise SimoError("the local run failed")
            print(f"local run: {done(local)} records", flush=True)
            copy_project(slurm)
            with cluster(services):
                through_slurm(slurm)
            compare((local, slurm))
        except SimoError as error:
            print(f"FAILED: {error}")
            for log in (*local.glob("output.log"), *slurm.glob("output.log"), *services.glob("*.log")):
                print(f"--- {log.name}", *log.read_text(encoding="utf-8").splitlines()[-30:], sep="\n")
            return 1
    print("Slurm is down, its folder is gone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
