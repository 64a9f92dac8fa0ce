"""Trouble of the system never drops or blames a file; damage always names it, whatever a decoder raises.

A view that is dropped for a moment's EIO is missing for good, and 2.8 GB are downloaded again for a lock.
"""

import errno
import fcntl
import io
import os
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from test_preparing import DROPPING, LAYOUT, toy

from data_scripts import (
    cityscapes,
    five_tasks,
    nyuv2,
    nyuv2_official,
    nyuv2_parquet,
    nyuv2_pictures,
    taskonomy,
)
from data_scripts.archives import ZipReader
from data_scripts.checking import check
from data_scripts.commands import exit_status
from data_scripts.layouts import Broken, Image
from data_scripts.preparing import prepare
from simo.checkpoints import TensorFile, save_tensors
from simo.datasets import read_split
from simo.errors import SimoError
from simo.files import decoding


def png(width=512, height=512, mode="L"):
    """Bytes of a picture."""
    out = io.BytesIO()
    Pictures.new(mode, (width, height)).save(out, "PNG")
    return out.getvalue()


def chunk(kind, content):
    """A chunk of a PNG with its right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_data(data, width=8, height=8):
    """A PNG whose pixel data are these bytes, all checksums right."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


PNGS = {
    "empty": b"",
    "text": b"<html>not found</html>",
    "truncated": png()[:60],
    "checksum": png()[:-14] + b"\0" * 14,
    "no deflate": with_data(b"\xff" * 40),
    "bomb": with_data(zlib.compress(b""), 60000, 60000),
    "no pixels": with_data(zlib.compress(b""), 0, 0),
    "large chunk": png()[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + b"\0" * 20,
    "another format": b"GIF89a" + bytes(30),
}


@pytest.mark.parametrize("name", PNGS)
def test_damaged_picture(tmp_path, name):
    """Every reader of pictures names the file, and says that it is broken."""
    path = tmp_path / "rgb/nowhere/v_domain_rgb.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(PNGS[name])
    with pytest.raises(Broken, match=r"rgb: v_domain_rgb\.png cannot be decoded \(\S"):
        taskonomy._read(tmp_path, "nowhere", "v", "rgb")
    with pytest.raises(Broken, match=r"v_domain_rgb\.png(:| cannot be decoded)"):
        nyuv2_pictures._picture(path, "RGB")
    with pytest.raises(Broken, match=r"v_domain_rgb\.png(:| cannot be decoded)"):
        cityscapes._decode((None, str(path)), cityscapes.PACKAGES["leftImg8bit"])


def npy(array=None, header=None):
    """Bytes of an array, or of a header that promises one."""
    out = io.BytesIO()
    if header is None:
        np.save(out, np.zeros((4, 4), np.float32) if array is None else array)
        return out.getvalue()
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


ARRAYS = {
    "empty": b"",
    "text": b"<html>",
    "truncated": npy()[:-3],
    "half a header": npy()[:20],
    "no dictionary": npy(header="[1, 2"),
    "code": npy(header="__import__('os').system('false')"),
    "unknown type": npy(header="{'descr': '<x9', 'fortran_order': False, 'shape': (1,)}"),
    "negative": npy(header="{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 4)}"),
    "lacks shape": npy(header="{'descr': '<f4', 'fortran_order': False}"),
    "objects": b"\x93NUMPY\x01\x00" + npy(header="{'descr': 'O', 'fortran_order': False, 'shape': ()}")[8:],
    "pickle": b"\x80\x04K\x01.",
    "zip without end": b"PK\x03\x04" + bytes(30),
    "version": b"\x93NUMPY\x09\x00" + npy()[8:],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_damaged_array(tmp_path, name):
    """Every reader of arrays names the file; nothing in it is run."""
    path = tmp_path / "train/image/0.npy"
    path.parent.mkdir(parents=True)
    path.write_bytes(ARRAYS[name])
    for convert in (partial(nyuv2.convert_npy, size=(288, 384)), five_tasks.convert):
        with pytest.raises(Broken, match=r"train/image/0\.npy cannot be decoded \(\S"):
            convert(Image("train", 0, "train/0", str(tmp_path)))


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, 6000])
def test_damaged_matlab_7_file(tmp_path, keep):
    """The large file that ended early is named, wherever it ends."""
    path = tmp_path / nyuv2_official.MAT_FILES[0]
    with h5py.File(path, "w") as file:
        for name, shape in {"images": (1, 3, 640, 480), "labels": (1, 640, 480)}.items():
            file.create_dataset(name, shape, "uint8", chunks=True, compression="gzip")
    path.write_bytes(path.read_bytes()[:keep])
    nyuv2_official._labelled.cache_clear()
    with pytest.raises(SimoError, match="nyu_depth_v2_labeled.mat(:|, a MATLAB 7.3 file, cannot be decoded)"):
        nyuv2_official._labelled(str(tmp_path))


def test_locked_matlab_file_is_not_blamed(tmp_path):
    """A lock of another program is no damage: nobody is told to download 2.8 GB again."""
    path = tmp_path / nyuv2_official.MAT_FILES[0]
    with h5py.File(path, "w") as file:
        file["images"] = 1
    nyuv2_official._labelled.cache_clear()
    with open(path, "rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SimoError, match="the system cannot read .*says nothing about the file"):
            nyuv2_official._labelled(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(40) + b"PAR1", b"<html>" * 20])
def test_damaged_parquet(tmp_path, content):
    """Half a download is named."""
    path = tmp_path / "train-00000.parquet"
    path.write_bytes(content)
    with pytest.raises(Broken, match=r"train-00000\.parquet, a parquet file, cannot be decoded"):
        nyuv2_parquet._Rows(str(path))


TROUBLE = [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOMEM, errno.EACCES, errno.ETIMEDOUT]


@pytest.mark.parametrize("number", TROUBLE, ids=errno.errorcode.get)
def test_trouble_of_the_disk_drops_no_view(tmp_path, monkeypatch, number):
    """Of Taskonomy, which may drop: the run stops, nothing is recorded, and the same command continues."""

    def convert(image):
        if image.source == "trouble":
            with decoding(image.name, kind=Broken):
                raise OSError(number, os.strerror(number), image.name)
        return toy().convert(image)

    raw = toy(DROPPING, {"train/3": "trouble", "val/0": "broken"})
    object.__setattr__(raw, "convert", convert)
    with pytest.raises(SimoError, match="the system cannot read city_train_3"):
        prepare(raw, tmp_path / "out", workers=1)
    assert not (tmp_path / "out/dropped.txt").exists()
    assert not (tmp_path / "out/prepared.json").exists()
    calm = toy(DROPPING, {"val/0": "broken"})
    assert prepare(calm, tmp_path / "out", workers=1)["dropped"] == 1


def test_trouble_of_the_disk_in_a_real_view(tmp_path, monkeypatch):
    """The same in Taskonomy's own reader, which once took it for a broken picture."""
    (tmp_path / "rgb/house").mkdir(parents=True)

    def refuse(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    with pytest.raises(Broken, match="is missing"):
        taskonomy._read(tmp_path, "house", "v", "rgb")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SimoError, match="the system cannot read rgb: v_domain_rgb.png") as found:
        taskonomy._read(tmp_path, "house", "v", "rgb")
    assert not isinstance(found.value, Broken)


@pytest.mark.parametrize("number", TROUBLE, ids=errno.errorcode.get)
@pytest.mark.parametrize("place", ["open", "read"])
def test_trouble_of_the_disk_is_no_damage_of_an_archive_or_checkpoint(tmp_path, monkeypatch, number, place):
    """zipfile hides what the system says behind "not a zip file", and safetensors calls the file missing."""
    path, tensors, real = tmp_path / "a.zip", tmp_path / "a.safetensors", open
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", b"text")
    save_tensors(tensors, {"a": torch.ones(2)})

    def refuse(*arguments):
        raise OSError(number, os.strerror(number), *arguments[:1])

    def fail(file, *arguments, **options):
        if str(file) not in (str(path), str(tensors)):
            return real(file, *arguments, **options)
        opened = real(file, *arguments, **options) if place == "read" else refuse(file)
        return mock.Mock(wraps=opened, read=lambda *_: refuse())

    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr("io.open", fail)
    with pytest.raises(SimoError, match=rf"the system cannot read .*a.zip.* \({os.strerror(number)}\)"):
        ZipReader(path)
    if place == "open":
        with pytest.raises(SimoError, match=f"the system cannot read .*a.safetensors.*{os.strerror(number)}"):
            TensorFile(tensors)


LISTS = {
    "another encoding": (b"train/0\ntrain/\xff\n", "cannot be decoded"),
    "no folder": (b"train/0\n1\n", "'1' is no folder/number"),
    "a way out": (b"../../x/1\n", r"'\.\./\.\./x/1' is no folder/number"),
    "absolute": (b"/etc/passwd\n", "'/etc/passwd' is no"),
    "deeper": (b"train/image/0\n", "'train/image/0' is no"),
    "zero bytes": (b"train/0\0\n", "is no folder/number"),
    "spaces alone": (b" \n", "is 0: expected some"),
}


@pytest.mark.parametrize("name", LISTS)
def test_damaged_list_of_a_split(tmp_path, name):
    """What a data set reads first names its file, whatever is in it."""
    content, message = LISTS[name]
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_bytes(content)
    with pytest.raises(SimoError, match=f"train.txt.*{message}"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.EIO, "Input/output error", "a.png"),
            "error: the system refuses a.png: Input/output error",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            "error: the system refuses a file: Too many open files",
        ),
        (MemoryError(), "error: not enough memory (MemoryError): try fewer --workers"),
        (SimoError("a is b"), "error: a is b"),
    ],
)
def test_command_lines_end_in_one_line(capsys, error, message):
    """What no reader caught is a line and a status, no traceback."""

    def run():
        raise error

    assert exit_status(run) == 1
    assert capsys.readouterr().err == message + "\n"


LITTER = [
    "._b.txt",
    ".DS_Store",
    "__MACOSX/._b.txt",
    "__MACOSX/a/b.txt",
    "a/._b.txt",
    "a/Thumbs.db",
    "desktop.ini",
]


def test_litter_in_archives(tmp_path):
    """What macOS adds to an archive is not listed."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in [*LITTER, "a/b.txt"]:
            archive.writestr(name, b"x")
    assert ZipReader(tmp_path / "a.zip").names == ["a/b.txt"]


def test_litter_in_folders(tmp_path):
    """A folder that was looked at on a Mac is prepared, checked and hashed as before, and is raw data."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").touch()
    record = prepare(toy(), out, workers=1)
    for name in ("train/image/.DS_Store", "train/image/._0.npy", "splits/._val.txt", "val/Thumbs.db"):
        (out / name).write_bytes(b"\0")
    assert not [line for line in check(out, LAYOUT) if not line.startswith("ok ")]
    assert prepare(toy(), out, workers=1) == record
    for folder in nyuv2.COUNTS:
        for field in nyuv2.LAYOUT.fields:
            place = tmp_path / "raw" / folder / field.name
            place.mkdir(parents=True)
            for name in ("0.npy", "._0.npy", ".DS_Store"):
                (place / name).touch()
    assert [image.id for image in nyuv2._open_npy(tmp_path / "raw")] == ["train/0", "val/0"]
    (tmp_path / "raw/point_1_view_1_domain_rgb.png").touch()
    (tmp_path / "raw/._point_1_view_1_domain_rgb.png").touch()
    assert taskonomy._views(tmp_path / "raw") == ["point_1_view_1"]
    assert not any("._" in path for path in cityscapes._walk(tmp_path / "raw"))
