"""Numbers in sentences come from records: none that looks like a result is typed by hand."""

import re
from pathlib import Path

import pytest

from simo.files import read_json

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.stem for path in (ROOT / "notebooks").glob("*/*.ipynb"))
# decimals and percentages, unless they are part of a name or an address
RESULT = re.compile(r"(?<![\w./-])[−+-]?\d+[.,]\d+(?![.\d]*/)|(?<![\w.])[−+-]?\d+ ?%")
# definitions and settings, which no record could change
ALLOWED = {
    "introduction": {"100 %"},
    # Δ's definition, its example, TIES' density; arXiv; warm-up
    "deviations": {"100 %", "900 %", "90 %", "20 %", "2504.11268", "5 %", "10 %"},
    "cityscapes": {"2,048"},  # pixels of the images whose disparity is the unit
    "model": {"0.5", "0.406", "0.225", "0.42", "2,380"},  # ImageNet's statistics, Cityscapes' images
    "relationships": {"1.5"},  # the largest λ
    "README": {"3.11", "3.13", "2504.11268", "0.2", "1.0", "4.0"},  # Python, arXiv, example, CC BY
    "miniature": set(),
    "reproduce": {"3.11", "3.13"},
}


def prose_of(name):
    """All markdown of a page: a notebook's cells, or a file."""
    for notebook in (ROOT / "notebooks").glob(f"*/{name}.ipynb"):
        cells = read_json(notebook)["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    path = ROOT / "README.md" if name == "README" else ROOT / "book" / f"{name}.md"
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*PAGES, "README", "miniature", "reproduce"])
def test_no_result_is_typed(name):
    """A number that looks like a result is inserted from records, or is a definition listed here."""
    typed = set(RESULT.findall(prose_of(name))) - ALLOWED.get(name, set())
    assert not typed, f"insert them by glue: {sorted(typed)}"


@pytest.mark.parametrize("name", [*PAGES, "README", "miniature", "reproduce", "photographs"])
def test_no_state_of_the_runs_is_typed(name):
    """What is not run yet, and on how many seeds, is read from records: it would soon be false."""
    assert not re.search(r"\bso far\b|not run yet|not yet run|on one seed", prose_of(name))


@pytest.mark.parametrize("text", ["falls to −83 %", "is 27.5 points", "by 3 %.", "a Δ of -5.4"])
def test_typed_results_are_found(text):
    """The search sees results as people write them, signs and spaces included."""
    assert RESULT.search(text)


@pytest.mark.parametrize("name", ["nyuv2", "cityscapes", "taskonomy"])
def test_inserted_numbers_exist(name):
    """Every number that a page's text asks for is one that the page provides."""
    from report.pages import Page

    cells = read_json(ROOT / "notebooks" / "pages" / f"{name}.ipynb")["cells"]
    captions = [cell["metadata"].get("mystnb", {}).get("figure", {}).get("caption", "") for cell in cells]
    asked = set(re.findall(r"\{glue:text\}`([^`]+)`", "\n".join([prose_of(name), *captions])))
    assert {"title", "lines", "seeds"} <= asked
    provided = {*Page(name, "records/miniature").numbers(), "lines"}
    others = {"nyuv2": ("photos", "large", "lite"), "taskonomy": ("photos", "five")}.get(name, ())
    assert asked <= provided | {f"{other} {key}" for other in others for key in provided}


GLOSSARY = re.findall(
    r"^(\S.*)\n  ", (ROOT / "book" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE
)
# names that nobody can guess; headings, links, roles, code, formulas and tables hold no links to terms
JARGON = ("TA", "TIES", "DPT", "AdaMerging", "TALL-mask", "task vector", "Δ printed", "closed form")
JARGON += ("Average", "Magnitude mask", "distillation", "budget")
UNLINKED = re.compile(
    r"```.*?```|^[ \t]*\|.*?$|^#.*?$|\[[^\]]*\]\([^)]*\)|\{[\w:]+\}`[^`]*`|`[^`\n]*`|\$[^$\n]*\$|<[^>\n]*>",
    re.MULTILINE | re.DOTALL,
)


@pytest.mark.parametrize("name", [*PAGES, "reproduce", "miniature", "photographs", "data"])
def test_terms_are_linked_where_first_used(name):
    """Each link leads to a term of the glossary, none stands twice, and jargon is linked at its first use."""
    prose = prose_of(name)
    linked = re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", prose)
    assert set(linked) <= set(GLOSSARY)
    assert len(linked) == len(set(linked))
    plain = UNLINKED.sub(lambda found: " " * len(found.group()), prose)
    for term in JARGON:
        used = re.search(rf"(?<![\w’'+/-]){term}s?(?![\w-])", plain)
        link = re.search(rf"\{{term\}}`(?:[^`<]*<)?{term}>?`", prose)
        assert not used or (link and link.start() < used.start()), term
