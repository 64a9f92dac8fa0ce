"""data_scripts.archives: what is refused."""

import re
import struct
import zipfile

import pytest

from data_scripts.archives import Limits, ZipReader
from simo.errors import SimoError

GOOD = {"data/a.txt": b"first", "data/deep/b.txt": bytes(range(256)) * 20}


def zip_of(path, members, **flags):
    """A zip file of (name or ZipInfo, bytes) pairs."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content, **flags)
    return path


def unix(name, mode):
    """The header of a zip member with a Unix file type."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def read(archive, **limits):
    """All files of an archive."""
    reader = ZipReader(archive, Limits(**limits))
    return {name: reader.read(name) for name in reader.names}


def refused(archive, match, **limits):
    """Reading fails with this message."""
    with pytest.raises(SimoError, match=match):
        read(archive, **limits)


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
@pytest.mark.parametrize("name", NAMES)
def test_dangerous_names(tmp_path, name):
    """Protects whoever writes members to a folder, and files of the archive from each other."""
    archive = zip_of(tmp_path / "a.zip", [*GOOD.items(), (name, b"evil")])
    refused(archive, f"member {re.escape(repr(name))} .*{NAMES[name]}")


@pytest.mark.parametrize(
    ("mode", "what"), [(0o120777, "is a link"), (0o020600, "device"), (0o010600, "device")]
)
def test_special_members_of_zip(tmp_path, mode, what):
    """Protects from links and devices in zip files."""
    archive = zip_of(tmp_path / "a.zip", [*GOOD.items(), (unix("data/odd", mode), b"../../a")])
    refused(archive, f"member 'data/odd' .*{what}")


def test_limits(tmp_path):
    """Protects the memory: one large member, many members, and members that expand out of proportion."""
    archive = zip_of(tmp_path / "a.zip", GOOD.items())
    refused(archive, "'data/deep/b.txt' has 5120 bytes, more than the limit of 5119", member=5119)
    refused(archive, "'data/deep/b.txt' makes more than 5124 bytes in all", total=5124)
    assert read(archive, member=5120, total=5125) == GOOD
    bomb = zip_of(tmp_path / "bomb.zip", [*GOOD.items(), ("data/bomb", bytes(2**20))])
    refused(bomb, "'data/bomb' expands .* over 200 times", spared=2**19)
    assert len(read(bomb, spared=2**21)) == 3


def test_many_copies_of_one_member(tmp_path):
    """Protects from archives of many members that together expand out of proportion."""
    archive = zip_of(tmp_path / "a.zip", [(f"data/{i}", bytes(2**16)) for i in range(40)])
    refused(archive, "expands", spared=2**17)


def test_truncated(tmp_path):
    """Protects from downloads that ended early, wherever they did."""
    archive = zip_of(tmp_path / "a.zip", GOOD.items())
    content = archive.read_bytes()
    for length in (1, 100, len(content) // 4, len(content) // 2, len(content) - 1):
        archive.write_bytes(content[:length])
        refused(archive, "a.zip is truncated or corrupt")


def test_flipped_bits(tmp_path):
    """Protects from corrupt members that decompress, by their checksums; the member is named."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        out.writestr("data/c.bin", bytes(range(256)) * 4)
    content = bytearray(archive.read_bytes())
    content[content.index(bytes(range(100, 150)))] ^= 1
    archive.write_bytes(content)
    refused(archive, "truncated or corrupt.*'data/c.bin'")


def test_size_in_the_header_is_not_believed(tmp_path):
    """Protects from a zip member that says it is small: what is read is bounded by what it says."""
    archive = zip_of(tmp_path / "a.zip", [("data/liar", bytes(2**20))])
    content = archive.read_bytes()
    archive.write_bytes(content.replace(struct.pack("<L", 2**20), struct.pack("<L", 10)))
    refused(archive, "cannot read member 'data/liar'")


def test_encrypted(tmp_path):
    """Protects from a traceback: an encrypted member is refused by name."""
    archive = zip_of(tmp_path / "a.zip", [("data/secret", b"x" * 50)])
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, "'data/secret' is encrypted")


def test_not_an_archive(tmp_path):
    """Protects from a web page saved in the archive's place, and says when there is none."""
    (tmp_path / "a.zip").write_text("<html>please log in</html>" * 100)
    refused(tmp_path / "a.zip", "a.zip is truncated or corrupt")
    refused(tmp_path / "b.zip", "b.zip does not exist")


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
