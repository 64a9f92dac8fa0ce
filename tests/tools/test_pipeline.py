"""tools/pipeline.py, run on miniature Snakefiles."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from simo.tasks import TASKS
from tools import progress

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = ROOT / "tools" / "pipeline.py"

SNAKEFILE = """
rule all:
    input: expand("out/{n}", n=range(3)), "out/total"

rule step:
    output: "out/{n}"
    log: "logs/step {n}.log"
    message: "step {wildcards.n}, seed 0"
    resources: seconds=20
    shell: "python step.py {wildcards.n} {output} > {log:q} 2>&1"

rule total:
    input: expand("out/{n}", n=range(3))
    output: "out/total"
    shell: "cat {input} > {output}"
"""

STEP = """
import pathlib, sys, time
number, output = sys.argv[1:]
print("began")
if pathlib.Path("broken" + number).exists():
    raise SystemExit("\\033[31mSimoError\\033[0m: the data of step " + number + " are missing")
while pathlib.Path("slow").exists():
    time.sleep(0.1)
pathlib.Path(output).write_text(number)
"""

# like a notebook kernel, it is in a session of its own and so in no process group of the run
DETACHED = """
import subprocess, sys
subprocess.run([sys.executable, "step.py", *sys.argv[1:]], start_new_session=True, check=True)
"""


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"
)


@pytest.fixture
def folder(tmp_path):
    """A folder, with a space in its name, that holds a Snakefile of four steps; no step outlives the test."""
    folder = tmp_path.resolve() / "a folder"
    folder.mkdir()
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "step.py").write_text(STEP)
    (folder / "detached.py").write_text(DETACHED)
    yield folder
    (folder / "slow").unlink(missing_ok=True)


def start(folder, *arguments):
    """Start a driver in `folder`, with its output in a file: an orphan would hold a pipe open."""
    output = folder / f"output {len(list(folder.glob('output *')))}"
    command = [sys.executable, PIPELINE, "all", "--cores", "2", *arguments]
    with output.open("w") as file:
        driver = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    driver.output = output
    return driver


def end(driver):
    """Wait for the end of a driver; return its exit code and its output."""
    return driver.wait(timeout=120), driver.output.read_text()


def run(folder, *arguments):
    """Run a driver to its end; return its exit code and its output."""
    return end(start(folder, *arguments))


def worker_of(driver):
    """The process id of a driver's only child."""
    return int(Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text())


def steps_alive(folder):
    """The processes that run a step in `folder`."""
    alive = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            command = (process / "cmdline").read_bytes().split(b"\0")
            if {b"step.py", b"detached.py"} & set(command) and process.joinpath("cwd").readlink() == folder:
                alive.add(int(process.name))
    return alive


def wait_until(condition):
    """Wait until a condition holds; fail if it does not within a minute, on a machine with other work."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def start_slow(folder):
    """Start a driver whose steps, in sessions of their own, wait as long as the file `slow` exists."""
    (folder / "slow").touch()
    snakefile = folder / "Snakefile"
    snakefile.write_text(snakefile.read_text().replace("python step.py", "python detached.py"))
    driver = start(folder)
    wait_until(lambda: len(steps_alive(folder)) == 4)  # two of step.py and two of detached.py
    return driver


def test_progress_counts_and_second_run_does_nothing(folder):
    """A reader sees each step start and end, how many are done, and that a second run is needless."""
    code, output = run(folder, "--config", "seeds=0 1 2", "data=/some where")
    assert code == 0, output
    assert output.startswith("steps to do: 4, in about "), output
    assert output.count(": started") == 4
    assert re.findall(r"^\[(\d)/4\] (?:step \d, seed 0|total): done in", output, re.MULTILINE) == list("1234")
    assert len(re.findall("; about .* left$", output, re.MULTILINE)) == 3
    assert run(folder) == (0, "nothing to be done: everything is up to date\n")


def test_unknown_time_is_not_guessed(folder):
    """At the paper's scale nobody knows how long a step takes: its log, which tells, is named instead."""
    snakefile = folder / "Snakefile"
    snakefile.write_text(snakefile.read_text().replace("seconds=20", "seconds=0"))
    code, output = run(folder)
    assert code == 0, output
    assert output.startswith("steps to do: 4, in a time that is not known (threads at once: 2)\n")
    assert "step 1, seed 0: started; its own time left: logs/step 1.log\n" in output
    assert not re.search("; about .* left$", output, re.MULTILINE)


def test_one_notebook_at_a_time_on_a_gpu(tmp_path):
    """The paper's profile limits no notebook's threads, so two side by side would share the GPU's memory."""
    for dataset in TASKS:
        (tmp_path / dataset).mkdir()
        (tmp_path / dataset / "prepared.json").touch()
    code = "import pipeline, progress, sys; pipeline.run_snakemake(sys.argv[1:]);"
    code += "print(progress.LogHandler.planned)"
    command = [sys.executable, "-c", code, "book", "--dry-run", "--cores", "16", "--config", "profile=paper"]
    command += [f"data={tmp_path}", f"build={tmp_path}/build", "weights=random", "further=all"]
    environment = os.environ | {"PYTHONPATH": str(PIPELINE.parent)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    planned = ast.literal_eval(done.stdout.splitlines()[-1])
    computing = [threads for seconds, threads in planned if not seconds]
    assert len(computing) > 50
    assert set(computing) == {16}


def test_failure_shows_the_end_of_the_log(folder):
    """A failed step is named, with its error and its log, and the next run does only what is left."""
    (folder / "broken1").touch()
    code, output = run(folder)
    assert code == 1
    assert re.search(r"\[\d/4\] step 1, seed 0: FAILED after \d+ s\n    \| began\n", output), output
    assert "    | SimoError: the data of step 1 are missing\n    whole log: logs/step 1.log\n" in output
    assert "Traceback" not in output
    assert "CalledProcessError" not in output
    assert "What is done is kept" in output
    done = len(list(folder.glob("out/*")))
    (folder / "broken1").unlink()
    code, output = run(folder)
    assert code == 0
    assert output.startswith(f"steps to do: {4 - done},"), output


def test_errors_of_the_snakefile_are_shown(folder):
    """An input that nothing makes is told in Snakemake's words, once, and not hidden by our own output."""
    snakefile = folder / "Snakefile"
    snakefile.write_text(snakefile.read_text().replace('"out/total"', '"out/total", "nowhere"', 1))
    code, output = run(folder)
    assert code == 1
    assert output.count("nowhere") == 1, output


@needs_proc
def test_killed_driver_leaves_no_orphan(folder):
    """After kill -9 nothing goes on computing unseen, and the same command takes the work up again."""
    driver = start_slow(folder)
    driver.kill()
    end(driver)
    wait_until(lambda: not steps_alive(folder))
    (folder / "slow").unlink()
    code, output = run(folder)
    assert code == 0, output
    assert "was killed; its unfinished steps are run again" in output
    assert sorted(path.name for path in folder.glob("out/*")) == ["0", "1", "2", "total"]


@needs_proc
def test_killed_worker_leaves_no_orphan(folder):
    """If the system kills Snakemake, for want of memory, the driver ends the steps and says what happened."""
    driver = start_slow(folder)
    os.kill(worker_of(driver), signal.SIGKILL)
    code, output = end(driver)
    assert code == 1
    assert "Snakemake was killed (signal 9)" in output
    assert not steps_alive(folder)


@needs_proc
def test_next_run_ends_what_two_kills_left(folder):
    """Orphans of a run of which all parents were killed at once do not write beside the next run."""
    driver = start_slow(folder)
    worker = worker_of(driver)
    os.kill(worker, signal.SIGSTOP)  # so that it cannot react to the end of the driver
    driver.kill()
    os.kill(worker, signal.SIGKILL)
    end(driver)
    orphans = steps_alive(folder)
    assert len(orphans) == 4
    again = start(folder)
    wait_until(lambda: not orphans & steps_alive(folder))
    (folder / "slow").unlink()
    code, output = end(again)
    assert code == 0, output


@needs_proc
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_stops_every_step(folder, signum):
    """Ctrl-C and a polite kill stop what runs, say so without a traceback, and leave no lock."""
    driver = start_slow(folder)
    driver.send_signal(signum)
    code, output = end(driver)
    assert code == 128 + signum
    assert output.endswith("stopping; the steps that are done are kept\n"), output
    assert not steps_alive(folder)
    assert (folder / ".snakemake" / "simo.lock").read_text() == ""
    assert not list((folder / ".snakemake" / "locks").glob("*"))


@needs_proc
def test_second_driver_is_refused(folder):
    """Two runs in one folder would write the same files: the second says who is at work and ends."""
    first = start_slow(folder)
    code, output = run(folder)
    assert code == 1
    assert f"another run is at work in {folder} (process {first.pid}, started at " in output
    assert len(steps_alive(folder)) == 4  # the first is not disturbed
    first.terminate()
    end(first)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (8, "8 s"), (60, "1 min"), (112, "1 min 52 s"), (3600, "1 h"), (7500, "2 h 5 min")],
)
def test_in_words(seconds, words):
    """Lengths of time read as people say them."""
    assert progress.in_words(seconds) == words


def test_time_left():
    """The estimate is right where it can be computed by hand: alone, in parallel, slower than expected."""
    assert progress.time_left([(100, 1), (100, 1)], [], [], cores=1) == 200
    assert progress.time_left([(100, 1), (100, 1)], [], [], cores=2) == 100
    assert progress.time_left([(100, 2), (100, 2)], [], [], cores=2) == 200
    # one of two steps took twice as long, beside 30 s that are taken to be as expected
    assert progress.time_left([(100, 1), (100, 1)], [(100, 200)], [], cores=1) == pytest.approx(
        100 * 230 / 130
    )
    # a running step counts with its rest, and with all of it if no other core can take it
    assert progress.time_left([(100, 1)], [], [(100, 1, 40.0)], cores=4) == 60
    assert progress.time_left([(100, 1), (10, 1)], [], [(100, 1, 40.0)], cores=1) == 70


def test_log_tail(tmp_path):
    """Of a long log the last lines are shown, without colour codes; a log that is missing is said to be."""
    log = tmp_path / "log"
    log.write_text("\n".join(f"\x1b[31mline {n}\x1b[0m\n" for n in range(40)))
    lines = progress.log_tail(log).splitlines()
    assert lines == [f"    | line {n}" for n in range(25, 40)]
    assert "No such file" in progress.log_tail(tmp_path / "missing")
