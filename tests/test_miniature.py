"""data_scripts.miniature: what a run leaves on the disk, whatever interrupts it."""

import json
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_scripts import rooms
from data_scripts.miniature import main, scene_seed, write_nyuv2
from simo.errors import SimoError

ROOT = Path(__file__).parents[1]
SMALL = {"size": (12, 16), "train": 5, "val": 3, "test": 4, "workers": 1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("miniature") / "nyuv2"
    return out, write_nyuv2(out, **SMALL)


def copy_of(prepared, tmp_path):
    return shutil.copytree(prepared[0], tmp_path / "copy")


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_layout(prepared):
    """Protects the prepared NYUv2 layout: names, types, shapes, and nothing besides."""
    out, record = prepared
    shapes = {"image": (12, 16, 3), "label": (12, 16), "depth": (12, 16, 1), "normal": (12, 16, 3)}
    expected = {"request.json", "prepared.json", "splits/train.txt", "splits/val.txt", "splits/test.txt"}
    for folder, count in (("train", 5), ("val", 7)):
        for field, shape in shapes.items():
            for index in range(count):
                array = np.load(out / folder / field / f"{index}.npy", allow_pickle=False)
                assert array.shape == shape
                assert array.dtype == (np.int64 if field == "label" else np.float32)
                expected.add(f"{folder}/{field}/{index}.npy")
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == expected
    assert json.loads((out / "prepared.json").read_text()) == record
    assert record["splits"] == {"train": 5, "val": 3, "test": 4}
    assert record["source"] == "rendered"


def test_splits_are_the_papers(prepared):
    """Protects the split rule: val and test share out folder val by a permutation with seed 42."""
    out, _ = prepared
    order = torch.randperm(7, generator=torch.Generator().manual_seed(42)).tolist()
    assert lines(out / "splits/train.txt") == [f"train/{index}" for index in range(5)]
    assert lines(out / "splits/val.txt") == [f"val/{index}" for index in sorted(order[:3])]
    assert lines(out / "splits/test.txt") == [f"val/{index}" for index in sorted(order[3:])]


def test_scene_seeds_are_disjoint():
    """Protects the splits from sharing a scene with each other or with the pretraining renders."""
    folders = ("train", "val", "pretraining", "preview")
    seeds = [scene_seed(d, f, i) for d in (0, 1, 2**29 - 1) for f in folders for i in (0, 1, 2**32 - 1)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) == 0
    assert max(seeds) < 2**63
    with pytest.raises(SimoError, match="'test'"):
        scene_seed(0, "test", 0)


def test_complete_folder_is_left_alone(prepared, monkeypatch, capsys):
    """Protects the reader's time: a second run renders nothing and says why."""
    monkeypatch.setattr(rooms, "render_room", None)
    assert write_nyuv2(prepared[0], **SMALL) == prepared[1]
    assert "complete already" in capsys.readouterr().out


def test_resumes_to_the_same_content(prepared, tmp_path):
    """Protects a run that lost files: only these are rendered again, and the content is the same."""
    out = copy_of(prepared, tmp_path)
    kept = out / "train/image/0.npy"
    before = kept.stat().st_mtime_ns
    for name in ("prepared.json", "splits/val.txt", "train/depth/2.npy", "val/image/6.npy"):
        (out / name).unlink()
    (out / "val/image/.6.123.npy").write_bytes(b"half")
    assert write_nyuv2(out, **SMALL) == prepared[1]
    assert kept.stat().st_mtime_ns == before
    assert not list(out.rglob(".*"))


def test_interrupted_run_is_not_complete(prepared, tmp_path, monkeypatch):
    """Protects readers from half a dataset: `prepared.json` comes last, and a re-run finishes the work."""
    render, out = rooms.render_room, tmp_path / "nyuv2"

    def stop_at_val(seed, height, width):
        if seed == scene_seed(0, "val", 1):
            raise KeyboardInterrupt
        return render(seed, height, width)

    monkeypatch.setattr(rooms, "render_room", stop_at_val)
    size = [f"--{name}={SMALL[name]}" for name in ("train", "val", "test", "workers")]
    command = ["nyuv2", "--out", str(out), "--size", "12", "16", *size]
    assert main(command) == 130
    assert not (out / "prepared.json").exists()
    monkeypatch.setattr(rooms, "render_room", render)
    assert main(command) == 0
    assert json.loads((out / "prepared.json").read_text()) == prepared[1]


def test_another_request_is_refused(prepared, capsys):
    """Protects a dataset from being mixed with another one; both values are named, without a traceback."""
    assert main(["nyuv2", "--out", str(prepared[0]), "--seed", "7"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "seed 0 there, 7 asked for" in message
    assert "--out" in message


def test_foreign_folder_is_refused(tmp_path):
    """Protects the user's own files from being taken for a dataset."""
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(SimoError, match=r"thesis\.tex"):
        write_nyuv2(tmp_path, **SMALL)
    with pytest.raises(SimoError, match="is a file"):
        write_nyuv2(tmp_path / "thesis.tex", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"size": (4, 64)}, {"workers": -1}, {"seed": -1}])
def test_impossible_requests_are_refused(tmp_path, wrong):
    """Protects from empty splits and from an error deep in the renderer; nothing is written."""
    with pytest.raises(SimoError):
        write_nyuv2(tmp_path / "new", **(SMALL | wrong))
    assert not (tmp_path / "new").exists()


def test_full_disk_is_noticed_first(tmp_path, monkeypatch):
    """Protects from a run that fails after an hour: the need is compared with the free space first."""
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SimoError, match="12 scenes of 12 x 16 need .* MB, the disk has 0 MB free"):
        write_nyuv2(tmp_path / "new", **SMALL)
    assert not list((tmp_path / "new").rglob("*.npy"))


def test_workers_and_folder_do_not_matter(prepared, tmp_path):
    """Protects reproducibility: two processes and a path with a space write what one process writes."""
    assert write_nyuv2(tmp_path / "a b" / "nyuv2", **(SMALL | {"workers": 2})) == prepared[1]


def test_killed_run_leaves_no_process_behind(tmp_path):
    """Protects the machine and the next run: workers end with their parent."""
    out = tmp_path / "nyuv2"
    command = [sys.executable, "-m", "data_scripts.miniature", "nyuv2", "--out", str(out)]
    command += ["--train", "9000", "--size", "8", "8", "--workers", "2"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(out.glob("train/normal/*.npy")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    run.kill()
    # Workers hold the other end of these pipes: reading them to their end takes until the last one is gone.
    run.communicate(timeout=30)
    assert not (out / "prepared.json").exists()


def test_preview(tmp_path):
    """Protects the picture: four rows, one column a scene."""
    out = tmp_path / "rooms.png"
    assert main(["preview", "--out", str(out), "--count", "2", "--size", "32", "40"]) == 0
    with Image.open(out) as picture:
        assert picture.size == (2 * 40 * 4, 4 * 32 * 4)
    assert main(["preview", "--out", str(tmp_path / "rooms.unknown"), "--count", "1"]) == 1
