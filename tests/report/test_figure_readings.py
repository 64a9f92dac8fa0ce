"""report.readings: a sentence says where a figure of ours disagrees with the paper's, and only there."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from report import beyond, readings
from report.pages import Page
from report.paper import paper_curves, read_paper
from report.tables import Findings

PAPER = read_paper()


def stub(curves=None, coefficients=None, points=None):
    """A page of NYUv2 with the paper's curves unless changed, AdaMerging's coefficients, or subsets."""
    records = [{"details": {"coefficients": each}} for each in coefficients or []]
    learned = Findings(records, None, "nyuv2", [])
    found = {"adamerging": lambda function: function(learned), "subsets": lambda function: points}
    return SimpleNamespace(
        dataset="nyuv2",
        paper=PAPER,
        name="miniature",
        curves=lambda: [paper_curves("nyuv2", PAPER) if curves is None else curves],
        derive=lambda experiment, function: found[experiment](function),
        study="nyuv2",
        fixture=False,
        share={"subsets": " On 1 of the 3 seeds."}.get,
    )


def test_the_papers_own_curves_disagree_with_nothing():
    """Curves that are the paper's are said to be so, and none is listed."""
    text = readings.relationships(SimpleNamespace(**vars(stub())))
    assert "Of the 6 curves of another task's head, 0 move against the paper's by over a point." in text


def test_a_curve_that_moves_the_other_way_is_named():
    """Depth's vector hurts the segmentation's head instead of helping it: both walks are given."""
    curves = paper_curves("nyuv2", PAPER)
    curves["depth"]["segmentation"] = {0.0: 0.44, 1.0: 0.17}
    text = readings.relationships(stub(curves))
    assert (
        "1 moves against the paper's by over a point: segmentation along the vector of depth, .44 to .17"
        in text
    )
    assert "(paper .65 to .81)" in text


def test_curves_that_disagree_most_are_named_first():
    """Of four curves that turn the other way three are named; one that turns by half a point is none."""
    curves = paper_curves("nyuv2", PAPER)
    curves["depth"]["segmentation"] = {0.0: 0.7, 1.0: 0.6}  # by 26 points against the paper's
    curves["segmentation"]["depth"] = {0.0: 0.6, 1.0: 0.7}  # by 34
    curves["normals"] = {
        "segmentation": {0.0: 0.6, 1.0: 0.7},  # by 40
        "depth": {0.0: 0.6, 1.0: 0.7},  # by 49
        "normals": {0.0: 0.2, 1.0: 1.0},
    }
    curves["depth"]["normals"] = {0.0: 0.446, 1.0: 0.451}  # the paper's loses five points
    assert readings.relationships(stub(curves)) == (
        "*Miniature*: Of the 6 curves of another task's head, 4 move against the paper's by over a "
        "point, most of all depth along the vector of normals, .60 to .70 (paper .65 to .27); "
        "segmentation along the vector of normals, .60 to .70 (paper .65 to .35); "
        "depth along the vector of segmentation, .60 to .70 (paper .65 to .42). "
        "Starting points differ most for normals, whose head keeps .20 of its expert on the pretrained "
        "encoder (paper .45)."
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.35, 0.33, 0.32), "costs most, as in the paper: two merged tasks keep .35 (paper .39)"),
        ((0.35, 0.33, 0.32), "hardly falls any further, to .32; the paper's falls to .18"),
        ((0.39, 0.23, 0.15), "goes on falling, to .15; the paper's falls to .18. On 1 of the 3 seeds."),
        ((0.9, 0.5, 0.4), "costs less than the others together"),
    ],
)
def test_figure_1_is_read(values, words):
    """Whether performance goes on falling after two tasks is decided by the numbers."""
    points = pd.DataFrame({"size": [2, 3, 4], "performance": values})
    assert words in readings.subsets(stub(points=points))


def test_figure_2_is_read():
    """Zeros are counted inside blocks, and few zeros are said to be unlike the paper's."""
    few = {"depth": {"blocks.0.a": 0.5, "blocks.1.a": 0.5}, "normals": {"blocks.0.a": 0.0, "blocks.1.a": 1.0}}
    text = readings.coefficients(stub(coefficients=[few]))
    assert "25 % are exactly 0: fewer than half; in the paper's map many are" in text
    assert "depth at 1.5, normals at 2.0" in text
    most = {"depth": {"blocks.0.a": 0.0, "blocks.1.a": 0.0}, "normals": few["normals"]}
    assert "75 % are exactly 0: most, as it looks in the paper's." in readings.coefficients(
        stub(coefficients=[most])
    )


def test_pictures_are_read(tmp_path):
    """Errors in multiples of the expert's, by hand; without the pixel that has no truth, black everywhere."""
    page = stub()
    page.pictures_file = tmp_path / "qualitative.npz"
    truth = np.array([[[[0, 0], [9, 0]], [[9, 0], [0, 9]]]], np.uint8)  # (N, H, W, C)
    errors = {"expert": (2, 2, 2), "joint": (2, 1, 3), "merged": (6, 8, 5)}
    errors |= {"heads": (3, 4, 4), "representation": (1, 2, 3)}
    shown = {f"truth/{task}": truth for task in ("segmentation", "depth", "normals")}
    for row, own in errors.items():
        for task, error in zip(("segmentation", "depth", "normals"), own, strict=True):
            shown[f"{row}/{task}"] = truth + np.uint8(error)
            shown[f"{row}/{task}"][0, 0, 0] = 200
    np.savez(page.pictures_file, **shown)
    assert readings.pictures(page) == (
        "*Miniature*: Mean absolute error on these images in multiples of the expert's, least to most over "
        "the tasks: joint training 0.5 to 1.5; the merged model 2.5 to 4.0; with realigned heads 1.5 to 2.0; "
        "with realigned representation 0.5 to 1.5."
    )


def test_lines_of_a_figure_are_named():
    """Its caption says which line is what, of how many seeds; bands are named where there are any."""
    one = stub()
    three = SimpleNamespace(**vars(one) | {"curves": lambda: 3 * one.curves()})
    assert readings.lines(one) == "miniature, one seed"
    text = "solid miniature, one seed; dashed miniature, mean over 3 seeds, bands their range"
    assert readings.lines(one, three) == text
    assert readings.lines(Page("nyuv2", "records/none")) == "not run"


def test_alpha_without_labels_is_read_or_not_run():
    """The page on which method when fills itself as soon as there are records of it."""
    chosen = pd.DataFrame(
        {
            "method": "task_arithmetic",
            "rule": ["residual", "after", "before"] * 2,
            "delta": [-5.0, -4.0, -8.0, -7.0, -5.0, -9.0],
        }
    )
    page = stub()
    page.ran = lambda experiment: True
    page.derive = lambda experiment, function: chosen
    assert "before: NYUv2 −6.0 (−4.5; −8.5)" in readings.unlabelled_alpha(page)
    page.fixture = True
    assert "before: NYUv2 [fixture] −6.0 (−4.5; −8.5)" in readings.unlabelled_alpha(page)
    assert readings.unlabelled_alpha(Page("nyuv2", "records/none")) == "not run"


def test_what_alpha_without_labels_brings_is_the_least_and_the_most():
    """By hand: of two seeds and one method, against labels before and after."""
    rules = {"before": (-9.0, -8.0), "after": (-5.0, -4.0), "residual": (-5.5, -3.9), "capped": (-5.5, -3.0)}
    rows = [
        {
            "method": method,
            "rule": rule,
            "seed": seed,
            "delta": delta - lower * (rule == "before"),
            "choice": str(delta),
        }
        for method, lower in (("ties", 0), (beyond.EITHER, 1))
        for rule, deltas in rules.items()
        for seed, delta in enumerate(deltas)
    ]
    page = stub()
    page.ran = lambda experiment: True
    page.derive = lambda experiment, function: pd.DataFrame(rows)
    text = readings.unlabelled_regret(page, Page("nyuv2", "records/none"))
    assert "Over 2 choices (NYUv2; two methods, each seed)" in text
    assert "changes Δ by +3.5 to +4.1 points against the one that labels choose before" in text
    assert "by −0.5 to +0.1 against the one that they choose after" in text
    assert "the method, too (2 choices), it is +4.5 to +5.1 and −0.5 to +0.1 against theirs." in text
    assert "failed, it is +3.5 to +5.0 and −0.5 to +1.0 against the labels' choices." in text
    page.derive = lambda experiment, function: pd.DataFrame(rows).replace({"choice": r".*"}, "α", regex=True)
    assert "had failed" not in readings.unlabelled_regret(page)  # where both rules choose the same
    assert readings.unlabelled_regret(Page("nyuv2", "records/none")) == ""


def test_neighbours_are_read_in_their_measured_order():
    """The best four in the mean over seeds, best first; what needs an encoder pass a task says so."""
    rows = [
        {"seed": seed, "name": name, "delta": delta + seed, "passes": passes}
        for seed in (0, 1)
        for name, delta, passes in (
            ("FeatCal", -9.0, 1),
            ("SurgeryV2", -3.0, 3),
            ("RegMean++", -4.0, 1),
            ("Surgery", -8.0, 1),
            ("ProDistill", -9.5, 1),
        )
    ]
    page = stub()
    page.title = "NYUv2, photographs"
    page.ran = lambda experiment: True
    page.derive = lambda *a: pd.DataFrame(rows)
    order = "SurgeryV2 −2.5 (3 encoder passes), RegMean++ −3.5, Surgery −7.5, FeatCal −8.5"
    assert readings.neighbours(page) == f"NYUv2, photographs (mean over 2 seeds): {order}"
    assert readings.neighbours(Page("nyuv2", "records/none")) == "not run"


def test_whether_the_residual_tells_which_task_suffers_is_read():
    """How often it does, over all choices, and the rank correlation by data set."""
    page = stub()
    page.ran = lambda experiment: True
    page.derive = lambda *a: pd.DataFrame({"told": [True, False, False], "order": [-1.0, 0.5, 0.8]})
    text = readings.residual_by_task(page, Page("nyuv2", "records/none"))
    assert "loses most after closed form in 1 of 3 of these choices." in text
    assert text.endswith("−1 if it told, is in the mean NYUv2 +0.1.")
    assert readings.residual_by_task(Page("nyuv2", "records/none")) == ""


def test_nothing_run_is_nothing_read():
    """A page without records has no sentence."""
    page = Page("nyuv2", "records/none")
    assert [read(page) for read in (readings.relationships, readings.coefficients, readings.pictures)] == [
        ""
    ] * 3
    assert readings.subsets(page) == ""


def test_the_lead_of_closed_form_by_hand(tmp_path):
    """Above heads by 5 and 1 from 4 and 16 images, means of two seeds; what only one had is left out."""
    rows = [
        {"seed": seed, "method": method, "images": images, "delta": delta + seed}
        for seed in (0, 1)
        for method, images, delta in (
            ("closed form", 2, -9.0),
            ("closed form", 4, -5.0),
            ("closed form", 16, -3.0),
            ("heads", 4, -10.0),
            ("heads", 16, -4.0),
        )
    ]
    page = SimpleNamespace(ran=lambda name: True, derive=lambda name, function: pd.DataFrame(rows))
    assert readings.closed_form_lead(page, "heads") == "+5.0 from 4, +1.0 from 16 (mean over 2 seeds)"
    page.derive = lambda name, function: pd.DataFrame(rows[:5])
    assert readings.closed_form_lead(page, "heads") == "+5.0 from 4, +1.0 from 16 (one seed)"
    assert readings.closed_form_lead(Page("nyuv2", tmp_path), "heads") == "not run"


def test_adapters_are_told_beside_whole_experts():
    """On common seeds: half as many parameters; a score of 8 for 10, and errors of 1.25 for 1, are −20 %."""

    def page(seeds, parameters, values, length):
        frame = pd.DataFrame([values] * len(seeds), index=pd.MultiIndex.from_product([["expert"], seeds]))

        def result(task):
            own = parameters * {"segmentation": 1.5, "depth": 0.5, "normals": 1.0}[task]
            cost = {"steps": 1, "samples": 1, "parameters": own, "seconds": 1.0}
            return {"split": "test", "model": "expert", "cost": cost}

        records = [
            {"experiment": f"expert_{task}", "seed": seed, "results": [result(task)], "provenance": {}}
            for seed in seeds
            for task in ("segmentation", "depth", "normals")
        ]
        details = {"cosines": {"a": {"b": length / 2}, "b": {}}, "relative_norms": {"a": length, "b": 0.5}}
        merged = {"experiment": "merge_task_arithmetic", "results": [], "provenance": {}, "details": details}
        return SimpleNamespace(dataset="nyuv2", name="miniature", frame=frame, records=[*records, merged])

    adapted = page([0, 1], 50, {"segmentation": 8.0, "depth": 1.25, "normals": 12.5}, 0.75)
    whole = page([0, 1, 2], 100, {"segmentation": 10.0, "depth": 1.0, "normals": 10.0}, 0.25)
    text = readings.adapters(adapted, whole)
    assert "have 50 to 75 % of the pretrained encoder's length, where the others have 25 to 50 %" in text
    assert "the cosine of two is 0.38 to 0.38 (0.12 to 0.12)" in text
    assert "train 50 % of the parameters" in text
    assert "their Δ is −20.0 %" in text
    assert readings.adapters(SimpleNamespace(records=[]), whole) == ""
    assert (
        readings.adapters(page([3], 50, {"segmentation": 8.0, "depth": 1.0, "normals": 9.0}, 0.1), whole)
        == ""
    )
