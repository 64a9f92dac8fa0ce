"""Assembling the book, and moving records."""

import json
import re
import shutil
import zipfile

import pandas as pd
import pytest
import yaml

import simo
from report.notebooks import ROOT, notebook_code
from report.pages import Page
from simo.errors import SimoError
from tools import book, supplements


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
    """The book of `make redraw` shows the code of computing notebooks, says so, and never half of a page."""
    book.assemble(tmp_path / "source", pages, executed=None)
    shown = json.loads((tmp_path / "source/notebooks/compute/expert.ipynb").read_text())
    written = json.loads((ROOT / "notebooks/compute/expert.ipynb").read_text())
    note = shown["cells"].pop(1)
    assert shown == written
    assert "Not run in this build" in "".join(note["source"])
    assert "[NYUv2](../pages/nyuv2.ipynb), [Cityscapes](../pages/cityscapes.ipynb)" in "".join(note["source"])


@pytest.mark.parametrize(("notebook", "pages"), supplements.SHOWN_ON.items())
def test_results_of_a_notebook_are_where_its_note_leads(notebook, pages):
    """The page named reads the notebook's record, or, for Figure 1, draws it."""
    for page in pages:
        code = "\n".join(notebook_code(ROOT / "notebooks/pages" / f"{page}.ipynb"))
        assert f'"{notebook}"' in code or f".{notebook}()" in code


def test_parameters_of_a_run_are_shown_once(tmp_path, pages):
    """The values of the source, which a run replaced, do not stand beside its own."""
    run = json.loads((ROOT / "notebooks/compute/expert.ipynb").read_text())
    injected = {"cell_type": "code", "id": "i", "metadata": {"tags": ["injected-parameters"]}, "source": []}
    run["cells"].insert(2, injected | {"outputs": [], "execution_count": 1})
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/expert_segmentation.ipynb").write_text(json.dumps(run))
    book.assemble(tmp_path / "source", pages, tmp_path / "runs")
    cells = json.loads((tmp_path / "source/notebooks/compute/expert.ipynb").read_text())["cells"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    assert [own for own in tags if any("parameters" in tag for tag in own)] == [
        ["parameters", "hide-input", "remove-cell"],
        ["injected-parameters", "hide-input"],
    ]


def test_the_data_of_a_page_are_one_click_away(tmp_path, pages):
    """Under a data set's page: its own scores, all seeds, and the records; under others those of all."""
    book.assemble(tmp_path / "source", pages, executed=None)
    source = tmp_path / "source"
    text = "".join(
        json.loads((source / "notebooks/pages/cityscapes.ipynb").read_text())["cells"][-1]["source"]
    )
    assert "{download}`scores <../../data/miniature-cityscapes.csv>`" in text
    assert "{download}`records <../../data/miniature-cityscapes.zip>`" in text
    assert text.count("{download}") == 2
    variants = str(json.loads((source / "notebooks/pages/nyuv2_variants.ipynb").read_text())["cells"][-1])
    assert set(re.findall(r"data/([^>]*).csv", variants)) == {"photos_gpu-nyuv2", "photos-nyuv2_lite0"}
    table = pd.read_csv(source / "data/miniature-cityscapes.csv", index_col=["model", "seed"])
    page = Page("cityscapes", "records/miniature")
    assert table.printed.to_dict() == pytest.approx(page.frame.printed.to_dict())
    with zipfile.ZipFile(source / "data/miniature-cityscapes.zip") as archive:
        names = archive.namelist()
    assert len(names) == len(page.records)
    assert all(name.startswith("cityscapes/seed") and name.endswith(".json") for name in names)
    claims = "".join(json.loads((source / "notebooks/pages/claims.ipynb").read_text())["cells"][-1]["source"])
    assert {"miniature-nyuv2.csv", "miniature-taskonomy.csv", "photos-nyuv2.csv"} <= {
        word.strip("<>`,").split("/")[-1] for word in claims.split()
    }
    model = "".join(json.loads((source / "notebooks/pages/model.ipynb").read_text())["cells"][-1]["source"])
    assert "{download}" not in model
    assert "_sources/notebooks/pages/model.ipynb" in model


def test_data_of_a_page_hold_what_it_draws(tmp_path):
    """No controls of before their expert was trained anew, and no study that was only begun."""
    study = tmp_path / "records" / "miniature" / "nyuv2"
    shutil.copytree(ROOT / "records" / "miniature" / "nyuv2" / "seed0", study / "seed0")
    outdated = ["control", "control_train"]
    for name in outdated:
        path = study / "seed0" / f"{name}.json"
        record = json.loads(path.read_text())
        record["provenance"]["started"] = "2000-01-01T00:00:00+00:00"
        path.write_text(json.dumps(record))
    begun = study.with_name("cityscapes") / "seed0"  # the first step of a build of Cityscapes alone
    begun.mkdir(parents=True)
    shutil.copy(ROOT / "records/miniature/cityscapes/seed0/expert_segmentation.json", begun)
    cell = supplements.data_cell("results", {"records_folder": str(study.parent)}, tmp_path)
    assert "cityscapes" not in "".join(cell["source"])
    table = pd.read_csv(tmp_path / "data" / "miniature-nyuv2.csv")
    assert not table.model.str.startswith("expert+").any()
    with zipfile.ZipFile(tmp_path / "data" / "miniature-nyuv2.zip") as archive:
        names = archive.namelist()
    assert not {f"nyuv2/seed0/{name}.json" for name in outdated} & set(names)
    assert "nyuv2/seed0/joint.json" in names


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


def test_a_sentence_is_no_figure(tmp_path, pages):
    """What was not run says so in words: they get no caption, and no number of a figure."""
    figure = {"mystnb": {"figure": {"name": "f", "caption": "A figure."}}}
    cells = [
        {"cell_type": "code", "metadata": dict(figure), "outputs": [{"data": {kind: ""}}], "source": []}
        for kind in ("text/markdown", "image/svg+xml")
    ]
    (pages / "nyuv2.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}))
    book.assemble(tmp_path / "source", pages, executed=None)
    said, drawn, _ = json.loads((tmp_path / "source/notebooks/pages/nyuv2.ipynb").read_text())["cells"]
    assert "mystnb" not in said["metadata"]
    assert drawn["metadata"] == figure


def test_the_repositorys_address_brings_its_buttons():
    """One line of CITATION.cff: without it no button and a plain word, with it all that need it."""
    for address, kinds in {
        None: set(),
        "https://github.com/owner/name": {"binderhub_url", "colab_url"},
        "https://gitlab.com/owner/name": {"binderhub_url"},
    }.items():
        cited = yaml.safe_load((book.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
        config = book.configuration(cited | {"repository-code": address})
        said = config["parse"]["myst_substitutions"]["repository"]
        assert ("no public address" in said) == (address is None)
        assert f"version = {{{simo.__version__}}}" in said  # of the entry to cite
        assert (f"git clone --depth 1 {address}" in said) == (address is not None)
        options = config["sphinx"]["config"]["html_theme_options"]
        assert options.get("repository_url") == address
        assert set(options.get("launch_buttons", {})) - {"notebook_interface"} == kinds
        for name in ("use_repository_button", "use_issues_button"):
            assert options.get(name, False) == (address is not None)


def test_missing_drawn_page_is_an_error(tmp_path, pages):
    """A page that was not drawn cannot silently fall back to its source without figures."""
    (pages / "nyuv2.ipynb").unlink()
    with pytest.raises(SimoError, match=r"nyuv2\.ipynb \(JSON\) is missing"):
        book.assemble(tmp_path / "source", pages, executed=None)


def test_a_page_that_was_removed_does_not_stay(tmp_path, pages, monkeypatch):
    """In a folder that is built again nobody finds a page that the book has no longer; all others stay."""
    listed = {f"{page}.html" for page in book.pages_of(book.read_toc())}

    def sphinx(folder, builder):
        for name in [*listed, "notebooks/pages/old.html", "book/old.html", "search.html"]:
            path = folder / "_build" / builder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    monkeypatch.setattr(book, "run_sphinx", sphinx)
    (tmp_path / "pages").symlink_to(pages)
    book.build(tmp_path, executed=None)
    html = tmp_path / "_build" / "html"
    assert {str(path.relative_to(html)) for path in html.rglob("*.html")} == listed | {"search.html"}


def test_records_are_copied_but_pictures_of_seed_0_only(tmp_path):
    """Committed are the JSON of this build's seeds and the pictures, which are large, of one, if rendered."""
    computed = (("nyuv2", 0, "rendered"), ("nyuv2", 1, "rendered"), ("photos", 0, "pictures"))
    computed += (("nyuv2", 7, "rendered"),)  # of another run
    for study, seed, source in computed:
        folder = tmp_path / "computed" / study / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "qualitative.json").write_text(json.dumps({"provenance": {"source": source}}))
        (folder / "qualitative.npz").write_text("{}")
    (folder.parent / "seed0" / ".joint.4711.json").touch()  # of a run that was killed
    book.copy_records(
        tmp_path / "computed", tmp_path / "committed", ["nyuv2/seed0", "nyuv2/seed1", "photos/seed0"]
    )
    copied = sorted(
        str(path.relative_to(tmp_path / "committed")) for path in tmp_path.glob("committed/**/*.*")
    )
    own = ["nyuv2/seed0/qualitative.json", "nyuv2/seed0/qualitative.npz", "nyuv2/seed1/qualitative.json"]
    assert copied == [*own, "photos/seed0/qualitative.json"]
