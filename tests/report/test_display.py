"""report.display: every table and figure of the pages says what it shows, and can be linked to."""

import re

import pandas as pd
import pytest

import report.display
from report.display import real_minus, say, show
from report.notebooks import ROOT
from simo.files import read_json

PAGES = sorted((ROOT / "notebooks" / "pages").glob("*.ipynb"))
DRAWS = re.compile(
    r"(?<!readings)\.(deltas|alphas|relationships|pictures|subsets|coefficients)\(|\bmark\(|speed\.ratios\(|\.idea_figure\("
)


def code_cells(path):
    """Source and metadata of a notebook's code cells."""
    cells = [cell for cell in read_json(path)["cells"] if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), cell["metadata"]) for cell in cells]


@pytest.fixture
def shown(monkeypatch):
    """The HTML of what is displayed."""
    seen = []
    monkeypatch.setattr(report.display, "display", lambda thing: seen.append(thing.data))
    return seen


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_figure_has_caption_address_and_message(path):
    """A cell that draws has a caption, an address of its own, and a sentence for who cannot see it."""
    for source, metadata in code_cells(path):
        drawn = [line for line in source.splitlines() if DRAWS.search(line)]
        assert bool(drawn) == ("mystnb" in metadata), source
        if drawn:
            figure, alt = metadata["mystnb"]["figure"], metadata["mystnb"]["image"]["alt"]
            assert figure["name"]
            assert figure["caption"].endswith(".")
            assert alt.endswith(".")
            assert len(alt.split()) >= 10
            # MyST-NB gives every output of the cell the caption: a second one would repeat the address
            assert not re.search(r"show\(|further\(|display\(|\.has\(|scale\(", source)
            assert not re.search(r"^ *for page (?!.*\[:1\])|mark\(.* for ", source, re.MULTILINE)


def test_addresses_of_figures_are_unique():
    """Sphinx has one name for each place of the whole book, not of a page."""
    metadata = [metadata for path in PAGES for _, metadata in code_cells(path) if "mystnb" in metadata]
    names = [own["mystnb"]["figure"]["name"] for own in metadata]
    assert len(names) == len(set(names)) > 25


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_table_has_a_caption(path):
    """Tables of text have a caption and an address; those of code get theirs of `show`."""
    for cell in read_json(path)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and "\n|" in text:
            assert re.findall(r"```\{table\} \S.*\.\n:name: \S+\n\n\|", text), text[:80]


def test_table_says_what_it_shows(shown):
    """Caption, address, a header over the first column, Δ beside the names, real minus signs."""
    columns = [("depth, m", "aErr"), ("Δ_MTL, %", "printed")]
    table = pd.DataFrame(
        [["0.1 (-3)", "-3.2\u00a0±\u00a00.1"]], ["a <b>"], pd.MultiIndex.from_tuples(columns)
    )
    show(table, "What it shows.", "place", "model")
    (html,) = shown
    assert html.startswith('<div id="place" class="results">')
    assert re.search('<caption>.*What it shows.*href="#place".*</caption>', html)
    assert re.findall(r"<t[hd] *>(.*?)</t[hd]>", html) == [
        "model", "Δ<sub>MTL</sub>, %", "depth, m", "&nbsp;", "printed", "aErr",
        "a &lt;b&gt;", "−3.2\u00a0±\u00a00.1", "0.1 (−3)",
    ]  # fmt: skip


def test_floats_and_missing_values(shown):
    """Numbers have a sign and one decimal, what is missing is a dash, an index of two levels has headers."""
    index = pd.MultiIndex.from_tuples([("TA", 0), ("TIES", 1)], names=["model", "seed"])
    show(pd.DataFrame({"Δ": [-1.25, float("nan")]}, index), "Two.", "two", classes="words")
    assert 'class="results pairs words"' in shown[0]
    cells = re.findall(r"<t[hd] *>(.*?)</t[hd]>", shown[0])
    assert cells[:3] == ["model", "Δ", "seed"]
    assert cells[3:] == ["TA", "−1.2", "0", "TIES", "–", "1"]


def test_times_are_called_rough(shown):
    """A column of times says that they are rough, for other work ran beside."""
    show(pd.DataFrame({"seconds to merge": ["3"], "minutes a seed": ["2"], "steps": ["9"]}), "T.", "t", "m")
    assert re.findall("<th *>(.*?)</th>", shown[0])[1:4] == [
        "rough seconds to merge",
        "rough minutes a seed",
        "steps",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-3.2", "−3.2"),
        ("0.5 (-.3), -2", "0.5 (−.3), −2"),
        ("ViT-B/14", "ViT-B/14"),
        ("2026-11-26", "2026-11-26"),
        ("head-3", "head-3"),
        ("–", "–"),
    ],
)
def test_only_minus_signs_become_minus_signs(text, expected):
    """Hyphens of words, dates and names stay."""
    assert real_minus(text) == expected


def test_an_empty_sentence_is_not_displayed(monkeypatch):
    """Where nothing is to be said stood `<IPython.core.display.Markdown object>`."""
    seen = []
    monkeypatch.setattr("report.display.display", lambda thing: seen.append(thing.data))
    say("")
    say("*A sentence.*")
    assert seen == ["*A sentence.*"]
