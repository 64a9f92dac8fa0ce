"""data_scripts.archives: what is refused, and that nothing of it stays."""

import gzip
import io
import re
import struct
import tarfile
import zipfile

import pytest

from data_scripts.archives import Limits, ZipReader, extract
from simo.errors import SimoError

GOOD = {"data/a.txt": b"first", "data/deep/b.txt": bytes(range(256)) * 20}


def zip_of(path, members, **flags):
    """A zip file of (name or ZipInfo, bytes) pairs."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content, **flags)
    return path


def tar_of(path, members, mode="w:gz"):
    """A tar file of (name or TarInfo, bytes) pairs."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, link=""):
    """The header of a tar member that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def unix(name, mode):
    """The header of a zip member with a Unix file type."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive, tmp_path, match, **limits):
    """Extraction fails with this message, and leaves neither the target nor anything else."""
    before = contents(tmp_path)
    with pytest.raises(SimoError, match=match):
        extract(archive, tmp_path / "inner/target", Limits(**limits))
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob("inner/*"))
    assert not list(tmp_path.glob("inner/.*"))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
def test_good_archive(tmp_path, name):
    """Protects the ordinary case in every format: all files, nothing else, and no second extraction."""
    mode = "w:" + name.removeprefix("a.tar").lstrip(".")
    members = [("data/", b"")] if name.endswith("zip") else [(special("./", tarfile.DIRTYPE), b"")]
    write = zip_of if name.endswith("zip") else lambda path, members: tar_of(path, members, mode)
    archive = write(tmp_path / name, [*members, *GOOD.items()])
    target = extract(archive, tmp_path / "target")
    assert contents(target) == GOOD
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, "target"]
    archive.unlink()
    assert contents(extract(archive, target)) == GOOD


NAMES = {
    "/etc/evil": "absolute path",
    "C:/evil": "absolute path",
    "\\\\host\\evil": "absolute path",
    "../evil": r"'\.\.'",
    "data/../../evil": r"'\.\.'",
    "data\\..\\evil": r"'\.\.'",
    "data/a.txt": "there twice",
    "data/./a.txt": "there twice",
    "data/a.txt/evil": "'data/a.txt', which is a file",
    "data": "there twice",
}


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile warns of what the test wants
@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", NAMES)
def test_dangerous_names(tmp_path, kind, name):
    """Protects files outside the target, and files of the archive from each other."""
    write = zip_of if kind == "zip" else tar_of
    archive = write(tmp_path / f"a.{kind}", [*GOOD.items(), (name, b"evil")])
    refused(archive, tmp_path, f"member {re.escape(repr(name))} .*{NAMES[name]}")


@pytest.mark.parametrize(
    ("type", "what"),
    [
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "device"),
    ],
)
def test_special_members_of_tar(tmp_path, type, what):
    """Protects from links out of the folder and from devices in tar files."""
    archive = tar_of(tmp_path / "a.tar", [*GOOD.items(), (special("data/odd", type, "../../a"), b"")])
    refused(archive, tmp_path, f"member 'data/odd' .*{what}")


@pytest.mark.parametrize(
    ("mode", "what"), [(0o120777, "is a link"), (0o020600, "device"), (0o010600, "device")]
)
def test_special_members_of_zip(tmp_path, mode, what):
    """Protects from links and devices in zip files."""
    archive = zip_of(tmp_path / "a.zip", [*GOOD.items(), (unix("data/odd", mode), b"../../a")])
    refused(archive, tmp_path, f"member 'data/odd' .*{what}")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_limits(tmp_path, kind):
    """Protects the disk: one large member, many members, and members that expand out of proportion."""
    write = zip_of if kind == "zip" else tar_of
    archive = write(tmp_path / f"a.{kind}", GOOD.items())
    refused(archive, tmp_path, "'data/deep/b.txt' has 5120 bytes, more than the limit of 5119", member=5119)
    refused(archive, tmp_path, "'data/deep/b.txt' makes more than 5124 bytes in all", total=5124)
    assert contents(extract(archive, tmp_path / "fits", Limits(member=5120, total=5125))) == GOOD
    bomb = write(tmp_path / f"bomb.{kind}", [*GOOD.items(), ("data/bomb", bytes(2**20))])
    refused(bomb, tmp_path, "'data/bomb' expands .* over 200 times", spared=2**19)
    extract(bomb, tmp_path / "spared", Limits(spared=2**21))


def test_many_copies_of_one_member(tmp_path):
    """Protects from archives of many members that together expand out of proportion."""
    archive = zip_of(tmp_path / "a.zip", [(f"data/{i}", bytes(2**16)) for i in range(40)])
    refused(archive, tmp_path, "expands", spared=2**17)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
def test_truncated(tmp_path, name):
    """Protects from downloads that ended early, wherever they did, in every format."""
    mode = "w:" + name.removeprefix("a.tar").lstrip(".")
    write = zip_of if name.endswith("zip") else lambda path, members: tar_of(path, members, mode)
    content = write(tmp_path / name, GOOD.items()).read_bytes()
    end = len(content) if mode != "w:" else 512 * 14  # a plain tar file may lose its last zeros
    lengths = {1, 100, 512, end // 4, end // 2, 512 * (end // 1024), end - 1}
    for length in sorted(length for length in lengths if 0 < length < end):
        (tmp_path / name).write_bytes(content[:length])
        refused(tmp_path / name, tmp_path, f"{name} is truncated or corrupt")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_flipped_bits(tmp_path, kind):
    """Protects from corrupt members that decompress, by their checksums; the zip's member is named."""
    member = ("data/c.bin", bytes(range(256)) * 4)
    if kind == "zip":
        archive = tmp_path / "a.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
            out.writestr(*member)
        content = bytearray(archive.read_bytes())
    else:
        plain = tar_of(tmp_path / "plain.tar", [member], "w:").read_bytes()
        (tmp_path / "plain.tar").unlink()
        archive, content = tmp_path / "a.tar.gz", bytearray(gzip.compress(plain, compresslevel=0))
    content[content.index(bytes(range(100, 150)))] ^= 1
    archive.write_bytes(content)
    refused(archive, tmp_path, "truncated or corrupt.*'data/c.bin'")


def test_damaged_header_of_tar(tmp_path):
    """Protects from a tar file that seems to end at a damaged header: tarfile alone would not notice."""
    content = bytearray(tar_of(tmp_path / "a.tar", GOOD.items(), "w:").read_bytes())
    content[1024 + 10] ^= 1  # in the second member's name, so that its header's checksum is wrong
    (tmp_path / "a.tar").write_bytes(content)
    refused(tmp_path / "a.tar", tmp_path, "truncated or corrupt after byte 1024")


def test_size_in_the_header_is_not_believed(tmp_path):
    """Protects from a zip member that says it is small: what is read is bounded by what it says."""
    archive = zip_of(tmp_path / "a.zip", [("data/liar", bytes(2**20))])
    content = archive.read_bytes()
    archive.write_bytes(content.replace(struct.pack("<L", 2**20), struct.pack("<L", 10)))
    refused(archive, tmp_path, "cannot read member 'data/liar'")


def test_encrypted(tmp_path):
    """Protects from a traceback: an encrypted member is refused by name."""
    archive = zip_of(tmp_path / "a.zip", [("data/secret", b"x" * 50)])
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, tmp_path, "'data/secret' is encrypted")


def test_not_an_archive(tmp_path):
    """Protects from a web page saved in the archive's place, and says when there is none."""
    (tmp_path / "a.zip").write_text("<html>please log in</html>" * 100)
    refused(tmp_path / "a.zip", tmp_path, "a.zip is truncated or corrupt")
    refused(tmp_path / "b.zip", tmp_path, "b.zip does not exist")


def test_full_disk(tmp_path, monkeypatch):
    """Protects from a zip file larger than the free space, before anything is written."""
    import shutil

    archive = zip_of(tmp_path / "a.zip", GOOD.items())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5124))
    refused(archive, tmp_path, "needs 0 MB, the disk has")


def test_leftovers_of_a_killed_run(tmp_path):
    """Protects resuming: what a killed extraction left is removed, and the target is complete."""
    archive = zip_of(tmp_path / "a.zip", GOOD.items())
    (tmp_path / ".target.partial").mkdir()
    (tmp_path / ".target.partial/half").write_bytes(b"h")
    assert contents(extract(archive, tmp_path / "target")) == GOOD
    assert not (tmp_path / ".target.partial").exists()


def test_reader(tmp_path):
    """Protects reading without extraction: same bytes, same refusals, members named."""
    reader = ZipReader(zip_of(tmp_path / "a.zip", [("data/", b""), *GOOD.items()]))
    assert reader.names == list(GOOD)
    assert {name: reader.read(name) for name in reader.names} == GOOD
    with pytest.raises(SimoError, match="no member 'data/none'"):
        reader.read("data/none")
    with pytest.raises(SimoError, match="'../evil' leads out"):
        ZipReader(zip_of(tmp_path / "b.zip", [("../evil", b"")]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip"]
