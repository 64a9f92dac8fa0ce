"""report.figure_claims: every figure has a claim; each is decided by what the figure shows, and can fail."""

from dataclasses import replace

import pandas as pd
import pytest

from report.claims import CLAIMS, gather_paper
from report.evidence import block_coefficients
from report.figure_claims import FIGURE_CLAIMS, middle, zeros
from report.overview import RESULTS
from report.paper import read_paper

BY_NAME = {claim.name: claim for claim in CLAIMS}
PAPER = read_paper()


def test_every_figure_has_a_claim():
    """No figure of the paper that is drawn again goes without a criterion."""
    figures = {name for name in RESULTS if name.startswith("Figure")}
    assert figures <= {claim.source for claim in FIGURE_CLAIMS}


@pytest.mark.parametrize(
    ("name", "curves"),
    [
        ("depth-helps-segmentation", {("depth", "segmentation"): (0.65, 0.6, 0.655)}),
        ("segmentation-hurts-depth", {("segmentation", "depth"): (0.65, 0.6, 0.645)}),
        ("normals-hurt-others", {("normals", "depth"): (0.65, 0.6, 0.70)}),
        ("normals-start-lowest", {("normals", "normals"): (0.7, 0.8, 1.0)}),
        ("disparity-hurts-others", {("disparity", "parts"): (0.74, 0.74, 0.74)}),
        ("half-a-vector-is-not-enough", {("edges", "edges"): (0.1, 0.55, 0.87)}),
        ("normals-need-least", {("edges", "edges"): (0.785, 0.2, 0.87)}),
    ],
)
def test_a_claim_about_curves_holds_in_the_paper_and_can_fail(name, curves):
    """On the paper's digitised curves it holds; with one curve changed it does not."""
    claim = BY_NAME[name]
    evidence = gather_paper(claim.datasets[0], PAPER)
    assert claim.holds(claim.measure(evidence))
    changed = {along: dict(heads) for along, heads in evidence.curves.items()}
    for (along, head), values in curves.items():
        changed[along][head] = dict(zip((0.0, 0.5, 1.0), values, strict=True))
    assert not claim.holds(claim.measure(replace(evidence, curves=changed)))


def test_figure_1_by_hand():
    """Two merged tasks lose most where they keep less than half."""
    claim, paper = BY_NAME["two-tasks-lose-most"], gather_paper("taskonomy", PAPER)
    assert claim.measure(paper) == pytest.approx(39.0)
    assert not claim.holds(claim.measure(replace(paper, sizes={1: 1.0, 2: 0.6})))


def test_figure_4_by_hand():
    """The least gain of any task decides; in the paper's Table 3 it is that of the normals or edges."""
    claim, paper = BY_NAME["every-task-regained"], gather_paper("taskonomy", PAPER)
    bare = {"depth": 20.0, "normals": 70.0}
    realigned = {"depth": 80.0, "normals": 70.5}
    seed = replace(paper, performance={"task_arithmetic": bare, "task_arithmetic+representation": realigned})
    assert claim.measure(seed) == pytest.approx(0.5)
    assert not claim.holds(claim.measure(seed))
    assert claim.measure(paper) == pytest.approx(100 * (0.0126 / 0.0199 - 0.0126 / 0.0750))  # edges


def test_figure_2_by_hand():
    """Shares of zeros and the middle of a task's coefficients, blocks being counted to the last."""
    learned = {
        "segmentation": {"patch.proj": 1.0, "blocks.0.a": 0.0, "blocks.1.a": 0.5, "blocks.2.a": 0.5},
        "depth": {"patch.proj": 0.0, "blocks.0.a": 1.0, "blocks.1.a": 0.0, "blocks.2.a": 0.0},
    }
    table = block_coefficients(learned)
    assert table.index.tolist() == [0, 1, 2]  # what is outside the blocks does not count
    seed = replace(gather_paper("nyuv2", PAPER), coefficients=table)
    assert zeros(seed) == pytest.approx(50)
    assert middle(seed, "segmentation") == pytest.approx(75)
    assert middle(seed, "depth") == pytest.approx(0)
    fewer = replace(seed, coefficients=pd.DataFrame({"segmentation": [0.0, 0.1], "depth": [0.1, 0.1]}))
    assert not BY_NAME["coefficients-mostly-zero"].holds(zeros(fewer))
    later = replace(seed, coefficients=table[["depth", "segmentation"]].set_axis(table.columns, axis=1))
    claim = BY_NAME["depth-takes-earlier-blocks"]
    assert claim.holds(claim.measure(seed))
    assert not claim.holds(claim.measure(later))
