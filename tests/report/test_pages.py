"""report.pages: what a page shows, and that made-up numbers and missing results say what they are."""

import copy
import re

import matplotlib.pyplot as plt
import pytest
from stories import frame_of

import report.display
from report import pages
from report.notebooks import ROOT
from report.overview import overview
from report.pages import FIXTURE, Page, mark
from report.records import load_records
from simo.files import write_json

COMMITTED = ROOT / "records" / "miniature"


METRICS = {"segmentation": 10.0, "depth": 1.0, "normals": 40.0}


@pytest.fixture
def shown(monkeypatch):
    """Everything that a page displays, as text."""
    seen = []
    for module in (pages, report.display):
        monkeypatch.setattr(module, "display", lambda thing: seen.append(thing.data))
    return seen


@pytest.fixture(scope="module")
def fixture_records(tmp_path_factory):
    """Seed 0 of the committed NYUv2 records, said to come from made-up data."""
    folder = tmp_path_factory.mktemp("records")
    for record in load_records(COMMITTED / "nyuv2" / "seed0"):
        record = copy.deepcopy(record)
        record["provenance"]["fixture"] = True
        write_json(folder / "nyuv2" / "seed0" / f"{record['experiment']}.json", record)
    return folder


def test_every_row_of_a_fixture_is_marked(fixture_records, shown):
    """Protects readers from made-up numbers: table rows, numbers in the text and the page say so."""
    page = Page("nyuv2", fixture_records)
    page.scale()
    assert "None of them is a result" in shown.pop()
    for display in (page.table, page.controls, page.paper_beside_ours, page.claims):
        shown.clear()
        display()
        table = shown[0]  # what was not run may be said below
        body = table.split("<tbody>")[1]
        assert body.count(f"[{FIXTURE}]") == body.count("<tr") > 0
    Page("nyuv2", COMMITTED).paper_beside_ours(page)  # made-up numbers beside real ones: the column says so
    assert f"[{FIXTURE}]" in shown.pop().split("<tbody>")[0]
    numbers = page.numbers()
    assert all(FIXTURE in numbers[f"delta {model}"] for model in page.models)
    figures, real = [plt.figure() for _ in range(3)], Page("nyuv2", COMMITTED)
    for figure, shown_by in zip(figures, ([page], [real], [real, page]), strict=True):
        mark(figure, *shown_by)
    marks = [[text.get_text() for text in figure.texts] for figure in figures]
    assert marks == [["FIXTURE: no result"], [], ["FIXTURE: no result"]]
    plt.close("all")


def test_figures_of_several_pages_are_marked_for_each(fixture_records):
    """A figure of photographs that has a made-up miniature's lines, too, is no result as a whole."""
    page, real = Page("nyuv2", fixture_records), Page("nyuv2", COMMITTED)
    for first, second, marks in ((real, page, 1), (page, real, 1), (real, real, 0)):
        first.relationships(second)
        assert len(plt.gcf().texts) == marks
        plt.close("all")


def test_committed_records_are_not_marked(shown):
    """The mark is for fixtures only."""
    page = Page("nyuv2", COMMITTED)
    page.scale()
    page.table()
    assert not any(FIXTURE in text for text in shown)
    assert not any(FIXTURE in text for text in page.numbers().values())


def test_page_without_records_says_not_run(tmp_path, shown):
    """What was not run says so, in each table and figure and in the text's numbers, instead of failing."""
    page = Page("taskonomy", tmp_path)
    for name in ("scale", "table", "controls", "paper_beside_ours", "claims", "deltas", "alphas"):
        getattr(page, name)()
        assert "Not run" in shown.pop()
    for name in ("relationships", "pictures"):
        getattr(page, name)()
        assert "Not run" in shown.pop()
    assert page.numbers()["delta ties"] == "not run"
    assert overview([page]).loc["TA"].tolist() == ["-83.3", "not run"]


def test_what_was_not_run_is_said_once(tmp_path, shown):
    """Not a line a data set: one names them all, and those that were run go on."""
    found = [Page(name, COMMITTED) for name in ("nyuv2", "cityscapes")]
    others = [Page(name, tmp_path) for name in ("cityscapes_dpt", "taskonomy")]
    assert pages.having([*found, *others], "masks") == found
    assert shown == ["*Not run at this scale: masks on Cityscapes, DPT heads, Taskonomy.*"]


def test_numbers_are_those_of_the_table(shown):
    """The numbers in the text are the means that the table shows."""
    page = Page("nyuv2", COMMITTED)
    page.table()
    for model in ("joint", "task_arithmetic", "ties+heads"):
        number = page.numbers()[f"delta {model}"]
        assert f">{number}\u00a0±" in shown[0], "both have a real minus sign"
    records = load_records(COMMITTED / "nyuv2")
    assert page.numbers()["seeds"] == str(len({record["seed"] for record in records}))


def test_numbers_by_hand(tmp_path):
    """Shares of seeds that merged, the best α's mean score, and the largest spread of a realigned model."""
    page = Page("nyuv2", tmp_path)
    page.frame = frame_of(
        **{"task_arithmetic": [0.6, 0.5, 0.6], "task_arithmetic+heads": [0.9, 0.75, 0.9]},
        **{"task_arithmetic+representation": [0.9, 0.9, 0.95], "expert+heads": [0.5, 1.0, 1.5]},
    )
    page.records = [
        {
            "experiment": "merge_task_arithmetic",
            "seed": seed,
            "details": {"alpha": alpha, "scan": [{"score": 0.2}, {"score": score}]},
        }
        for seed, (alpha, score) in enumerate([(0.3, 0.5), (0.0, 0.6), (0.1, 0.7)])
    ]
    page.seeds = 3
    numbers = page.numbers()
    assert [numbers["recovered heads"], numbers["recovered representation"]] == ["75", "81"]  # not seed 1's
    assert numbers["best score"] == "60"
    assert numbers["largest spread"] == "3.5"  # of -10 and -5; not seed 1's, and of no control


@pytest.mark.parametrize(
    ("folder", "study", "said"),
    [
        (COMMITTED, "nyuv2", " Of 2 kinds of processors."),
        (COMMITTED, "cityscapes_dpt", "left out."),
        (
            COMMITTED.parent / "photos",
            "taskonomy_photos",
            "left out. Seconds without seed 0, of another machine.",
        ),
    ],
)
def test_costs_say_whose_seconds_they_are(monkeypatch, folder, study, said):
    """A mean over two processors is named as such; a GPU's seconds are not mixed with a processor's."""
    shown = []
    monkeypatch.setattr(Page, "_show", lambda self, table, caption, *rest: shown.append(caption))
    Page(study, folder).efficiency()
    assert shown[0].endswith(said)


def test_studies_of_one_data_set_share_its_tasks(tmp_path):
    """A study is named after its data set: `cityscapes_dpt` has the tasks of Cityscapes."""
    assert Page("cityscapes_dpt", tmp_path).tasks == Page("cityscapes", tmp_path).tasks


def test_recomputed_seeds_are_compared(shown):
    """A seed that was recomputed to the same records agrees with the committed one on every row."""
    page = Page("nyuv2", COMMITTED, COMMITTED)
    page.recomputed()
    said, table = shown
    assert said.startswith("A recomputed seed is not one more seed")
    assert table.count(">yes</td>") == len(page.fresh) - len(page.fresh.loc["expert"])
    assert "NO" not in table


def test_what_an_interrupted_run_left_is_not_drawn(tmp_path, shown):
    """A seed without all experts, and half a record, are no result; what a seed changed is said."""
    for record in load_records(COMMITTED / "nyuv2" / "seed0"):
        if record["experiment"] == "joint":
            record["results"] = [each | {"metrics": METRICS} for each in record["results"]]
        write_json(tmp_path / "nyuv2" / "seed0" / f"{record['experiment']}.json", record)
    left = load_records(COMMITTED / "nyuv2" / "seed1")[0]
    write_json(tmp_path / "nyuv2" / "seed5" / "expert_depth.json", left | {"seed": 5})
    (tmp_path / "nyuv2" / "seed0" / ".joint.4711.json").touch()
    page = Page("nyuv2", COMMITTED, tmp_path)
    page.recomputed()
    assert shown[-1].count(">NO</td>") == 1
    page = Page("nyuv2", tmp_path)
    assert (page.seeds, page.begun) == (1, [5])
    page.scale()
    assert "Left out: seed 5, without all experts, or with other settings." in shown[-1]


@pytest.mark.parametrize("seeds", [1, 3])
def test_captions_say_how_many_seeds(seeds, tmp_path, shown):
    """One seed is neither a mean nor has it a spread or an interval; of several, the caption counts them."""
    for seed in range(seeds):
        for record in load_records(COMMITTED / "nyuv2" / f"seed{seed}"):
            write_json(tmp_path / "nyuv2" / f"seed{seed}" / f"{record['experiment']}.json", record)
    page = Page("nyuv2", tmp_path)
    assert (
        page.numbers()["over seeds"] == page.over_seeds == ("one seed" if seeds == 1 else "mean over 3 seeds")
    )
    for display in (page.table, page.controls, page.efficiency, page.claims):
        display()
    captions = [re.search("<caption>(.*)</caption>", text).group(1) for text in shown if "<caption>" in text]
    assert len(captions) == 4
    for caption in captions[:3]:
        assert page.over_seeds in caption
    assert [("standard deviation" in caption) for caption in captions] == [seeds > 1, seeds > 1, False, False]
    assert ("95 %" in captions[3]) == ("close</th>" in shown[-1].split("<tbody>")[0]) == (seeds > 1)
    assert "what a seed varies" in captions[3]


def test_what_is_beside_an_experiment_is_of_its_seeds(tmp_path):
    """Of a study whose last seed lacks what is beyond the paper, like is compared with like."""
    for seed in range(3):
        for record in load_records(COMMITTED / "nyuv2" / f"seed{seed}"):
            if seed < 2 or record["experiment"] != "closed_form":
                write_json(tmp_path / "nyuv2" / f"seed{seed}" / f"{record['experiment']}.json", record)
    page = Page("nyuv2", tmp_path)
    assert set(page.frame.index.unique("seed")) == {0, 1, 2}

    def seeds(findings):
        parts = findings.records, findings.all_records
        return [
            *({each["seed"] for each in records} for records in parts),
            set(findings.frame.index.unique("seed")),
        ]

    assert page.derive("closed_form", seeds) == [{0, 1}] * 3
    assert page.derive("joint", seeds) == [{0, 1, 2}] * 3
    assert set(page.beside("closed_form").index.unique("seed")) == {0, 1}
