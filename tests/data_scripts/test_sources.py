"""data_scripts.sources: what a profile without data says, and where data are looked for."""

import pytest

from data_scripts.sources import data_folder, missing_data
from simo.errors import SimoError


def test_missing_data_fit_a_screen_and_name_every_way():
    """Whoever starts without data learns in one screen what to put where, and, for NYUv2, how to fetch it."""
    text = missing_data("photos", ["nyuv2"])
    assert len(text.splitlines()) <= 24
    for part in (
        "DATA=folder",
        "folder/nyuv2",
        "pictures",
        "DOWNLOAD=yes",
        "3 GB",
        "data_scripts.nyuv2 --raw",
    ):
        assert part in text
    paper = missing_data("paper", ["cityscapes", "nyuv2", "taskonomy"])
    assert len(paper.splitlines()) <= 24
    assert "DOWNLOAD" not in paper
    assert all(f"folder/{name} " in paper for name in ("cityscapes", "nyuv2", "taskonomy"))


def test_prepared_data_are_used_where_they_are(tmp_path):
    """A folder that is prepared is not prepared again; raw data go into the build; nothing there is named."""
    (tmp_path / "nyuv2").mkdir()
    assert data_folder(tmp_path, "nyuv2", "build/x") == "build/x/data/nyuv2"
    (tmp_path / "nyuv2" / "prepared.json").write_text("{}")
    assert data_folder(tmp_path, "nyuv2", "build/x") == str(tmp_path / "nyuv2")
    assert data_folder(None, "nyuv2", "build/x") == "build/x/data/nyuv2"
    (tmp_path / "nyuv2" / "prepared.json").write_text('{"image_size": [288, 384]}')
    assert data_folder(tmp_path, "nyuv2", "build/x", [288, 384]) == str(tmp_path / "nyuv2")
    with pytest.raises(SimoError, match=r"images of \[288, 384\] .* made for \[126, 168\]: give DATA"):
        data_folder(tmp_path, "nyuv2", "build/x", [126, 168])
    with pytest.raises(SimoError, match="taskonomy does not exist: expected taskonomy there"):
        data_folder(tmp_path, "taskonomy", "build/x")
