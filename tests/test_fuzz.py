"""Whatever bytes a file holds, its reader succeeds or says in a SimoError that it cannot: no other exception,
nothing in it is run, and no more memory is taken than a file of its size may need.

`FUZZ=1000` reads that many changed files of each kind (`make torture`), at random; the default is few, and
always the same.
"""

import contextlib
import functools
import io
import json
import os
import resource
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures
from scipy.io import savemat

from data_scripts import cityscapes, five_tasks, nyuv2, nyuv2_official, nyuv2_parquet, nyuv2_pictures
from data_scripts.archives import ZipReader
from data_scripts.converting import read_onnx, read_pth
from data_scripts.layouts import Image
from report.notebooks import notebook_code
from report.parameters import parse_declarations, parse_yaml, read_yaml
from report.records import load_pictures, load_records
from simo.checkpoints import TensorFile, load_recipe, save_checkpoint
from simo.datasets import read_prepared
from simo.errors import SimoError
from simo.files import read_json
from simo.own import load_exported

EXAMPLES = int(os.environ.get("FUZZ", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ROOM = 3 << 30  # bytes of addresses that a reader may take: threads of libraries reserve a lot


def picture(kind, **options):
    """Bytes of a picture of that format."""
    out = io.BytesIO()
    grey = np.arange(480 * 640).reshape(480, 640) // 640
    Pictures.fromarray(grey.astype(np.uint8)).save(out, kind, **options)
    return out.getvalue()


def written(write):
    """Bytes that `write(path)` leaves in a file."""

    def make(folder):
        path = folder / "made.bin"
        write(path)
        return path.read_bytes()

    return make


def checkpoint(folder):
    """A checkpoint; what is changed is the file of its tensors."""
    save_checkpoint(folder / "a.safetensors", {"w": torch.rand(4, 4), "n": torch.arange(3)}, {"kind": "x"})
    return (folder / "a.safetensors").read_bytes()


def read_tensors(path):
    """Read all tensors of a safetensors file."""
    return dict(TensorFile(path))


def recipe(folder):
    """Bytes of a recipe as `export` writes it."""
    task = {
        "name": "a",
        "folder": "",
        "channels": 1,
        "loss": "l1",
        "metric": "aErr",
        "unit": "",
        "classes": [],
    }
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = {"backbone": "vit_tiny_patch16_224", "backbone_args": args, "blocks": [1], "head": "linear"}
    model |= {"head_options": {}, "input_scale": "signed"}
    save_checkpoint(folder / "model.safetensors", {}, {"kind": "exported", "adapter_rank": 0})
    digest = json.loads((folder / "model.json").read_text())
    return json.dumps(digest | {"tasks": [task], "model": model}).encode()


def read_exported(path):
    """Read a recipe that lies beside tensors which it fits."""
    path.replace(path.with_name("model.json"))
    return load_exported(path.parent)


def parquet(path):
    """Write a shard of NYUv2 as on the Hub."""
    import pyarrow
    import pyarrow.parquet

    values = {name: [[0.0, 1.0]] for name in nyuv2_parquet.COLUMNS}
    pyarrow.parquet.write_table(pyarrow.table(values), path)


def read_parquet(path):
    """Read the first row."""
    return nyuv2_parquet._Rows(str(path)).read(0)


def zipped(path):
    """Write an archive of two files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", b"text" * 50)
        archive.writestr("c.bin", bytes(500))


def read_zip(path):
    """Read all members."""
    reader = ZipReader(path)
    return [reader.read(name) for name in reader.names]


def onnx_file(folder):
    """Bytes of a small ONNX model."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    return helper.make_model(graph).SerializeToString()


def array(name):
    """How to make an array of the prepared NYUv2, beside all others, and how two conversions read it."""
    height, width = nyuv2.LAYOUT.size
    shapes = {"image": (height, width, 3), "label": (height, width), "depth": (height, width, 1)}
    shapes["normal"] = shapes["image"]

    def make(folder):
        for field, shape in shapes.items():
            (folder / "train" / field).mkdir(parents=True, exist_ok=True)
            np.save(folder / "train" / field / "0.npy", np.zeros(shape, np.float32))
        return (folder / "train" / name / "0.npy").read_bytes()

    def read(path):
        path.replace(path.parent / "train" / name / "0.npy")
        image = Image("train", 0, "train/0", str(path.parent))
        nyuv2.convert_npy(image, nyuv2.LAYOUT.size)
        five_tasks.convert(image)

    return make, read


def as_record(path):
    """Read a folder of one record."""
    (path.parent / "nyuv2/seed0").mkdir(parents=True, exist_ok=True)
    path.replace(path.parent / "nyuv2/seed0/joint.json")
    return load_records(path.parent)


RECORD = {"experiment": "joint", "profile": "smoke", "dataset": "nyuv2", "seed": 0, "details": {}}
RECORD |= {"results": [{"model": "a", "metrics": {"depth": 0.5}}]}
RECORD |= {"provenance": {"started": "2026-11-01T08:00:00+00:00", "hashes": {"data": "0" * 64}}}
NOTEBOOK = {"nbformat": 4, "cells": [{"cell_type": "code", "source": ["x = 1\n"], "metadata": {}}]}
YAML = "a: 1\nb: [0.5, text]\nc: {d: 1e-3}\n# comment\n"
# by kind: bytes of a good file, given a folder to make it in; and how it is read
READERS = {
    "safetensors": (checkpoint, read_tensors),
    "recipe": (recipe, read_exported),
    "json": (lambda _: json.dumps(RECORD).encode(), read_json),
    "record": (lambda _: json.dumps(RECORD).encode(), as_record),
    "yaml": (lambda _: YAML.encode(), read_yaml),
    "notebook": (lambda _: json.dumps(NOTEBOOK).encode(), notebook_code),
    "npy of values": array("normal"),
    "npy of classes": array("label"),
    "npz": (written(lambda path: np.savez_compressed(path.open("wb"), a=np.arange(9))), load_pictures),
    "png": (lambda _: picture("PNG"), lambda path: nyuv2_pictures._picture(path, "L")),
    "png of Cityscapes": (
        lambda _: picture("PNG"),
        lambda path: cityscapes._decode((None, str(path)), cityscapes.PACKAGES["gtFine"]),
    ),
    "tiff": (
        lambda _: picture("TIFF"),
        lambda path: cityscapes._decode((None, str(path)), cityscapes.PACKAGES["gtFine"]),
    ),
    "mat": (
        written(lambda path: savemat(path, {"mapClass": np.arange(40)}, do_compression=True)),
        nyuv2_official._loadmat,
    ),
    "parquet": (written(parquet), read_parquet),
    "zip": (written(zipped), read_zip),
    "pth": (
        written(lambda path: torch.save({"a.weight": torch.rand(4, 4), "b": torch.arange(3)}, path)),
        lambda path: read_pth(path, path),
    ),
    "pth in memory": (
        written(lambda path: torch.save({"a.weight": torch.rand(4, 4), "b": torch.arange(3)}, path)),
        lambda path: read_pth(path.read_bytes(), path),
    ),
    "onnx": (onnx_file, lambda path: read_onnx(path.read_bytes(), path)),
}

# formats say what they hold at the beginning or the end
place = st.one_of(st.integers(0, 255), st.integers(-128, -1), st.integers(0, 2**31))
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), place, st.integers(1, 255)),
        st.tuples(st.just("put"), place, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("number"), place, st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1])),
        st.tuples(st.just("cut"), place, st.integers(1, 64)),
        st.tuples(st.just("end"), place, st.none()),
        st.tuples(st.just("twice"), place, st.integers(1, 64)),
    ),
    min_size=1,
    max_size=4,
)


def changed(content, changes):
    """Bytes after changes: of a byte, a run, a number of 4 or 8 bytes, a hole, an early end, a copy."""
    content = bytearray(content)
    for kind, where, what in changes:
        at = where % (len(content) or 1)
        if kind == "byte" and content:
            content[at] ^= what
        elif kind == "put":
            content[at : at + len(what)] = what
        elif kind == "number":
            number = what.to_bytes(8 if what >= 2**32 else 4, "little")
            content[at : at + len(number)] = number
        elif kind == "cut":
            del content[at : at + what]
        elif kind == "end":
            del content[at:]
        else:
            content[at:at] = content[at : at + (what or 0)]
    return bytes(content)


@pytest.fixture
def bounded():
    """No more than `ROOM` of further addresses for this process while a test runs, where the system can."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(read, path, content):
    """Write bytes, read them; whether they were refused, by a SimoError that names the file."""
    path.write_bytes(content)
    refused = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
    except SimoError as error:
        refused = str(error)
    assert not refused or path.name in refused or not path.exists()  # some readers give it another name
    return bool(refused)


@pytest.mark.parametrize("kind", READERS)
def test_changed_file(kind, tmp_path, bounded):
    """Of files with some bytes changed, all are read or refused, and some are refused."""
    make, read = READERS[kind]
    good, path, refused = make(tmp_path), tmp_path / "changed.bin", []
    assert not attempt(read, path, good) or kind == "recipe", "the good file was refused"

    @SETTINGS
    @given(CHANGES)
    def run(changes):
        refused.append(attempt(read, path, changed(good, changes)))

    run()
    assert any(refused)


@pytest.mark.parametrize("kind", READERS)
def test_file_of_something_else(kind, tmp_path, bounded):
    """Random bytes, nothing at all, another program's text, and every other kind's good file."""
    (make, read), path, others = READERS[kind], tmp_path / "other.bin", []
    make(tmp_path)
    for number, (make_other, _) in enumerate(READERS.values()):
        (tmp_path / str(number)).mkdir()
        others.append(make_other(tmp_path / str(number)))
    for content in [b"", b"\0" * 100, b"<html>not found</html>", b"\xff\xfe" * 20, *others]:
        attempt(read, path, content)

    @SETTINGS
    @given(st.binary(max_size=200))
    def run(content):
        attempt(read, path, content)

    run()


class Bomb:
    """An object whose unpickling leaves a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


BOMBS = {
    "pth": lambda bomb, out: torch.save({"a": bomb}, out),
    "old pth": lambda bomb, out: torch.save(bomb, out, _use_new_zipfile_serialization=False),
    "npy": lambda bomb, out: np.save(out, np.array([bomb], object), allow_pickle=True),
    "npz": lambda bomb, out: np.savez(out, a=np.array([bomb], object)),
    "yaml": lambda bomb, out: out.write(f"a: !!python/object/apply:open ['{bomb.marker}', w]\n".encode()),
}


@pytest.mark.parametrize("name", BOMBS)
def test_nothing_is_run(name, tmp_path):
    """A file that would run code in a careless reader runs none in any of ours."""
    out = io.BytesIO()
    BOMBS[name](Bomb(tmp_path / "marker"), out)
    for kind, (make, read) in READERS.items():
        make(tmp_path)
        attempt(read, tmp_path / f"{kind}.bin", out.getvalue())
    assert not (tmp_path / "marker").exists()


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("kind", "tasks", "model", "adapter_rank", "adapter", "sha256", "cells", "results", "metrics", "seed")


@pytest.mark.parametrize("kind", ["recipe", "json", "record", "notebook"])
def test_sound_json_of_something_else(kind, tmp_path):
    """Valid JSON that has some of the entries, with values of any kind."""
    make, read = READERS[kind]
    good, path = json.loads(make(tmp_path)), tmp_path / "changed.json"

    @SETTINGS
    @given(st.dictionaries(st.sampled_from([*KEYS, *good]), nested, max_size=3), nested)
    def run(entries, alone):
        for value in (good | entries, alone):
            attempt(read, path, json.dumps(value).encode())

    run()


@SETTINGS
@given(st.one_of(st.text(max_size=60), nested.map(yaml.safe_dump), st.binary(max_size=60)))
def test_any_text_as_settings(text):
    """What follows SET is values or a SimoError."""
    text = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
    for read in (
        functools.partial(parse_yaml, where="SET"),
        functools.partial(parse_declarations, where="a"),
    ):
        with contextlib.suppress(SimoError):
            read(text)


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"text"'])
def test_no_object(tmp_path, content):
    """JSON that is no object, where one is expected."""
    for name in ("prepared.json", "a.json"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(SimoError, match="expected an object"):
        read_prepared(tmp_path)
    with pytest.raises(SimoError, match="expected an object"):
        load_recipe(tmp_path / "a.safetensors")
