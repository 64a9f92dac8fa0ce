"""report.paper: the printed tables are consistent with themselves, and where they are not, that is known."""

import pytest

from report.paper import PAPER_FIGURES, paper_curves, printed_deltas, read_paper
from simo.tasks import TASKS, tasks_of

MISPRINTED = {("taskonomy", "task_arithmetic"), ("taskonomy", "task_arithmetic+representation")}
MISPRINTED |= {("taskonomy", "ties+heads")}


@pytest.fixture(scope="module")
def deltas():
    """Δ of all printed rows."""
    return printed_deltas(read_paper())


def test_all_printed_rows_follow_from_the_ratio_definition(deltas):
    """22 rows: each printed Δ is the mean of ratios minus 100, to the rounding, but for three misprints."""
    assert len(deltas) == 22
    assert {row for row, agrees in deltas.agrees.items() if agrees == "by its misprint"} == MISPRINTED
    assert set(deltas.agrees) == {"yes", "by its misprint"}
    assert (deltas.low <= deltas.ratio).all()
    assert (deltas.ratio <= deltas.high).all()
    assert (deltas.high - deltas.low).max() < 2  # rounding explains little: the test could fail


def test_no_printed_row_of_a_collapse_follows_from_the_written_formula(deltas):
    """Eq. 2 punishes large errors harder: where models collapse, it is not what the tables print."""
    collapsed = deltas[(deltas.printed < -25) & (deltas.index != ("cityscapes", "ties"))]
    assert len(collapsed) == 9
    assert (collapsed.formula < collapsed.printed - 4).all()
    # TIES on Cityscapes keeps its disparity, and its two segmentations count alike in both definitions
    assert deltas.loc[("cityscapes", "ties"), "formula"] == pytest.approx(-26.2, abs=0.05)


def test_ratio_by_hand(deltas):
    """Table 1, task arithmetic: 65.78 of 70.79, .2314 of .4171, 18.02 of 26.13."""
    row = deltas.loc[("nyuv2", "task_arithmetic")]
    assert row.ratio == pytest.approx(100 * (65.78 / 70.79 + 0.2314 / 0.4171 + 18.02 / 26.13) / 3 - 100)
    mean = ((65.78 - 70.79) / 70.79 + (0.2314 - 0.4171) / 0.2314 + (18.02 - 26.13) / 18.02) / 3
    assert row.formula == pytest.approx(100 * mean)
    assert row.low < -27.55 < row.high
    # the worst case of rounding: every metric half a unit of its last digit worse, every baseline better
    worst = (65.775 / 70.795 + 0.23135 / 0.41715 + 18.015 / 26.135) / 3
    assert row.low == pytest.approx(100 * worst - 100)


def test_a_wrong_delta_is_found():
    """A printed Δ that no rounding explains does not agree."""
    paper = read_paper()
    paper["table1_nyuv2"]["TA"][-1] = -28.5
    paper["misprints"]["table3_taskonomy"]["TA"]["normals"] = 15.6
    found = printed_deltas(paper).agrees
    assert found["nyuv2", "task_arithmetic"] == "no"
    assert found["taskonomy", "task_arithmetic"] == "no"


def test_curves_are_under_our_names():
    """Each curve of Figures 3, 5 and 6 has its λ, and is at its expert's level where it should be."""
    paper = read_paper()
    for dataset in TASKS:
        curves = paper_curves(dataset, paper)
        names = [task.name for task in tasks_of(dataset)]
        assert list(curves) == names
        for primary in names:
            assert list(curves[primary]) == names
            assert list(curves[primary][primary]) == paper["lambda"]
            assert curves[primary][primary][1.0] == pytest.approx(1, abs=0.14)  # edges reach .866 only
    assert curves["edges"]["depth"][0.5] == paper["fig6_taskonomy"]["edge_texture"]["depth_zbuffer"][5]
    assert PAPER_FIGURES.keys() == TASKS.keys()
