"""data_scripts.preparing and data_scripts.checking, on a toy data set."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_scripts import preparing
from data_scripts.checking import check
from data_scripts.commands import main
from data_scripts.layouts import Broken, Field, Image, Layout, RawData
from data_scripts.preparing import Unlike, fixture_parts, prepare, random_parts
from simo.errors import SimoError
from simo.files import listed, read_json, write_json

FIELDS = (
    Field("image", "uint8", 3, 0, 255),
    Field("label", "int8", None, -1, 4, classes=5),
    Field("depth", "float32", 1, 0, 10),
)
LAYOUT = Layout("toy", (4, 6), FIELDS, {"train": 5, "val": 2, "test": 3})
DROPPING = replace(LAYOUT, may_drop=True)


def convert(image):
    """Arrays that depend on the image's name alone; `source` says what goes wrong with it."""
    random = np.random.default_rng(list(image.name.encode()))
    if image.source == "broken":
        raise Broken(f"{image.name}\tcannot\nbe decoded")
    if image.source == "slow":
        time.sleep(0.1)
    if image.source == "deadly":
        os._exit(1)
    return {
        "image": random.integers(0, 256, (4, 6, 3), dtype=np.uint8),
        "label": random.integers(-1, 5, (4, 6), dtype=np.int8),
        "depth": random.random((4, 6, 1), dtype=np.float32) * (20 if image.source == "far" else 1),
    }


def toy(layout=LAYOUT, sources=None, **options):
    """Ten images, of which those named in `sources` have something wrong; 'all' means each of them."""
    sources = sources or {}
    places = [("train", i) for i in range(5)] + [("val", i) for i in range(5)]
    images = [
        Image(folder, i, f"city_{folder}_{i}", sources.get(f"{folder}/{i}", sources.get("all")))
        for folder, i in places
    ]
    splits = {"train": [f"train/{i}" for i in range(5)], "val": ["val/1", "val/3"]}
    splits["test"] = ["val/0", "val/2", "val/4"]
    return RawData(layout, "made up", images, splits, convert, **options)


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in listed(folder, "**/*") if p.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("preparing") / "toy"
    prepare(toy(), out, workers=1)
    return out


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def test_layout(prepared):
    """Protects the prepared layout: every array where it belongs, lists and records beside them."""
    files = files_of(prepared)
    for image in toy().images:
        for name, array in convert(image).items():
            path = f"{image.folder}/{name}/{image.index}.npy"
            assert np.array_equal(np.load(prepared / path), array)
            assert np.load(prepared / path).dtype == array.dtype
            files.pop(path)
    assert files.pop("splits/train.txt") == b"train/0\ntrain/1\ntrain/2\ntrain/3\ntrain/4\n"
    assert files.pop("splits/val.txt") == b"val/1\nval/3\n"
    assert files.pop("splits/test.txt") == b"val/0\nval/2\nval/4\n"
    ids = files.pop("ids.txt").decode().splitlines()
    assert len(ids) == 10
    assert ids[6] == "val/1\tcity_val_1"
    assert files.pop("dropped.txt") == b""
    assert set(files) == {"request.json", "prepared.json"}
    record = read_json(prepared / "prepared.json")
    assert record.pop("sha256") == preparing.content_hash(prepared)
    assert record == {
        "dataset": "toy",
        "source": "made up",
        "fixture": False,
        "image_size": [4, 6],
        "splits": {"train": 5, "val": 2, "test": 3},
        "fields": {
            "image": {"dtype": "uint8", "shape": [4, 6, 3]},
            "label": {"dtype": "int8", "shape": [4, 6]},
            "depth": {"dtype": "float32", "shape": [4, 6, 1]},
        },
        "dropped": 0,
    }


def test_workers_do_not_matter(prepared, tmp_path):
    """Protects the result from the number of processes that made it."""
    prepare(toy(), tmp_path / "three", workers=3)
    assert files_of(tmp_path / "three") == files_of(prepared)


def test_content_hash_sees_values_splits_and_names(copy):
    """Protects caches keyed by the hash: an array's value, its place or a split changes it."""
    hashes = {preparing.content_hash(copy)}
    np.save(copy / "train/depth/0.npy", np.load(copy / "train/depth/0.npy") + 1)
    hashes.add(preparing.content_hash(copy))
    (copy / "splits/val.txt").write_text("val/1\n")
    hashes.add(preparing.content_hash(copy))
    (copy / "train/depth/0.npy").rename(copy / "train/depth/9.npy")
    hashes.add(preparing.content_hash(copy))
    assert len(hashes) == 4


def test_complete_folder_is_left_alone(copy, capsys):
    """Protects the reader's time: a second run writes nothing and says why."""
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert prepare(toy(), copy, workers=1) == read_json(copy / "prepared.json")
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    assert "complete already: 10 images" in capsys.readouterr().out


def test_missing_array_is_made_again(copy, prepared):
    """Protects repair: a lost file is made good by the same command, and half-written ones do not count."""
    (copy / "val/depth/3.npy").unlink()
    for half in ("val/depth/.3.4711.npy", "splits/.train.4711.txt", ".request.4711.json"):
        (copy / half).write_bytes(b"half")
    assert prepare(toy(), copy, workers=1) == read_json(prepared / "prepared.json")
    assert files_of(copy) == files_of(prepared)


def test_what_other_code_made_is_refused(copy):
    """Protects from training on what a corrected script would no longer make, complete or interrupted."""
    (copy / "prepared.json").unlink()
    later = replace(toy(), convert=lambda image: convert(image) | {"depth": convert(image)["depth"] + 1})
    with pytest.raises(Unlike, match=r"depth.*\.npy is not what is made of .* today"):
        prepare(later, copy, workers=1)
    prepare(toy(), copy, workers=1)
    with pytest.raises(Unlike, match="delete"):
        prepare(later, copy, workers=1)


def test_killed_run_continues(prepared, tmp_path):
    """Protects long preparations: after SIGKILL the workers end, what is written stays, the rest follows."""
    out = tmp_path / "killed"
    command = (
        "import sys, test_preparing as t; t.prepare(t.toy(sources={'all': 'slow'}), sys.argv[1], workers=2)"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(out)],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (written := list(out.glob("*/depth/[0-9].npy"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    # The workers hold the other end of the pipe: it ends when the last of them does.
    process.communicate(timeout=120)
    assert written
    assert not (out / "prepared.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/*/[0-9].npy")}
    assert len(kept) < 30, "killed too late to show anything"
    complete = [
        path for path in written if all((path.parents[1] / f.name / path.name).exists() for f in FIELDS)
    ]
    prepare(toy(), out, workers=1)
    assert files_of(out) == files_of(prepared)
    assert [path.stat().st_mtime_ns for path in complete] == [kept[path] for path in complete]


def test_other_request_is_refused(copy):
    """Protects a prepared folder from a mixture of two requests."""
    with pytest.raises(SimoError, match=r"another request \(source made up there, else asked for\)"):
        prepare(replace(toy(), source="else"), copy, workers=1)
    raw = toy()
    with pytest.raises(SimoError, match=r"fields \['image', 'label', 'depth'\] there, \['image'\] asked for"):
        prepare(toy(replace(LAYOUT, fields=FIELDS[:1])), copy, workers=1)
    with pytest.raises(SimoError, match="ids_sha256"):
        prepare(replace(raw, images=raw.images[::-1]), copy, workers=1)


@pytest.mark.parametrize(("name", "text"), [("request", "[]"), ("request", "{}"), ("prepared", "[]")])
def test_what_says_how_data_were_prepared_may_be_damaged(copy, name, text):
    """Protects from a traceback: JSON of another form is refused by its file's name, by the check, too."""
    (copy / f"{name}.json").write_text(text)
    expected = "begun by another request" if text == "{}" else f"{name}.json is .*: expected an object"
    with pytest.raises(SimoError, match=expected):
        prepare(toy(), copy, workers=1)
    assert any(line.startswith("FAIL ") for line in check(copy, LAYOUT))


def test_foreign_folder_is_refused(tmp_path):
    """Protects what is not ours: a folder with other files, and a file."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SimoError, match=r"holds 'notes.txt' and no request.json"):
        prepare(toy(), tmp_path, workers=1)
    with pytest.raises(SimoError, match="is a file"):
        prepare(toy(), tmp_path / "notes.txt", workers=1)
    assert files_of(tmp_path) == {"notes.txt": b"mine"}


def test_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    """Protects from hours of work that cannot end: too little space is refused at once."""
    usage = shutil.disk_usage(tmp_path)
    needed = 10 * (4 * 6 * (3 + 1 + 4) + 3 * (128 + 2048))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(SimoError, match=r"10 images need .* MB, the disk has"):
        prepare(toy(), tmp_path / "out", workers=1)
    assert not list(tmp_path.glob("out/*/*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    prepare(toy(), tmp_path / "out", workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_images_are_dropped_and_listed(tmp_path, capsys, workers):
    """Protects a data set that may drop: gaps in the index, a reason for each, splits of what is there."""
    raw = toy(DROPPING, {"train/1": "broken", "val/4": "far"}, fixture=True)
    record = prepare(raw, tmp_path / "out", workers=workers)
    assert record["dropped"] == 2
    assert record["splits"] == {"train": 4, "val": 2, "test": 2}
    lines = (tmp_path / "out/dropped.txt").read_text().splitlines()
    assert lines[0] == "city_train_1\tcity_train_1 cannot be decoded"
    assert lines[1].startswith("city_val_4\tcity_val_4: depth: expected values from 0 to 10, found")
    assert (tmp_path / "out/splits/train.txt").read_text().split() == [
        "train/0",
        "train/2",
        "train/3",
        "train/4",
    ]
    assert (tmp_path / "out/splits/test.txt").read_text().split() == ["val/0", "val/2"]
    ids = [line.split("\t")[0] for line in (tmp_path / "out/ids.txt").read_text().splitlines()]
    assert ids == [image.id for image in raw.images if image.id not in ("train/1", "val/4")]
    assert not (tmp_path / "out/val/image/4.npy").exists()
    assert prepare(raw, tmp_path / "out", workers=workers) == record
    assert "complete already: 8 images" in capsys.readouterr().out
    assert failures(tmp_path / "out", DROPPING) == []
    write_json(tmp_path / "out/prepared.json", record | {"fixture": False})  # then a fifth is too much
    assert failures(tmp_path / "out", DROPPING)[0].startswith("FAIL dropped images: 2 of 10")


def test_broken_image_stops_other_data_sets(tmp_path):
    """Protects data sets of a fixed count: a broken file stops the run, which goes on when it is mended."""
    with pytest.raises(SimoError, match="cannot\nbe decoded"):
        prepare(toy(sources={"val/0": "broken"}), tmp_path / "out", workers=2)
    assert not (tmp_path / "out/prepared.json").exists()
    prepare(toy(), tmp_path / "out", workers=1)


def test_dead_worker_is_explained(tmp_path):
    """Protects from a traceback of the pool when the system kills a worker."""
    with pytest.raises(SimoError, match="a worker process died.*the same command again"):
        prepare(toy(sources={"val/0": "deadly"}), tmp_path / "out", workers=2)


def test_random_parts_are_torchs():
    """Protects the paper's split rule: the first of torch's permutation with seed 42, sorted."""
    import torch  # late, for the sake of the worker processes that import this module

    order = torch.randperm(12, generator=torch.Generator().manual_seed(42)).tolist()
    assert random_parts(12, 5) == (sorted(order[:5]), sorted(order[5:]))
    assert [len(part) for part in fixture_parts(2, 0.99)] == [1, 1]
    assert [len(part) for part in fixture_parts(10, 0.8)] == [8, 2]
    with pytest.raises(SimoError, match="at least 2"):
        fixture_parts(1, 0.5)


# The check of a prepared folder


def failures(out, layout=LAYOUT):
    return [finding for finding in check(out, layout) if not finding.startswith("ok ")]


def test_check_of_a_sound_folder(prepared):
    """Protects the check from false alarms, and its numbers: histogram and range are those of the arrays."""
    findings = check(prepared, LAYOUT)
    assert failures(prepared) == []
    labels = np.stack([np.load(prepared / f"train/label/{i}.npy") for i in range(5)])
    line = next(finding for finding in findings if finding.startswith("ok train/label: 5 arrays int8"))
    for value in range(-1, 5):
        assert f"{value}: {100 * (labels == value).mean():.2f} %" in line
    depths = np.stack([np.load(prepared / f"val/depth/{i}.npy") for i in range(5)])
    assert f"ok val/depth: 5 arrays float32, {depths.min():g} to {depths.max():g}, 100.00 % not 0" in findings


def edit(path, change):
    np.save(path, change(np.load(path)))


def with_nan(array):
    array[0, 0] = np.nan
    return array


DAMAGES = {
    "missing array": (lambda out: (out / "val/label/2.npy").unlink(), "FAIL val/label/2.npy is missing"),
    "stray array": (
        lambda out: shutil.copy(out / "val/label/2.npy", out / "val/label/7.npy"),
        "FAIL val/label/7.npy does not belong here",
    ),
    "truncated": (
        lambda out: (out / "val/label/2.npy").write_bytes((out / "val/label/2.npy").read_bytes()[:-3]),
        "FAIL val/label/2.npy: cannot be read as an array",
    ),
    "type": (
        lambda out: edit(out / "train/depth/0.npy", np.float64),
        "FAIL train/depth/0.npy: expected float32 (4, 6, 1), found float64 (4, 6, 1)",
    ),
    "shape": (
        lambda out: edit(out / "train/image/0.npy", lambda a: a[:3]),
        "FAIL train/image/0.npy: expected uint8 (4, 6, 3), found uint8 (3, 6, 3)",
    ),
    "class": (
        lambda out: edit(out / "train/label/0.npy", lambda a: a + np.int8(3)),
        "FAIL train/label/0.npy: expected values from -1 to 4, found 2 to 7",
    ),
    "range": (
        lambda out: edit(out / "train/depth/0.npy", lambda a: a - np.float32(20)),
        "FAIL train/depth/0.npy: expected values from 0 to 10, found -19",
    ),
    "not finite": (
        lambda out: edit(out / "train/depth/0.npy", with_nan),
        "FAIL train/depth/0.npy: expected values from 0 to 10, found nan",
    ),
    "value": (lambda out: edit(out / "train/image/0.npy", lambda a: a // 2), "FAIL content hash"),
    "two splits": (
        lambda out: (out / "splits/val.txt").write_text("val/0\nval/1\n"),
        "FAIL val/0 is listed 2 times in the splits",
    ),
    "no split": (
        lambda out: (out / "splits/val.txt").write_text("val/0\nval/1\n"),
        "FAIL val/3 of ids.txt is in no split",
    ),
    "order": (
        lambda out: (out / "splits/val.txt").write_text("val/3\nval/1\n"),
        "FAIL splits/val.txt is not in ascending order",
    ),
    "not an id": (
        lambda out: (out / "splits/val.txt").write_text("val/1\n../3\n"),
        "FAIL splits/val.txt holds a line that is not folder/number",
    ),
    "count": (
        lambda out: (out / "splits/val.txt").write_text("val/1\n"),
        "FAIL images in split val: expected 2, found 1",
    ),
    "dropped": (
        lambda out: (out / "dropped.txt").write_text("city\tbroken\n"),
        "FAIL dropped images: expected none",
    ),
    "unfinished": (lambda out: (out / "prepared.json").unlink(), "FAIL "),
    "other data set": (
        lambda out: write_json(
            out / "prepared.json", read_json(out / "prepared.json") | {"dataset": "nyuv2"}
        ),
        "FAIL data set: expected toy, found nyuv2",
    ),
    "other size": (
        lambda out: write_json(
            out / "prepared.json", read_json(out / "prepared.json") | {"image_size": [8, 8]}
        ),
        "FAIL image size: expected [4, 6], found [8, 8]",
    ),
    "other source": (
        lambda out: write_json(out / "prepared.json", read_json(out / "prepared.json") | {"source": "x"}),
        "FAIL source",
    ),
    "nothing labelled": (
        lambda out: [edit(path, lambda a: a * 0 - np.int8(1)) for path in out.glob("val/label/*.npy")],
        "FAIL val/label: no pixel has ground truth",
    ),
    "no depth": (
        lambda out: [edit(path, lambda a: a * np.float32(0)) for path in out.glob("val/depth/*.npy")],
        "FAIL val/depth: no pixel has ground truth",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_check_finds(copy, name):
    """Protects every training from this damage: the check names it and fails."""
    damage, expected = DAMAGES[name]
    damage(copy)
    assert any(finding.startswith(expected) for finding in failures(copy)), failures(copy)


def test_check_holds_to_the_official_counts(tmp_path, prepared):
    """Protects results from a smaller data set, unless it says that it is made up."""
    official = replace(LAYOUT, counts={"train": 6, "val": 2, "test": 3})
    assert failures(prepared, official) == ["FAIL images in split train: expected 6, found 5"]
    assert failures(prepared, replace(official, may_drop=True)) == []
    fewer = replace(LAYOUT, may_drop=True, counts={"train": 4, "val": 2, "test": 3})
    assert failures(prepared, fewer) == ["FAIL images in split train: expected at most 4, found 5"]
    prepare(toy(fixture=True), tmp_path / "fixture", workers=1)
    assert failures(tmp_path / "fixture", official) == []
    assert read_json(tmp_path / "fixture/prepared.json")["fixture"] is True
    assert any(finding.startswith("ok fixture") for finding in check(tmp_path / "fixture", official))


def test_check_names_a_few_and_counts_the_rest(copy):
    """Protects the terminal from thousands of lines when a whole folder is lost."""
    shutil.rmtree(copy / "train")
    lines = [line for line in failures(copy) if "missing" in line or "more like these" in line]
    assert len(lines) == 6
    assert lines[-1] == "FAIL and 10 more like these"


# The command line


def test_command_line(tmp_path, capsys):
    """Protects the exit status: 0 for prepared and sound, 1 for a failed check or unusable raw data."""

    def open_raw(raw, pinned):
        if not raw.is_dir():
            raise SimoError(f"register to get {raw}")
        return toy(options={"pinned": pinned})

    def run(*arguments):
        return main(LAYOUT, open_raw, "Toy.", [*map(str, arguments)], lambda p: p.add_argument("--pinned"))

    out = tmp_path / "out"
    assert run("--raw", tmp_path / "none", "--out", out, "--workers", 1) == 1
    assert "error: register to get" in capsys.readouterr().err
    assert run("--check", "--out", out) == 1
    assert run("--raw", tmp_path, "--out", out, "--workers", 1, "--pinned", "abc") == 0
    assert read_json(out / "request.json")["options"] == {"pinned": "abc"}
    capsys.readouterr()
    assert run("--check", "--out", out) == 0
    assert all(line.startswith("ok ") for line in capsys.readouterr().out.splitlines())
    (out / "train/depth/0.npy").unlink()
    assert run("--check", "--out", out) == 1
    for wrong in (["--out", out], ["--raw", tmp_path, "--out", out, "--workers", 0]):
        with pytest.raises(SystemExit) as exit:
            run(*wrong)
        assert exit.value.code == 2
