"""simo.tables and simo.claims: from results made by hand to scores, text and verdicts."""

import json
from pathlib import Path

import pandas as pd
import pytest

from simo import claims, tables
from simo.errors import SimoError
from simo.tables import MODELS, PAPER_ROWS, recomputed_beside_committed, scores, table_of

PAPER = json.loads((Path(__file__).parents[1] / "book" / "paper_numbers.json").read_text())
TASKS = ("segmentation", "depth", "normals")
EXPERT, HALF = (60.0, 0.2, 20.0), (30.0, 0.4, 40.0)


def rows(model, seed, values, split="test", dataset="nyuv2"):
    """Rows of a results table: a value for each task."""
    return [
        {
            "dataset": dataset,
            "seed": seed,
            "experiment": model,
            "model": model,
            "split": split,
            "task": task,
            "value": value,
        }
        for task, value in zip(TASKS, values, strict=True)
    ]


def frame_of(**models):
    """Scores of models whose performance is given relative to the experts, one factor a seed."""
    table = []
    for seed in range(len(next(iter(models.values())))):
        table += rows("expert", seed, EXPERT)
        for name, factors in models.items():
            r = factors[seed]
            table += rows(name, seed, (60 * r, 0.2 / r, 20 / r))
    return scores(pd.DataFrame(table), "nyuv2")


def all_models(**changes):
    """Scores of every model on two seeds, following the paper's story unless changed."""
    story = {
        "joint": 0.95,
        "task_arithmetic": 0.6,
        "ties": 0.5,
        "task_arithmetic+heads": 0.95,
        "task_arithmetic+representation": 0.96,
        "ties+heads": 0.96,
        "ties+representation": 0.97,
        "pretrained+heads": 0.9,
        "expert+heads": 1.0,
        "expert+representation": 1.005,
    }
    return frame_of(**{name: [r, r] for name, r in story.items()} | changes)


def test_scores_by_hand():
    """Relative to its seed's experts: half the mIoU and twice the errors are 50 % each, Δ -50 and -83.3."""
    table = pd.DataFrame(rows("expert", 0, EXPERT) + rows("ties", 0, HALF))
    frame = scores(table, "nyuv2")
    assert frame.loc[("ties", 0)].to_dict() == pytest.approx(
        {
            **dict(zip(TASKS, HALF, strict=True)),
            **{f"{task} %": 50.0 for task in TASKS},
            "printed": -50.0,
            "formula": 100 * (-0.5 - 1 - 1) / 3,
        }
    )
    assert (frame.loc[("expert", 0), ["printed", "formula"]] == 0).all()


def test_each_seed_is_relative_to_its_own_experts():
    """A seed with better experts is judged by them, not by another seed's."""
    better = tuple(x * f for x, f in zip(EXPERT, (2, 0.5, 0.5), strict=True))
    table = pd.DataFrame(
        rows("expert", 0, EXPERT)
        + rows("expert", 1, better)
        + rows("ties", 0, EXPERT)
        + rows("ties", 1, EXPERT)
    )
    frame = scores(table, "nyuv2")
    assert frame.loc["ties"].printed.tolist() == pytest.approx([0, -50])


def test_scores_use_the_test_split_of_the_data_set_only():
    """Validation scores and other data sets' results do not leak into a table."""
    table = rows("expert", 0, EXPERT) + rows("ties", 0, EXPERT)
    more = rows("ties", 0, HALF, split="val") + rows("ties", 0, HALF, dataset="other")
    pd.testing.assert_frame_equal(
        scores(pd.DataFrame(table + more), "nyuv2"), scores(pd.DataFrame(table), "nyuv2")
    )


def test_models_are_in_the_tables_order():
    """Rows follow the paper's order, not the alphabet, seeds ascending."""
    frame = frame_of(**{name: [0.9, 0.8] for name in ("ties", "joint", "ties+heads", "task_arithmetic")})
    assert frame.index.tolist() == [
        (name, seed)
        for name in ("expert", "joint", "task_arithmetic", "ties", "ties+heads")
        for seed in (0, 1)
    ]


@pytest.mark.parametrize("drop", [TASKS, ("depth",)])
def test_incomplete_experts_are_refused(drop):
    """Without every expert of a seed there is nothing to be relative to."""
    table = pd.DataFrame(rows("expert", 0, EXPERT) + rows("ties", 0, HALF) + rows("expert", 1, EXPERT))
    table = table[~((table.model == "expert") & (table.seed == 0) & table.task.isin(drop))]
    with pytest.raises(SimoError, match="nyuv2, seed 0: not every expert has a record"):
        scores(table, "nyuv2")


def test_table_shows_mean_and_standard_deviation():
    """Cells are mean ± sample standard deviation over seeds, relative performance in brackets, Δ signed."""
    table = table_of(frame_of(ties=[0.5, 0.6, 0.7]), "nyuv2", ["ties"])
    assert table.loc["TIES"].tolist() == [
        "36.00 ± 6.00 (60.0)",
        "0.3397 ± 0.0574 (60.0)",
        "33.97 ± 5.74 (60.0)",
        "-40.0 ± 10.0",
        "-59.9 ± 22.5",
    ]
    headings = [" ".join(column) for column in table.columns]
    assert headings == [
        "segmentation mIoU, %",
        "depth aErr, m",
        "normals mDist, °",
        "Δ_MTL, % printed",
        "Δ_MTL, % Eq. 2",
    ]


def test_table_of_one_seed_has_no_spread():
    """A single number is shown as such, not as ± nan."""
    table = table_of(frame_of(joint=[1.25]), "nyuv2")
    assert table.index.tolist() == ["Experts", "Joint training"]
    assert table.loc["Joint training"].tolist()[1:4] == ["0.1600 (125.0)", "16.00 (125.0)", "+25.0"]
    assert table.loc["Experts"].tolist() == ["60.00 (100.0)", "0.2000 (100.0)", "20.00 (100.0)", "", ""]
    assert "nan" not in table.to_string()


def test_papers_numbers_beside_ours():
    """The paper's column is computed from its printed metrics, and agrees with what it prints in brackets."""
    frame = frame_of(**{name: [0.8, 0.9] for name in PAPER_ROWS if name != "expert"})
    table = tables.paper_beside_ours(frame, "nyuv2", PAPER)
    paper, ours = (table.xs(side, axis=1, level=1) for side in ("paper", "ours"))
    assert paper.loc["TA"].tolist() == ["92.9", "55.5", "69.0", "-27.5"]
    assert ours.loc["TA"].tolist() == ["85.0", "85.0", "85.0", "-15.0"]
    assert paper.loc["TIES + representation"].tolist() == ["96.8", "89.8", "94.9", "-6.2"]
    assert paper.loc["Experts"].tolist() == ours.loc["Experts"].tolist() == ["100.0", "100.0", "100.0", ""]
    assert table.index.tolist() == [MODELS[model] for model in PAPER_ROWS]


def test_change_of_nothing_is_shown():
    """A model exactly at the experts' level reads +0.0: only the experts' own row is empty."""
    frame = frame_of(**{name: [1.0] for name in PAPER_ROWS if name != "expert"})
    assert tables.paper_beside_ours(frame, "nyuv2", PAPER).loc["TIES"].tolist()[-1] == "+0.0"
    assert table_of(frame, "nyuv2").loc["TIES"].tolist()[-2:] == ["+0.0", "+0.0"]


def test_recomputed_beside_committed():
    """A recomputed seed agrees within the tolerance or three deviations of the seeds."""
    committed = frame_of(**{"ties": [0.5, 0.6], "joint": [0.9, 0.95]})
    fresh = frame_of(**{"ties": [0.5, 0.9], "joint": [0.9, 0.969], "average": [0.8, 0.8]})
    fresh = fresh[fresh.index.get_level_values("seed") == 1]
    table = recomputed_beside_committed(committed, fresh, tolerance=2.0)
    assert table.index.tolist() == [("Joint training", 1), ("TIES", 1)]
    assert table.loc[("TIES", 1)].tolist() == ["-45.0 ± 7.1", "-40.0", "-10.0", "21.2", "NO"]
    assert table.loc[("Joint training", 1)].tolist() == ["-7.5 ± 3.5", "-5.0", "-3.1", "10.6", "yes"]


def test_recomputed_seed_of_steady_results_has_the_fixed_tolerance():
    """Where the committed seeds agree closely, the fixed tolerance decides."""
    committed = frame_of(**{"joint": [0.95, 0.95]})
    for value, verdict in ((0.969, "yes"), (0.971, "NO")):
        fresh = frame_of(**{"joint": [0.95, value]})
        table = recomputed_beside_committed(committed, fresh, tolerance=2.0)
        assert table.loc[("Joint training", 1)].tolist()[-2:] == ["2.0", verdict]


def test_every_claim_holds_in_the_papers_story():
    """Claims are stated in the direction of the paper's results."""
    verdicts = claims.judge(all_models())
    assert set(verdicts.verdict) == {"holds"}
    assert len(verdicts) == len(claims.CLAIMS) == len({claim.name for claim in claims.CLAIMS})
    assert verdicts.index.tolist() == [claim.name for claim in claims.CLAIMS]


@pytest.mark.parametrize(
    ("name", "change", "value"),
    [
        ("ties-collapses", {"ties": 0.91}, -9),
        ("ties-heads-recover", {"ties+heads": 0.74}, 48),
        ("ties-representation-at-least-heads", {"ties+representation": 0.955}, -0.5),
        ("ties-heads-reach-joint", {"ties+heads": 0.935}, -1.5),
        ("task_arithmetic-representation-reaches-joint", {"task_arithmetic+representation": 0.93}, -2),
        ("task_arithmetic-beats-pretrained", {"pretrained+heads": 0.955}, -0.5),
        ("experts-converged-heads", {"expert+heads": 1.02}, 2),
        ("experts-converged-representation", {"expert+representation": 1.03}, 3),
    ],
)
def test_each_claim_can_fail(name, change, value):
    """A claim is decided by its own number: just beyond its criterion on one seed of two, it is mixed."""
    ((model, factor),) = change.items()
    good = all_models().loc[(model, 0), "segmentation %"] / 100
    mixed = claims.judge(all_models(**{model: [good, factor]}))
    assert mixed.loc[name, "verdict"] == "holds on 1 of 2 seeds"
    assert mixed.loc[name, "seed 1"] == pytest.approx(value)
    assert claims.judge(all_models(**{model: [factor, factor]})).loc[name, "verdict"] == "fails"


def test_paper_itself_is_judged_as_it_reads():
    """On the paper's printed Δ: merging collapses, heads recover; TA's representation loses by a hair."""
    printed = {model: PAPER["table1_nyuv2"][row][-1] for model, row in PAPER_ROWS.items()}
    delta = pd.Series(printed)
    held = {
        claim.name: claim.holds(claim.measure(delta))
        for claim in claims.claims_of("task_arithmetic", "TA")[:5]
    }
    assert held == {
        "task_arithmetic-collapses": True,
        "task_arithmetic-heads-recover": True,
        "task_arithmetic-representation-at-least-heads": False,
        "task_arithmetic-heads-reach-joint": True,
        "task_arithmetic-representation-reaches-joint": True,
    }


def test_recovered_by_hand():
    """From -40 to -10 is three quarters of the way back to the experts."""
    assert claims.recovered({"ties": -40.0, "ties+heads": -10.0}, "ties", "heads") == 75


def test_every_row_has_a_label():
    """A model that can be computed can be shown; the paper's rows exist in the paper's table."""
    assert set(PAPER_ROWS) <= set(MODELS)
    assert set(PAPER_ROWS.values()) <= PAPER["table1_nyuv2"].keys()
    assert set(tables.CONTROLS) < set(MODELS)
