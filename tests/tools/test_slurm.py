"""Without a Slurm: what the profile asks for, and what tools/pipeline.py hands to sbatch and scancel."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from report.experiments import EXPERIMENTS
from report.records import load_records
from tools import pipeline

ROOT = Path(__file__).resolve().parents[2]
PROFILE = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))

SNAKEFILE = """
rule joint:
    output: "out"
    resources: seconds=20
    threads: workflow.cores
    shell: "touch {output}"
"""

# each stands in for a program of Slurm: it notes how it was called, and says what the test wrote down
STUB = """#!/bin/sh
printf '%s\\n' "$(basename "$0") $*" >> calls
[ "$(basename "$0")" = sbatch ] && env > environment
cat "says $(basename "$0")" 2> /dev/null
exit 0
"""


def asked(rule):
    """What the profile asks for a rule."""
    return PROFILE["default-resources"] | PROFILE["set-resources"].get(rule, {})


@pytest.fixture
def folder(tmp_path):
    """A folder with a Snakefile of one step, the profile, and Slurm's programs as stubs in `bin`."""
    folder = tmp_path.resolve()
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "profiles/slurm").mkdir(parents=True)
    (folder / "profiles/slurm/config.yaml").write_text(yaml.safe_dump(PROFILE))
    (folder / "bin").mkdir()
    for name in ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "sacct", "sacctmgr"):
        (folder / "bin" / name).write_text(STUB)
        (folder / "bin" / name).chmod(0o755)
    return folder


def run(folder, *arguments):
    """Run the pipeline in a folder, with its stubs first on the path."""
    environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "SNAKEMAKE_PROFILE": "nowhere"}
    command = [sys.executable, ROOT / "tools/pipeline.py", "joint", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_limits_would_have_killed_no_committed_record():
    """Times and memory of the profile are at least twice what each notebook was measured to need."""
    seen = set()
    for record in (each for path in ROOT.glob("records/*/*") for each in load_records(path)):
        made, limits = record["provenance"], asked(record["provenance"]["notebook"])
        assert limits["runtime"] * 60 >= 2 * made["seconds"]
        assert limits["mem_mb"] >= 2 * made["peak_memory_mb"]
        seen.add(made["notebook"])
    assert seen <= {each.notebook for each in EXPERIMENTS}
    assert len(seen) > 15


def test_every_notebook_has_a_gpu_and_no_other_step():
    """Two notebooks on one GPU would share its memory; a step that only draws would keep a GPU idle."""
    assert {asked(each.notebook)["gpu"] for each in EXPERIMENTS} == {1}
    snakefile = (ROOT / "Snakefile").read_text(encoding="utf-8")
    others = {"render", "prepare", "weights", "page", "html", "records"}
    assert all(f"rule {name}:" in snakefile for name in others)
    assert {name for name, own in PROFILE["set-resources"].items() if own.get("gpu") == 0} == others
    assert PROFILE["set-resources"].keys() <= others | {each.notebook for each in EXPERIMENTS}


def test_a_step_is_handed_to_slurm(folder):
    """The profile's words reach sbatch, the isolated environment does, and the mark of our own processes not.

    Slurm says that the job was cancelled: the run ends, says so, and cancels nothing of others.
    """
    (folder / "says sbatch").write_text("7\n")
    (folder / "says squeue").write_text("7|CANCELLED\n")
    (folder / "says scontrol").write_text("MinJobAge = 300 sec\n")  # else the plugin asks sacct
    settings = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"]
    done = run(folder, "--executor", "slurm", "--", *settings)
    assert done.returncode == 1, done.stdout
    assert "steps to do: 1, in a time that is not known (handed to slurm)" in done.stdout
    assert "joint: submitted" in done.stdout
    assert "joint: FAILED" in done.stdout
    calls = (folder / "calls").read_text().splitlines()
    (sbatch,) = [shlex.split(call.split(" --wrap")[0]) for call in calls if call.startswith("sbatch")]
    values = dict(zip(sbatch, sbatch[1:], strict=False))
    assert values["--job-name"].startswith(pipeline.job_prefix(folder))
    limits = asked("joint")
    assert values["-p"] == limits["slurm_partition"] == "gpu"
    assert {"--gpus=1", "--no-requeue", f"--cpus-per-task={PROFILE['cores']}"} <= set(sbatch)
    assert (values["--mem"], values["-t"]) == (str(limits["mem_mb"]), str(limits["runtime"]))
    environment = (folder / "environment").read_text()
    assert pipeline.MARK not in environment
    assert "SNAKEMAKE_PROFILE" not in environment
    assert "JUPYTER_NO_CONFIG=1" in environment
    assert not [call for call in calls if call.startswith("scancel")]


def test_jobs_of_a_killed_run_are_cancelled(tmp_path, monkeypatch):
    """What a killed run left in the queue would write beside the next one; others' jobs are let alone."""
    (tmp_path / ".snakemake/slurm_logs").mkdir(parents=True)
    own, other = (pipeline.job_prefix(folder) for folder in (tmp_path, "/elsewhere"))
    queue = {"3": f"{own}_a", "4": f"{other}_a", "5": f"{own}_b", "6": "simo"}
    calls = []

    def slurm(command, **_):
        calls.append(command)
        listed = "".join(f"{number} {name}\n" for number, name in queue.items())
        for number in command[1:] if command[0] == "scancel" else ():
            del queue[number]
        return subprocess.CompletedProcess(command, 0, listed, "")

    monkeypatch.setattr(pipeline.shutil, "which", lambda name: name)
    monkeypatch.setattr(pipeline.subprocess, "run", slurm)
    monkeypatch.setattr(pipeline.time, "sleep", lambda _: None)
    pipeline.cancel_jobs(tmp_path)
    assert [call for call in calls if call[0] == "scancel"] == [["scancel", "3", "5"]]
    assert sorted(queue) == ["4", "6"]


def test_what_cannot_be_meant_is_refused(folder):
    """A profile that does not exist, or cores of this machine, are told before anything runs."""
    assert "no profiles/nowhere/config.yaml" in run(folder, "--executor", "nowhere").stderr
    assert "--cores is for this machine" in run(folder, "--executor", "slurm", "--cores", "2").stderr
    assert not (folder / "calls").exists()
