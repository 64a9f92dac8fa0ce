"""report.overview: the ledger says what the claims' tables say, and the index leads to what exists."""

import re
from fnmatch import fnmatch

import pytest

from report.claims import CLAIMS
from report.notebooks import ROOT, read_parameters
from report.overview import (
    MAIN_CLAIMS,
    RESULTS,
    TITLES,
    VERDICTS,
    _minutes,
    commits_of,
    drawn_by,
    effort,
    kind_of,
    ledger,
    manifest,
    marked,
    results_index,
    verdict_counts,
)
from report.pages import Page
from simo.files import read_json
from simo.tasks import TASKS


@pytest.fixture(scope="module")
def pages():
    """One page a data set, from the committed records."""
    return [Page(name, "records/miniature") for name in TASKS]


def test_ledger_has_every_claim_once(pages):
    """Each claim is a row, empty only where it is not about a data set."""
    table = ledger(pages)
    assert table.index.tolist() == [claim.name for claim in CLAIMS]
    for claim in CLAIMS:
        for dataset in TASKS:
            title = TITLES[dataset]
            about = not claim.datasets or dataset in claim.datasets
            assert bool(table.loc[claim.name, title]) == about, (claim.name, title)


def test_ledger_agrees_with_the_pages(pages):
    """Verdict and numbers are those of the page's own table, the paper's verdict is by the same criterion."""
    table, judged = ledger(pages), pages[0].judge()
    row = judged.loc["ties-heads-reach-joint"]
    text = table.loc["ties-heads-reach-joint", "NYUv2"]
    link = f'<a class="verdict fails" href="nyuv2.html#nyuv2-miniature-claims">{row.verdict}</a>'
    assert text.startswith(f"{link}: {row['seed 0']:.1f}, ")
    assert text.endswith('<br>paper: <span class="verdict fails">fails</span> -3.3')
    assert table.loc["ties-heads-reach-joint", "claim"].endswith(" <em>(points of Δ)</em>")
    assert "paper" not in table.loc["experts-converged-heads", "NYUv2"]


def test_ledger_shows_the_interval_of_a_close_verdict(pages):
    """Where seeds do not settle a claim, the ledger has what its page has, and else nothing."""
    table, close = ledger(pages)["NYUv2"], pages[0].judge().close
    assert 0 < (close != "").sum() < len(close)
    for name, interval in close.items():
        assert (f"<br>close: {interval}" in table[name]) == (interval != "")


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        ("holds", "holds"),
        ("holds, 1 not applicable", "holds"),
        ("holds on 2 of 3 seeds", "mixed"),
        ("holds on 1 of 2 seeds, 1 not applicable", "mixed"),
        ("not applicable", "not applicable"),
    ],
)
def test_a_verdict_is_of_one_kind(verdict, kind):
    """Colour and sign follow the verdict, and every kind has a sign of its own in the style sheet."""
    assert kind_of(verdict) == kind
    assert marked(verdict) == f'<span class="verdict {kind.replace(" ", "-")}">{verdict}</span>'


def test_every_kind_of_verdict_has_its_own_sign():
    """Without colour, verdicts differ; of the kinds, one has the default sign."""
    style = (ROOT / "book" / "_static" / "simo.css").read_text(encoding="utf-8")
    signs = dict(re.findall(r'\.verdict(?:\.([a-z-]+))?::before \{ content: "(.)\\00a0"', style))
    assert set(signs) - {""} == {kind.replace(" ", "-") for kind in VERDICTS} - {"not-applicable"}
    assert len(set(signs.values())) == len(VERDICTS)


def test_effort_is_what_parameters_say(pages):
    """Images and steps beside joint training's, from the parameters; the paper's from its Table 4."""
    table = effort(pages)
    for page in pages:
        own = read_parameters(ROOT / "notebooks" / "params" / "miniature" / f"{page.study}.yaml")
        joint = own["probe_steps"] + own["joint_steps"]
        steps = [len(page.tasks) * own["realign_steps"], own["realign_steps"]]
        expected = ["32 %", *(f"{100 * each / joint:.0f} %" for each in steps)]  # 256 of 800 images
        assert table[TITLES[page.study], "miniature", "linear heads"].tolist() == expected
    assert table["Taskonomy", "paper", "DPT heads"].tolist() == ["25 %", "17 %", "13 %"]


def test_ledger_tells_two_sizes_of_a_study_apart(pages, tmp_path):
    """Photographs and miniature of NYUv2 have a column each, and none hides the other."""
    table = ledger([Page("nyuv2", tmp_path / "photos"), *pages])
    assert set(table["NYUv2, photographs"]) <= {marked("not run"), ""}
    assert (table["NYUv2, miniature"] == ledger(pages)["NYUv2"]).all()


def test_counts_are_those_of_the_ledger(pages):
    """The summary counts every claim about a data set once, each under its own verdict."""
    counts = verdict_counts(pages)
    assert list(counts) == list(VERDICTS)
    for page in pages:
        verdicts = page.judge().verdict
        own = counts.loc[TITLES[page.study]]
        assert own.sum() == len(verdicts)
        assert own[["holds", "fails", "set by us"]].tolist() == [
            (verdicts.str.split(",").str[0] == kind).sum() for kind in ("holds", "fails", "set by us")
        ]
        assert own.mixed == verdicts.str.startswith("holds on").sum()
    dpt = Page("cityscapes_dpt", "records/miniature")
    assert verdict_counts([dpt]).loc[TITLES["cityscapes_dpt"], "not applicable"] == 8
    assert set(MAIN_CLAIMS) <= {claim.name for claim in CLAIMS}


def test_ledger_without_records_is_not_run(tmp_path):
    """A scale that was not run has no verdict."""
    table = ledger([Page(name, tmp_path) for name in TASKS])
    assert set(table.loc["ties-collapses", [TITLES[name] for name in TASKS]]) == {marked("not run")}


def test_made_up_verdicts_are_marked(pages, monkeypatch):
    """A fixture's verdicts and times are no results, and say so."""
    monkeypatch.setattr(pages[0], "fixture", True)
    assert "[fixture]" in ledger(pages).loc["ties-collapses", "NYUv2"]
    assert results_index(pages).loc["Table 1", "minutes a seed"].endswith("[fixture]")


def test_index_leads_to_what_exists(pages):
    """Every table and figure has its page, notebooks, parameter file and records."""
    table = results_index(pages)
    assert table.index.tolist() == [
        *(f"Table {n}" for n in (1, 2, 3, 4)),
        *(f"Figure {n}" for n in range(1, 7)),
    ]
    contents = (ROOT / "_toc.yml").read_text()
    for result, (dataset, patterns) in RESULTS.items():
        assert (ROOT / table.loc[result, "parameters"]).is_file()
        assert table.loc[result, "minutes a seed"].removeprefix("over ").startswith(tuple("123456789"))
        assert f"notebooks/pages/{dataset}\n" in contents
        experiments = [record["experiment"] for record in Page(dataset, "records/miniature").records]
        for pattern in patterns:
            assert any(fnmatch(name, pattern) for name in experiments), (result, pattern)


def test_index_of_photographs_names_records_that_are_there():
    """Not all experiments were run on them: of each pattern that is named, there is a record."""
    pages = [Page(name, "records/photos") for name in ("nyuv2", "taskonomy_photos")]
    table = results_index(pages)
    for page, result in zip(pages, ("Table 1", "Table 3"), strict=True):
        named = table.loc[result, "records"].split(": ")[1].split(", ")
        experiments = {record["experiment"] for record in page.records}
        assert len(named) > 3
        assert all(any(fnmatch(name, pattern) for name in experiments) for pattern in named)
    assert "masks" not in table.loc["Table 3", "records"]


def test_figure_without_its_experiment_was_not_run():
    """Experts alone draw no figure; a table of them has rows that were not run."""
    page = Page("nyuv2", "records/miniature")
    page.records = [each for each in page.records if each["experiment"].startswith("expert_")]
    table = results_index([page])
    assert (table["minutes a seed"] == "not run").tolist() == [name != "Table 1" for name in table.index]
    assert table.loc["Table 1", "records"] == "miniature/nyuv2/seed*/: expert_*"


def test_every_study_has_its_claims_on_the_page_that_verdicts_lead_to():
    """Of every size but the paper's: a page has this study's claims, drawn from the folder of that size."""
    for path in (ROOT / "notebooks" / "params").glob("*/*.yaml"):
        profile, study = path.parent.name, path.stem
        # of LoRA experts there are these and their wider field, which no claim is about
        if study in ("raw", "data", "nyuv2_lora") or profile == "paper":
            continue
        cells = read_json(ROOT / f"notebooks/pages/{drawn_by(profile, study)}.ipynb")["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        folder = f"{profile}_folder" if profile.startswith("photos") else "records_folder"
        name = re.search(rf'(\w+) = Page\("{study}", {folder}', code)[1]
        assert f"{name}.claims()" in code, path


def test_index_says_what_was_not_run(tmp_path):
    """Times are measured or missing."""
    table = results_index([Page(name, tmp_path) for name in TASKS])
    assert set(table["minutes a seed"]) == {"not run"}


def made(commit, started, seconds, clean=True, resumed=False):
    """A record of nothing, with what it says of how it came about."""
    where = {"device": "a machine", "versions": {"python": "3.11.7", "torch": "2.13.0"}}
    when = {"started": started, "seconds": seconds, "resumed": resumed}
    return {"provenance": {"commit": commit, "clean": clean, **where, **when}}


def test_the_manifest_counts_every_record_once():
    """A row a commit: records and hours add up, and a run that goes on past midnight ends the day after."""
    first = [
        made("a" * 40, "2026-11-23T23:00:00+00:00", 7200),
        made("a" * 40, "2026-11-23T08:00:00+00:00", 1800),
    ]
    later = [made("b" * 40, "2026-11-25T08:00:00+00:00", 360, clean=False, resumed=True)]
    table = manifest({"records/some": first + later, "records/others": later})
    assert table["records of"].tolist() == ["records/some", "records/some", "records/others"]
    assert table.records.tolist() == [2, 1, 1]
    assert table.commit.tolist() == ["aaaaaaaa", "bbbbbbbb+", "bbbbbbbb+"]
    assert table.hours.tolist() == ["2.5", "over 0.1", "over 0.1"]
    assert table[["began", "ended"]].to_numpy().tolist()[0] == ["2026-11-23", "2026-11-24"]
    assert set(table.versions) == {"python 3.11.7, torch 2.13.0"}


def test_commits_are_those_that_a_reader_can_have():
    """Each is named once; none is, if code was changed since or no commit is known."""
    of = {name: made(commit, "", 0, clean) for name, commit, clean in
          (("a", "a", True), ("b", "b", True), ("changed", "a", False), ("none", None, None))}  # fmt: skip
    assert commits_of([of["a"], of["a"]]) == {"a"}
    assert commits_of([of["a"], of["b"], of["a"]]) == {"a", "b"}
    for others in (["a", "changed"], ["changed"], ["none"], ["a", "none"], []):
        assert commits_of([of[name] for name in others]) == set(), others


def test_minutes_are_those_of_a_seed_that_has_everything():
    """A seed or device that lacks an experiment makes it no shorter (2 minutes, and the mean of 1 and 3)."""

    def record(experiment, seed, seconds, device="a, 1 thread"):
        return {"experiment": experiment, "seed": seed, "provenance": {"seconds": seconds, "device": device}}

    records = [record("joint", 0, 60.0), record("joint", 1, 180.0), record("field", 0, 120.0)]
    assert _minutes(records) == "4.0 on a, 1 thread"
    records += [record("joint", 2, 6.0, "a GPU")]
    assert _minutes(records) == "4.0 on a, 1 thread"
    assert _minutes([*records, record("field", 2, 6.0, "a GPU")]) == "4.0 on a, 1 thread; 0.2 on a GPU"
    assert _minutes(records[1:2] + records[3:]) == "3.0 on a, 1 thread; 0.1 on a GPU"
    neither = [record("joint", 0, 60.0), record("field", 1, 6.0, "a GPU")]
    assert _minutes(neither) == "1.0 on a, 1 thread; 0.1 on a GPU", "no device ran all: each says what it ran"
