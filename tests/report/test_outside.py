"""report.outside: others' numbers have a source each, and Δ follows from them by the paper's definition."""

import re
from pathlib import Path

import pytest

from report.outside import outside_deltas, outside_table, read_outside, side_by_side, source_line
from report.pages import Page
from simo.files import read_json

ROOT = Path(__file__).resolve().parents[2]
STUDIES = read_outside()


def test_every_number_has_a_source():
    """No number without the repository, commit, file and table where it was read, and no gap in a row."""
    for study in STUDIES.values():
        source = study["source"]
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", source["repository"])
        assert re.fullmatch(r"[0-9a-f]{40}", source["commit"])
        assert source["path"]
        assert source["place"]
        assert f"/{source['repository']}/blob/{source['commit']}/{source['path']})" in source_line(study)
        assert "expert" in study["rows"]
        for values in study["rows"].values():
            assert values.keys() == study["metrics"].keys()
            assert all(isinstance(value, float) and value > 0 for value in values.values())


def test_delta_by_hand():
    """FusionBench: accuracies divide by the expert's, errors are divided; its own experts count."""
    deltas = outside_deltas(STUDIES["fusionbench"])
    assert deltas.task_arithmetic == pytest.approx(100 * (33.6 / 52 + 42.5 / 56.3 + 24.7 / 31.3) / 3 - 100)
    assert deltas.round(1).to_dict() == {"average": -22.2, "task_arithmetic": -27.0, "ties": -28.4}
    # four successes, the second above its expert
    deltas = outside_deltas(STUDIES["mergevla"])
    assert deltas.task_arithmetic == pytest.approx(25 * (1 + 98.8 / 98.6 + 85.4 / 95 + 76.6 / 95) - 100)


def test_table_shows_what_was_printed():
    """Cells are the source's metric and its percentage of the study's expert, who has no Δ."""
    table = outside_table(STUDIES["symerge"])
    assert list(table.loc["Experts"]) == ["52.0 (100.0)", "41.5 (100.0)", "24.2 (100.0)", ""]
    assert list(table.loc["SyMerge"]) == ["49.8 (95.8)", "45.3 (91.6)", "26.2 (92.4)", "-6.8"]


def test_side_by_side_invents_nothing(tmp_path):
    """A method that a study did not measure is an empty cell; data sets other than NYUv2 stay away."""
    ours = Page("nyuv2", ROOT / "records" / "miniature")
    table = side_by_side(STUDIES, [Page("nyuv2", tmp_path), ours])
    paper, fusionbench, symerge, own = table.columns
    assert (fusionbench, symerge) == (STUDIES["fusionbench"]["column"], STUDIES["symerge"]["column"])
    assert table.loc["TA", paper] == "-27.5"
    assert table.loc["TA", own].startswith(f"{ours.frame.printed.loc['task_arithmetic'].mean():+.1f}")
    assert table.loc["TA + heads", fusionbench] == table.loc["SyMerge", paper] == ""
    measured = [len(study["rows"]) - 1 for study in STUDIES.values() if "column" in study]
    assert [(table[name] != "").sum() for name in (fusionbench, symerge)] == measured


def test_page_shows_every_study_and_cites_what_exists():
    """No study lies in the file unseen, and each citation of the page has its entry."""
    cells = read_json(ROOT / "notebooks" / "pages" / "evidence.ipynb")["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert all(f'"{name}"' in text for name in STUDIES)
    entries = set(re.findall(r"@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text("utf-8")))
    cited = set(re.findall(r"\{cite\}`(\w+)`", text))
    assert cited
    assert cited <= entries
