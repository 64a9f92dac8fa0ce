"""tools/torture.py: what it takes for a difference, and what it does to files; its trials take hours."""

import json
import os
import subprocess
import sys
import time

from tools import torture

RECORD = {"results": [{"metrics": {"depth": 0.5}, "cost": {"steps": 3, "seconds": 1.5}}]}
RECORD |= {"provenance": {"started": "2026-11-26T02:00:00+00:00", "seconds": 9, "device": "CPU"}}


def write(project, record):
    """A record of a smoke run."""
    path = project / "build/smoke/records/nyuv2/seed0/joint.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_what_two_runs_may_differ_in(tmp_path):
    """Times may; a digit of a metric, a device or a missing record may not."""
    write(tmp_path, RECORD)
    expected = torture.records(tmp_path)
    later = json.loads(json.dumps(RECORD).replace("1.5", "2.5").replace("02:00", "03:00"))
    write(tmp_path, later)
    assert torture.compare(tmp_path, expected) is None
    write(tmp_path, json.loads(json.dumps(RECORD).replace("0.5", "0.50001")))
    assert torture.compare(tmp_path, expected) == "differs: build/smoke/records/nyuv2/seed0/joint.json"
    (tmp_path / "build/smoke/records/nyuv2/seed0/joint.json").unlink()
    assert "joint.json" in torture.compare(tmp_path, expected)


def test_power_cut(tmp_path):
    """The process is gone, half-written files end at a block, and what was renamed into place is whole."""
    old = time.time() - 60
    for name in (".snakemake/a", "build/.b.1.json", "build/c.log", "build/d.json", "build/.old"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(torture.BLOCK + 1))
    os.utime(tmp_path / "build/.old", (old, old))
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    torture.cut_power(process, tmp_path)
    assert process.returncode == -9
    sizes = {path.name: path.stat().st_size % torture.BLOCK for path in tmp_path.rglob("*") if path.is_file()}
    assert sizes == {"a": 0, ".b.1.json": 0, "c.log": 0, "d.json": 1, ".old": 1}


def test_project_is_copied(tmp_path):
    """All that git knows, the weights, too, and no build."""
    copied = torture.copy_project(tmp_path)
    for name in ("Snakefile", "tools/pipeline.py", "simo/weights/miniature_vit.safetensors"):
        assert (copied / name).is_file()
    assert not (copied / "build").exists()
    assert not (copied / ".git").exists()
