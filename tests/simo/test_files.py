"""simo.files: a crash leaves the old file or the new one; trouble of the system is no damage of a file."""

import errno
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL.Image import DecompressionBombError

from simo.errors import SimoError
from simo.files import atomic_path, decoding, is_litter, listed, read_json, write_json


def test_file_appears_only_when_the_block_ends(tmp_path):
    """Protects readers from a file that is still being written."""
    path = tmp_path / "new folder" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert (temporary.parent, temporary.suffix) == (path.parent, ".txt")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError, MemoryError])
def test_a_crash_leaves_the_old_file(tmp_path, error):
    """Protects what was there, and leaves no rubbish, whatever ends the block."""
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error("crash")

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_refused_write_is_a_simo_error(tmp_path):
    """A folder that cannot be made is named, in place of a traceback from the operating system."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SimoError, match=r"cannot write .*below.txt: .*untouched"):
        write_json(tmp_path / "file" / "below.txt", 1)


def test_json_roundtrip(tmp_path):
    """Protects records: text beyond ASCII and floats come back exactly."""
    value = {"Δ": [0.1, 1e-300, None, True], "°": {"x": "é"}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_refuses_what_json_cannot_say(tmp_path, number):
    """NaN in a record would make it unreadable elsewhere; the old record stays."""
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(SimoError, match=r"a\.json.*finite"):
        write_json(tmp_path / "a.json", {"x": [number]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_unreadable_json_is_named(tmp_path):
    """A missing file and one that is not JSON are told apart."""
    with pytest.raises(SimoError, match=r"a.json \(JSON\) is missing"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(SimoError, match=r"a.json \(JSON\) cannot be decoded"):
        read_json(tmp_path / "a.json")


def refusing(number, *names):
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (lambda p: refusing(errno.ENOSPC), True),
        (lambda p: refusing(errno.EDQUOT, "somewhere"), True),
        (lambda p: refusing(errno.EROFS, "somewhere"), True),
        (lambda p: refusing(errno.EACCES, str(p)), True),
        (lambda p: refusing(errno.EIO, "source", None, str(p)), True),
        (lambda p: OSError(None, "no space left"), True),  # of `save_tensors`
        (lambda p: refusing(errno.ENOENT, "another file"), False),
        (lambda p: refusing(errno.EACCES, "another file"), False),
        (lambda p: refusing(errno.EMFILE), False),
        (lambda p: ConnectionRefusedError(errno.ECONNREFUSED, "refused"), False),
        (lambda p: OSError("image file is truncated"), False),
    ],
)
def test_disk_is_blamed_for_its_own_faults_only(tmp_path, error, blamed):
    """Protects who looks for a fault: one that the block met elsewhere is not "cannot write ..."."""
    with pytest.raises(SimoError if blamed else OSError) as found, atomic_path(tmp_path / "a") as temporary:
        raise error(temporary)
    assert ("cannot write" in str(found.value)) == blamed
    assert list(tmp_path.iterdir()) == []


def test_refusal_comes_before_the_work(tmp_path):
    """Protects hours of computing inside the block: a folder that cannot be written is told first."""
    (tmp_path / "file").touch()
    with pytest.raises(SimoError, match="cannot write"), atomic_path(tmp_path / "file" / "a.txt"):
        pytest.fail("the block ran")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    """Protects a user's privacy and a group's access, also where a library has its own idea."""
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "a.bin") as temporary:
            temporary.chmod(0o640)
            temporary.write_bytes(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == mode


def test_refused_chmod_is_no_error(tmp_path, monkeypatch):
    """Protects work on file systems without permissions (FAT, some network shares)."""

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "not permitted")

    with atomic_path(tmp_path / "a.bin") as temporary:
        temporary.chmod(0o600)
        monkeypatch.setattr(Path, "chmod", refuse)
    assert (tmp_path / "a.bin").is_file()


SYSTEM = [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOMEM, errno.EACCES, errno.EPERM]
SYSTEM += [errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EISDIR, errno.ENODEV]


class Damage(SimoError):
    """What a caller takes for damage."""


def hidden_behind(error, other):
    """An error that another one was made of, as tarfile and scipy do."""
    error.__cause__ = other
    return error


TROUBLE = {errno.errorcode[number]: refusing(number, "a.npy") for number in SYSTEM}
TROUBLE |= {
    "memory": MemoryError("Unable to allocate 8 EiB"),
    "HDF5": OSError("Can't read data (file read failed: errno = 5, error message = 'Input/output error')"),
    "tarfile": hidden_behind(tarfile.ReadError("not a gzip file"), refusing(errno.EIO)),
    "scipy": hidden_behind(OSError("Reader needs file name"), refusing(errno.EMFILE)),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_of_the_system_is_no_damage(name):
    """Protects files from being dropped or downloaded again because a disk had a bad moment."""
    told = "the system cannot read a.npy .*says nothing about the file"
    with pytest.raises(SimoError, match=told) as found, decoding("a.npy", kind=Damage):
        raise TROUBLE[name]
    assert not isinstance(found.value, Damage)


DAMAGE = [zlib.error("invalid"), IndexError("out of range"), ValueError("bad"), KeyError("x"), EOFError()]
DAMAGE += [SyntaxError("broken PNG"), struct.error("unpack"), OSError("truncated"), RecursionError("deep")]
DAMAGE += [
    DecompressionBombError("large"),
    pickle.UnpicklingError("no"),
    OverflowError("large"),
    TypeError("no"),
]
DAMAGE += [NotImplementedError("compression"), AssertionError(), AttributeError("none"), RuntimeError("zip")]
DAMAGE += [zipfile.BadZipFile("no"), lzma.LZMAError("no"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")]
DAMAGE += [OSError("file is truncated: errno = 0"), refusing(errno.EINVAL)]


@pytest.mark.parametrize("error", DAMAGE, ids=lambda error: type(error).__name__)
def test_whatever_a_decoder_raises_is_damage(error):
    """Protects from tracebacks: the file is named, and why, also where the decoder says nothing."""
    told = r"^a\.npy cannot be decoded \(\S.*\): get another$"
    with pytest.raises(Damage, match=told), decoding("a.npy", "get another", Damage):
        raise error


@pytest.mark.parametrize("error", [SimoError("clear already"), ImportError("h5py"), KeyboardInterrupt()])
def test_other_exceptions_pass(error):
    """Protects what is no judgement of a decoder."""
    with pytest.raises(type(error)) as found, decoding("a.npy", kind=Damage):
        raise error
    assert found.value is error


def test_missing_file_is_said_to_be_missing():
    """Protects the difference between damaged and not there."""
    told = "none.npy is missing: get it"
    with pytest.raises(Damage, match=told), decoding("none.npy", "get it", Damage):
        Path("none.npy").read_bytes()


LITTER = ["._0.npy", ".DS_Store", "__MACOSX/0.npy", "__MACOSX/deep/._0.npy", "Thumbs.db", "desktop.ini"]
LITTER += [".joint.4711.json", "deep/.train.4711.txt"]  # of `atomic_path`, killed


def test_litter_is_not_listed(tmp_path):
    """Protects from what file managers and killed runs leave; names that only look similar are the user's."""
    own = [
        "0.npy",
        "_0.npy",
        ".0.npy",
        ".4711.npy",
        "joint.4711.json",
        "deep/Thumbs.db.npy",
        "deep/MACOSX.npy",
    ]
    for name in LITTER + own:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in listed(tmp_path, "**/*.*")]
    assert found == sorted(own)
    assert all(is_litter(name) for name in LITTER)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "decoded"), (b"", "decoded"), (b"[" * 100_000, "decoded"), (None, "cannot read")],
)
def test_json_that_cannot_be_read(tmp_path, content, message):
    """Protects from tracebacks for other encodings, an empty file, a bomb, and a folder of that name."""
    path = tmp_path / "a.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SimoError, match=f"(?s){message}.*a.json|a.json.*{message}"):
        read_json(path)
