"""simo.tables and simo.claims: from results made by hand to scores, text and verdicts."""

import json
from pathlib import Path

import pandas as pd
import pytest

from simo import claims, tables
from simo.errors import SimoError
from simo.paper import PAPER_ROWS
from simo.tables import MODELS, recomputed_beside_committed, scores, table_of

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
    assert [text.replace("\u00a0", " ") for text in table.loc["TIES"]] == [
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
    ours = ours.replace(r"\s±.*", "", regex=True)
    assert paper.loc["TA"].tolist() == ["92.9", "55.5", "69.0", "-27.5"]
    assert ours.loc["TA"].tolist() == ["85.0", "85.0", "85.0", "-15.0"]
    assert paper.loc["TIES + representation"].tolist() == ["96.8", "89.8", "94.9", "-6.2"]
    assert paper.loc["Experts"].tolist() == ours.loc["Experts"].tolist() == ["100.0", "100.0", "100.0", ""]
    in_table_1 = [model for model in PAPER_ROWS if model != "tall_mask"]
    assert table.index.tolist() == [MODELS[model] for model in in_table_1]


def test_change_of_nothing_is_shown():
    """A model exactly at the experts' level reads +0.0: only the experts' own row is empty."""
    frame = frame_of(**{name: [1.0] for name in PAPER_ROWS if name != "expert"})
    assert tables.paper_beside_ours(frame, "nyuv2", PAPER).loc["TIES"].tolist()[-2] == "+0.0"
    assert table_of(frame, "nyuv2").loc["TIES"].tolist()[-2:] == ["+0.0", "+0.0"]


def test_recomputed_beside_committed():
    """A recomputed seed agrees within the tolerance or three deviations of the seeds."""
    committed = frame_of(**{"ties": [0.5, 0.6], "joint": [0.9, 0.95]})
    fresh = frame_of(**{"ties": [0.5, 0.9], "joint": [0.9, 0.969], "average": [0.8, 0.8]})
    fresh = fresh[fresh.index.get_level_values("seed") == 1]
    table = recomputed_beside_committed(committed, fresh, tolerance=2.0)
    assert table.index.tolist() == [("Joint training", 1), ("TIES", 1)]
    assert table.loc[("TIES", 1)].tolist() == ["-45.0\u00a0±\u00a07.1", "-40.0", "-10.0", "21.2", "NO"]
    assert table.loc[("Joint training", 1)].tolist() == [
        "-7.5\u00a0±\u00a03.5",
        "-5.0",
        "-3.1",
        "10.6",
        "yes",
    ]


def test_recomputed_seed_of_steady_results_has_the_fixed_tolerance():
    """Where the committed seeds agree closely, the fixed tolerance decides."""
    committed = frame_of(**{"joint": [0.95, 0.95]})
    for value, verdict in ((0.969, "yes"), (0.971, "NO")):
        fresh = frame_of(**{"joint": [0.95, value]})
        table = recomputed_beside_committed(committed, fresh, tolerance=2.0)
        assert table.loc[("Joint training", 1)].tolist()[-2:] == ["2.0", verdict]


def curves_of(tasks, own, others):
    """Relationship curves: a head's value along its own vector at λ = 0, .5 and 1, and along the others'."""
    return {
        primary: {
            task: dict(zip((0.0, 0.5, 1.0), own if task == primary else others, strict=True))
            for task in tasks
        }
        for primary in tasks
    }


def evidence(**changes):
    """Evidence that follows the paper's story on all data sets, unless changed."""
    story = {
        "delta": all_models().xs(0, level="seed").printed,
        "curves": curves_of(("segmentation", "parts", "disparity"), (0.3, 0.4, 1.0), (0.3, 0.35, 0.2)),
        "sizes": {1: 1.0, 2: 0.4, 3: 0.3, 4: 0.2, 5: 0.1},
        "costs": {
            "joint": {"steps": 900, "samples": 160, "seconds": 100.0},
            "task_arithmetic+heads": {"steps": 150, "samples": 40, "seconds": 10.0},
            "task_arithmetic+representation": {"steps": 120, "samples": 40, "seconds": 30.0},
        },
        "clip": {2: 0.9, 3: 0.88, 4: 0.87, 5: 0.83},
    }
    return claims.Evidence(**story | changes)


def judged(monkeypatch, *seeds, dataset="nyuv2"):
    """Verdicts on evidence made by hand, one a seed."""
    found = {f"seed {number}": each for number, each in enumerate(seeds)}
    monkeypatch.setattr(claims, "gather", lambda *_: found)
    return claims.judge(None, dataset, [], PAPER)


def delta(**changes):
    """Printed Δ of the story with some factors changed, in points."""
    return evidence().delta.copy().pipe(lambda x: pd.concat([x.drop(list(changes)), pd.Series(changes)]))


@pytest.mark.parametrize("dataset", ["nyuv2", "cityscapes", "taskonomy"])
def test_every_claim_holds_in_the_papers_story(monkeypatch, dataset):
    """Claims are stated in the direction of the paper's results."""
    heads = {"task_arithmetic+heads": -18.0, "ties+heads": -18.0}  # below representation, as on Taskonomy
    far = delta(**heads, **{"pretrained+heads": -30.0, "joint": -17.5})
    verdicts = judged(monkeypatch, evidence(delta=far), dataset=dataset)
    assert set(verdicts.verdict) == {"holds"}
    names = [claim.name for claim in claims.CLAIMS if not claim.datasets or dataset in claim.datasets]
    assert verdicts.index.tolist() == names
    assert len(claims.CLAIMS) == len({claim.name for claim in claims.CLAIMS})


@pytest.mark.parametrize(
    ("name", "change", "value", "dataset"),
    [
        ("ties-collapses", {"delta": {"ties": -9.0}}, -9, "nyuv2"),
        ("ties-heads-recover", {"delta": {"ties": -50.0, "ties+heads": -26.0}}, 48, "nyuv2"),
        ("ties-representation-at-least-heads", {"delta": {"ties+representation": -5.5}}, -1.5, "nyuv2"),
        ("ties-representation-far-above-heads", {"delta": {"ties+representation": 0.0}}, 4, "taskonomy"),
        ("ties-heads-reach-joint", {"delta": {"ties+heads": -6.5}}, -1.5, "nyuv2"),
        ("task_arithmetic-representation-reaches-joint", {"delta": {"joint": -2.0}}, -2, "nyuv2"),
        ("task_arithmetic-beats-pretrained", {"delta": {"pretrained+heads": -4.5}}, -0.5, "nyuv2"),
        ("experts-converged-heads", {"delta": {"expert+heads": 2.0}}, 2, "nyuv2"),
        ("experts-converged-representation", {"delta": {"expert+representation": 3.0}}, 3, "nyuv2"),
        ("heads-cheaper-than-joint", {"costs": {"joint": {"steps": 100, "samples": 160}}}, 150, "nyuv2"),
        (
            "representation-cheaper-than-joint",
            {"costs": {"joint": {"steps": 900, "samples": 20}}},
            200,
            "nyuv2",
        ),
        ("heads-faster-than-joint", {"costs": {"joint": {"seconds": 16.0}}}, 62.5, "nyuv2"),
        ("representation-faster-than-joint", {"costs": {"joint": {"seconds": 40.0}}}, 75, "nyuv2"),
        ("collapses-more-than-clip", {"sizes": {1: 1.0, 2: 0.4, 3: 0.89}}, 1, "taskonomy"),
        ("each-task-costs", {"sizes": {1: 1.0, 2: 0.4, 3: 0.45, 4: 0.2}}, 5, "taskonomy"),
        ("segmentation-helps-parts", {"others": (0.3, 0.2, 0.1)}, 0, "cityscapes"),
        ("parts-hurt-segmentation", {"others": (0.3, 0.2, 0.4)}, 10, "cityscapes"),
        ("disparity-needs-its-whole-vector", {"own": (0.3, 0.6, 1.0)}, 60, "cityscapes"),
        ("no-vector-serves-another-head", {"others": (0.3, 0.35, 0.95)}, 95, "nyuv2"),
        ("tasks-hardly-overlap", {"others": (0.3, 0.35, 0.55)}, 55, "taskonomy"),
    ],
)
def test_each_claim_can_fail(monkeypatch, name, change, value, dataset):
    """A claim is decided by its own number: beyond its criterion on one seed of two, it is mixed."""
    if "delta" in change:
        change = {"delta": delta(**change["delta"])}
    elif "costs" in change:
        change = {"costs": evidence().costs | change["costs"]}
    elif "own" in change or "others" in change:
        tasks = ("segmentation", "parts", "disparity")
        own, others = change.get("own", (0.3, 0.4, 1.0)), change.get("others", (0.3, 0.35, 0.2))
        change = {"curves": curves_of(tasks, own, others)}
    far = delta(**{"task_arithmetic+heads": -20.0, "ties+heads": -20.0})
    good = evidence(delta=far) if name == "ties-representation-far-above-heads" else evidence()
    mixed = judged(monkeypatch, good, evidence(**change), dataset=dataset)
    assert mixed.loc[name, "verdict"] == "holds on 1 of 2 seeds"
    assert mixed.loc[name, "seed 1"] == pytest.approx(value)
    assert judged(monkeypatch, evidence(**change), dataset=dataset).loc[name, "verdict"] == "fails"


def test_what_was_not_run_is_not_judged():
    """With scores alone, claims about curves and costs are not run rather than failed."""
    verdicts = claims.judge(all_models(), "nyuv2", [], PAPER).verdict
    assert verdicts["no-vector-serves-another-head"] == "not run"
    assert verdicts["heads-cheaper-than-joint"] == "not run"
    assert verdicts["ties-collapses"] == "holds"


@pytest.mark.parametrize("dataset", ["nyuv2", "cityscapes", "taskonomy"])
def test_the_paper_meets_its_own_claims(dataset):
    """Each criterion, on the paper's printed numbers and curves: those that they fail are listed here."""
    printed = claims.gather_paper(dataset, PAPER)
    failed = set()
    for claim in claims.CLAIMS:
        number = claims._number(claim, printed)
        if dataset in (claim.datasets or (dataset,)) and number == number and not claim.holds(number):
            failed.add(claim.name)
    assert (
        failed
        == {
            "nyuv2": {"ties-heads-reach-joint"},
            "cityscapes": {
                "task_arithmetic-heads-reach-joint",
                "ties-heads-reach-joint",
                "ties-representation-reaches-joint",
            },
            "taskonomy": {"task_arithmetic-heads-reach-joint", "ties-heads-reach-joint"},
        }[dataset]
    )


def test_evidence_is_read_from_records():
    """Curves, sizes and costs of a seed come from that seed's own records."""
    frame = all_models()
    curve = [{"lambda": x, "segmentation": 60 * x, "depth": 0.2, "normals": 20.0} for x in (0.0, 1.0)]
    other = [{"lambda": x, "segmentation": 30.0, "depth": 0.2, "normals": 20.0} for x in (0.0, 1.0)]
    subset = {"tasks": ["depth", "normals"], "alpha": 0.4, "metrics": {"depth": 0.4, "normals": 80.0}}
    cost = {"model": "joint", "split": "test", "metrics": {}, "cost": {"steps": 7}}

    def record(experiment, seed, results=(), **details):
        return {"experiment": experiment, "seed": seed, "results": list(results), "details": details}

    records = [
        record("relationships", 1, curves={"segmentation": curve, "depth": other, "normals": other}),
        record("subsets", 1, subsets=[subset]),
        record("joint", 1, [cost]),
    ]
    found = claims.gather(frame, "nyuv2", records, PAPER)
    assert found["seed 1"].curves["segmentation"]["segmentation"] == pytest.approx(
        {0.0: 0.0, 1.0: 1.0}, abs=1e-6
    )
    assert found["seed 1"].curves["depth"]["segmentation"] == {0.0: 0.5, 1.0: 0.5}
    assert found["seed 1"].sizes == {1: 1.0, 2: (0.5 + 0.25) / 2}
    assert found["seed 1"].costs == {"joint": {"steps": 7}}
    assert (found["seed 0"].curves, found["seed 0"].sizes, found["seed 0"].costs) == ({}, {}, {})


def test_recovered_by_hand():
    """From -40 to -10 is three quarters of the way back to the experts."""
    assert claims.recovered({"ties": -40.0, "ties+heads": -10.0}, "ties", "heads") == 75


def test_every_row_has_a_label():
    """A model that can be computed can be shown; the paper's rows exist in the paper's table."""
    assert set(PAPER_ROWS) <= set(MODELS)
    assert set(PAPER_ROWS.values()) <= PAPER["table3_taskonomy"].keys()
    assert set(PAPER_ROWS.values()) - {"TALL"} <= PAPER["table1_nyuv2"].keys()
    assert set(tables.CONTROLS) < set(MODELS)


def cost_record(seed, experiment, *results):
    """A record of results with a cost: (model, steps, samples, parameters, seconds)."""
    rows = [
        {
            "model": model,
            "split": "test",
            "metrics": {},
            "cost": {"steps": steps, "samples": samples, "parameters": parameters, "seconds": seconds},
        }
        for model, steps, samples, parameters, seconds in results
    ]
    return {"experiment": experiment, "seed": seed, "results": rows, "details": {}}


def test_efficiency_by_hand():
    """Table 4: means over seeds, experts summed over tasks, their cost added to what starts from them."""
    records = []
    for seed, factor in ((0, 1), (1, 3)):
        records += [
            cost_record(seed, "expert_depth", ("expert", 100, 800, 2_000_000, 10.0 * factor)),
            cost_record(seed, "expert_normals", ("expert", 300, 800, 2_000_000, 30.0 * factor)),
            cost_record(seed, "joint", ("joint", 500, 800, 3_000_000, 60.0)),
            cost_record(seed, "realign", ("task_arithmetic+heads", 40, 200, 1_000_000, 5.0)),
        ]
    table = tables.efficiency(records, PAPER["table4_efficiency_taskonomy"])
    ours = table.xs("ours", axis=1, level=1)
    assert ours.loc["An expert, mean over tasks"].tolist() == ["200", "2.00 M", "800", "40"]
    assert ours.loc["All experts"].tolist() == ["400", "4.00 M", "800", "80"]
    assert ours.loc["Joint training"].tolist() == ["500", "3.00 M", "800", "60"]
    assert ours.loc["TA + heads"].tolist() == ["40", "1.00 M", "200", "5"]
    assert ours.loc["TA + heads, with its experts"].tolist() == ["440", "4.00 M", "1,000", "85"]
    paper = table.xs("paper", axis=1, level=1)
    assert paper.loc["Joint training"].tolist() == ["90,000", "103.9 M", "16,000"]
    assert set(paper.loc["All experts"]) == {""}
    assert "TA + representation" not in table.index


def test_subsets_by_hand():
    """Figure 1: mean performance of the merged tasks relative to the experts of the same seed."""
    subset = {
        "tasks": ["segmentation", "depth"],
        "alpha": 0.3,
        "metrics": {"segmentation": 30.0, "depth": 0.4},
    }
    record = {"seed": 1, "details": {"subsets": [subset]}}
    points = tables.subset_scores([record], all_models(), "nyuv2")
    assert points.to_dict("records") == [
        {"seed": 1, "tasks": "segmentation+depth", "size": 2, "alpha": 0.3, "performance": 0.5}
    ]


def test_values_are_compared_at_the_papers_scale_only():
    """Without records of that scale the column says so; with them, a Δ too far away is marked."""
    frame = frame_of(**{name: [0.8, 0.9] for name in PAPER_ROWS if name != "expert"})
    column = ("Δ_MTL, %", "at its scale")
    assert set(tables.paper_beside_ours(frame, "nyuv2", PAPER)[column].iloc[1:]) == {"not run"}
    full = frame_of(task_arithmetic=[0.75], ties=[0.6])  # the paper: -27.5 and -32.8
    beside = tables.paper_beside_ours(frame, "nyuv2", PAPER, full)[column]
    assert beside[["TA", "TIES", "Joint training"]].tolist() == ["-25.0", "-40.0, differs", "not run"]


def test_pattern_by_hand():
    """The paper's own order has rank correlation 1, its reverse -1; shares are those of the loss."""
    printed = {m: PAPER["table1_nyuv2"][r][-1] for m, r in PAPER_ROWS.items() if r in PAPER["table1_nyuv2"]}
    del printed["expert"]
    same = frame_of(**{model: [1 + delta / 100] for model, delta in printed.items()})
    table = tables.pattern(same, "nyuv2", PAPER)
    assert table.loc["order of the methods (rank correlation of Δ)", "ours"] == "1.00"
    share = "share of the loss recovered by TA + heads"
    assert table.loc[share].tolist() == ["80 %", "80 %"]  # from -27.5 to -5.4
    assert table.loc["methods that lose against the experts"].tolist() == ["7 of 7", "7 of 7"]
    turned = frame_of(**{model: [1.4 - delta / 100] for model, delta in printed.items()})
    table = tables.pattern(turned, "nyuv2", PAPER)
    assert table.loc["order of the methods (rank correlation of Δ)", "ours"] == "-1.00"
    assert table.loc["methods that lose against the experts", "ours"] == "0 of 7"
