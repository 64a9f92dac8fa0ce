"""data_scripts.archives: what is read, and what is refused."""

import struct
import zipfile

import pytest

from data_scripts import archives
from data_scripts.archives import ZipReader
from simo.errors import SimoError

GOOD = {"data/a.txt": b"first", "data/deep/b.txt": bytes(range(256)) * 20}


def zip_of(path, members):
    """A zip file of (name, bytes) pairs."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def read(archive):
    """All files of an archive."""
    reader = ZipReader(archive)
    return {name: reader.read(name) for name in reader.names}


def refused(archive, match):
    """Reading fails with this message."""
    with pytest.raises(SimoError, match=match):
        read(archive)


def test_members_are_read(tmp_path):
    """The same bytes under the same names, those of Windows with slashes; nothing is written anywhere."""
    archive = zip_of(tmp_path / "a.zip", [("data/", b""), *GOOD.items(), ("data\\c.txt", b"c")])
    assert read(archive) == GOOD | {"data/c.txt": b"c"}
    assert ZipReader(archive).names == [*GOOD, "data/c.txt"]
    with pytest.raises(SimoError, match="no member 'data/none'"):
        ZipReader(archive).read("data/none")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_limits(tmp_path, monkeypatch):
    """Protects the memory: a large member, and one that expands out of proportion, are not read."""
    archive = zip_of(tmp_path / "a.zip", GOOD.items())
    monkeypatch.setattr(archives, "LARGEST", 5119)
    refused(archive, "the size of 'data/deep/b.txt' in .*a.zip is 5120: expected at most 5119 bytes")
    monkeypatch.setattr(archives, "LARGEST", 2**33)
    bomb = zip_of(tmp_path / "bomb.zip", [*GOOD.items(), ("data/bomb", bytes(2**20))])
    assert len(read(bomb)) == 3
    monkeypatch.setattr(archives, "SPARED", 2**19)
    refused(bomb, "the size of 'data/bomb' in .* is 1048576: expected at most 524288 bytes")


def test_truncated(tmp_path):
    """Protects from downloads that ended early, wherever they did."""
    archive = zip_of(tmp_path / "a.zip", GOOD.items())
    content = archive.read_bytes()
    for length in (1, 100, len(content) // 4, len(content) // 2, len(content) - 1):
        archive.write_bytes(content[:length])
        refused(archive, "a.zip, a zip file, cannot be decoded")


def test_flipped_bits(tmp_path):
    """Protects from corrupt members that decompress, by their checksums; the member is named."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        out.writestr("data/c.bin", bytes(range(256)) * 4)
    content = bytearray(archive.read_bytes())
    content[content.index(bytes(range(100, 150)))] ^= 1
    archive.write_bytes(content)
    refused(archive, "'data/c.bin' in .* cannot be decoded .*CRC")


def test_size_in_the_header_is_not_believed(tmp_path):
    """Protects from a zip member that says it is small: what is read is bounded by what it says."""
    archive = zip_of(tmp_path / "a.zip", [("data/liar", bytes(2**20))])
    content = archive.read_bytes()
    archive.write_bytes(content.replace(struct.pack("<L", 2**20), struct.pack("<L", 10)))
    refused(archive, "'data/liar' in .* cannot be decoded")


def test_encrypted(tmp_path):
    """Protects from a traceback: an encrypted member is refused by name."""
    archive = zip_of(tmp_path / "a.zip", [("data/secret", b"x" * 50)])
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, "'data/secret' in .* cannot be decoded .*encrypted")


def test_not_an_archive(tmp_path):
    """Protects from a web page saved in the archive's place, and says when there is none."""
    (tmp_path / "a.zip").write_text("<html>please log in</html>" * 100)
    refused(tmp_path / "a.zip", "a.zip, a zip file, cannot be decoded .*download it again")
    refused(tmp_path / "b.zip", "b.zip, a zip file, is missing")
