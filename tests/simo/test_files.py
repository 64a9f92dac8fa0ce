"""simo.files: a crash leaves the old file or the new one."""

import json

import pytest

from simo.errors import SimoError
from simo.files import atomic_path, read_json, write_json


def test_file_appears_only_when_the_block_ends(tmp_path):
    """Protects readers from a file that is still being written."""
    path = tmp_path / "new folder" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert (temporary.parent, temporary.suffix) == (path.parent, ".txt")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_crash_leaves_the_old_file(tmp_path, error):
    """Protects what was there, and leaves no rubbish, whatever ends the block."""
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error("crash")

    with pytest.raises(SimoError if error is OSError else error):
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
    with pytest.raises(SimoError, match="a.json does not exist"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(SimoError, match="a.json is not JSON"):
        read_json(tmp_path / "a.json")
