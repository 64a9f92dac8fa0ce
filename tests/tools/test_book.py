"""Assembling the book, and moving records."""

import json

import pytest

from report.notebooks import ROOT
from simo.errors import SimoError
from tools import book


@pytest.fixture
def pages(tmp_path):
    """A folder of drawn pages that each hold one parameter cell as papermill injects it."""
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {"tags": ["injected-parameters"]},
        "source": ["x = 1"],
    }
    cell |= {"outputs": [], "execution_count": 1}
    for page in book.pages_of(book.read_toc()):
        if page.startswith("notebooks/pages/"):
            name = page.removeprefix("notebooks/pages/")
            (tmp_path / f"{name}.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}}))
    return tmp_path


def test_pages_of_lists_root_and_chapters():
    """Every document of the table of contents is checked, the root included."""
    toc = {
        "root": "a",
        "parts": [{"chapters": [{"file": "b"}, {"file": "c/d"}]}, {"chapters": [{"file": "e"}]}],
    }
    assert book.pages_of(toc) == ["a", "b", "c/d", "e"]


def test_computing_notebook_that_was_not_run_appears_as_written(tmp_path, pages):
    """The book of `make redraw` shows the code of computing notebooks, and never half of a page."""
    book.assemble(tmp_path / "source", pages, executed=None)
    shown = json.loads((tmp_path / "source/notebooks/compute/expert.ipynb").read_text())
    written = json.loads((ROOT / "notebooks/compute/expert.ipynb").read_text())
    assert shown == written


def test_executed_notebook_is_shown_where_there_is_one(tmp_path, pages):
    """An executed run replaces the source, and its injected parameters are folded away."""
    run = json.loads((pages / "nyuv2.ipynb").read_text())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/expert_segmentation.ipynb").write_text(json.dumps(run))
    book.assemble(tmp_path / "source", pages, tmp_path / "runs")
    cells = json.loads((tmp_path / "source/notebooks/compute/expert.ipynb").read_text())["cells"]
    assert cells[0]["metadata"]["tags"] == ["injected-parameters", "hide-input"]
    cells = json.loads((tmp_path / "source/notebooks/pages/nyuv2.ipynb").read_text())["cells"]
    assert cells[0]["metadata"]["tags"] == ["injected-parameters", "remove-cell"]


@pytest.mark.parametrize("fixture", [True, False])
def test_notebook_executed_on_made_up_data_says_so(tmp_path, pages, fixture):
    """Metrics that a computing notebook prints in a rehearsal are no results, and are marked as such."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared.json").write_text(json.dumps({"fixture": fixture}))
    run = json.loads((ROOT / "notebooks/compute/expert.ipynb").read_text())
    run["metadata"]["papermill"] = {"parameters": {"data": str(tmp_path / "data")}}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/expert_segmentation.ipynb").write_text(json.dumps(run))
    book.assemble(tmp_path / "source", pages, tmp_path / "runs")
    cells = json.loads((tmp_path / "source/notebooks/compute/expert.ipynb").read_text())["cells"]
    assert ("No number below is a result" in "".join(cells[1]["source"])) == fixture
    assert len(cells) == len(run["cells"]) + fixture


def test_missing_drawn_page_is_an_error(tmp_path, pages):
    """A page that was not drawn cannot silently fall back to its source without figures."""
    (pages / "nyuv2.ipynb").unlink()
    with pytest.raises(SimoError, match=r"nyuv2\.ipynb does not exist"):
        book.assemble(tmp_path / "source", pages, executed=None)


def test_records_are_copied_but_pictures_of_seed_0_only(tmp_path):
    """Committed records are the JSON of all seeds; pictures, which are large, of one, if rendered."""
    computed = (("nyuv2", 0, "rendered"), ("nyuv2", 1, "rendered"), ("photos", 0, "pictures"))
    for study, seed, source in computed:
        folder = tmp_path / "computed" / study / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "qualitative.json").write_text(json.dumps({"provenance": {"source": source}}))
        (folder / "qualitative.npz").write_text("{}")
    book.copy_records(tmp_path / "computed", tmp_path / "committed")
    copied = sorted(
        str(path.relative_to(tmp_path / "committed")) for path in tmp_path.glob("committed/**/*.*")
    )
    own = ["nyuv2/seed0/qualitative.json", "nyuv2/seed0/qualitative.npz", "nyuv2/seed1/qualitative.json"]
    assert copied == [*own, "photos/seed0/qualitative.json"]
