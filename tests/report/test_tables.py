"""report.tables: from results made by hand to scores and text."""

import json
from pathlib import Path

import pandas as pd
import pytest
from stories import EXPERT, HALF, TASKS, all_models, cost_record, frame_of, records_of

from report import tables
from report.paper import PAPER_ROWS
from report.tables import MODELS, recomputed_beside_committed, scores, table_of
from simo.errors import SimoError

PAPER = json.loads((Path(__file__).parents[2] / "book" / "paper_numbers.json").read_text())


def test_scores_by_hand():
    """Relative to its seed's experts: half the mIoU and twice the errors are 50 % each, Δ -50 and -83.3."""
    frame = scores(records_of("expert", 0, EXPERT) + records_of("ties", 0, HALF), "nyuv2")
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
    records = records_of("expert", 0, EXPERT) + records_of("expert", 1, better)
    frame = scores(records + records_of("ties", 0, EXPERT) + records_of("ties", 1, EXPERT), "nyuv2")
    assert frame.loc["ties"].printed.tolist() == pytest.approx([0, -50])


def test_scores_use_the_test_split_only():
    """Validation scores do not leak into a table."""
    records = records_of("expert", 0, EXPERT) + records_of("ties", 0, EXPERT)
    more = records_of("ties", 0, HALF, split="val")
    pd.testing.assert_frame_equal(scores(records + more, "nyuv2"), scores(records, "nyuv2"))


def test_a_metric_that_is_there_twice_is_refused():
    """Of two records that say what a model scores neither is taken in silence."""
    records = records_of("expert", 0, EXPERT) + records_of("ties", 0, EXPERT)
    with pytest.raises(SimoError, match=r"ties, seed 0, test: two records have the metric of \['depth'"):
        scores(records + records_of("ties", 0, HALF), "nyuv2")


def test_models_are_in_the_tables_order():
    """Rows follow the paper's order, not the alphabet, seeds ascending."""
    frame = frame_of(**{name: [0.9, 0.8] for name in ("ties", "joint", "ties+heads", "task_arithmetic")})
    assert frame.index.tolist() == [
        (name, seed)
        for name in ("expert", "joint", "task_arithmetic", "ties", "ties+heads")
        for seed in (0, 1)
    ]


@pytest.mark.parametrize("own", [[], records_of("expert", 0, EXPERT[:2])])
def test_incomplete_experts_are_refused(own):
    """Without every expert of a seed there is nothing to be relative to."""
    records = own + records_of("ties", 0, HALF)
    with pytest.raises(SimoError, match=r"nyuv2, seed 0: no record of expert has \[.*'normals'\]"):
        scores(records + records_of("expert", 1, EXPERT), "nyuv2")


def test_what_has_no_results_is_refused():
    """No record, and one without a result, and a model without one of the tasks, are told by name."""
    for records in ([], [{"seed": 0, "results": []}]):
        with pytest.raises(SimoError, match="nyuv2: no expert has a record"):
            scores(records, "nyuv2")
    with pytest.raises(SimoError, match=r"seed 0: no record of ties has \['depth', 'normals'\]"):
        scores(records_of("expert", 0, EXPERT) + records_of("ties", 0, HALF[:1]), "nyuv2")


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
    table = tables.paper_beside_ours({"ours": frame}, "nyuv2", PAPER)
    paper, ours = (table.xs(side, axis=1, level=1) for side in ("paper", "ours"))
    ours = ours.replace(r"\s±.*", "", regex=True)
    assert paper.loc["TA"].tolist() == ["65.78 (92.9)", "0.4171 (55.5)", "26.13 (69.0)", "-27.5"]
    assert ours.loc["TA"].tolist() == ["85.0", "85.0", "85.0", "-15.0"]
    assert paper.loc["TIES + representation"].tolist()[0] == "68.49 (96.8)"
    assert ours.loc["Experts"].tolist() == ["100.0", "100.0", "100.0", ""]
    in_table_1 = [model for model in PAPER_ROWS if model != "tall_mask"]
    assert table.index.tolist() == [MODELS[model] for model in in_table_1]


def test_change_of_nothing_is_shown():
    """A model exactly at the experts' level reads +0.0: only the experts' own row is empty."""
    frame = frame_of(**{name: [1.0] for name in PAPER_ROWS if name != "expert"})
    assert tables.paper_beside_ours({"ours": frame}, "nyuv2", PAPER).loc["TIES"].tolist()[-1] == "+0.0"
    assert table_of(frame, "nyuv2").loc["TIES"].tolist()[-2:] == ["+0.0", "+0.0"]


def test_recomputed_beside_committed():
    """A recomputed seed agrees within the tolerance or three deviations of the seeds."""
    committed = frame_of(**{"ties": [0.5, 0.6], "joint": [0.9, 0.95]})
    fresh = frame_of(**{"ties": [0.5, 0.9], "joint": [0.9, 0.969], "average": [0.8, 0.8]})
    fresh = fresh[fresh.index.get_level_values("seed") == 1]
    table = recomputed_beside_committed(committed, fresh)
    assert table.index.tolist() == [("Joint training", 1), ("TIES", 1)]
    assert table.loc[("TIES", 1)].tolist() == ["-45.0\u00a0±\u00a07.1", "-40.0", "-10.0", "21.2", "NO"]
    assert table.loc[("Joint training", 1)].tolist() == [
        "-7.5\u00a0±\u00a03.5",
        "-5.0",
        "-3.1",
        "10.6",
        "yes",
    ]


def test_a_seed_that_is_not_committed_has_nothing_beside_it():
    """Its table is empty, and no error after hours of computing."""
    committed, fresh = frame_of(ties=[0.7]), frame_of(ties=[0.7])
    fresh.index = fresh.index.set_levels([5], level="seed")
    assert recomputed_beside_committed(committed, fresh).empty


def test_recomputed_seed_of_steady_results_has_the_fixed_tolerance():
    """Where the committed seeds agree closely, the fixed tolerance decides."""
    committed = frame_of(**{"joint": [0.95, 0.95]})
    for value, verdict in ((0.969, "yes"), (0.971, "NO")):
        fresh = frame_of(**{"joint": [0.95, value]})
        table = recomputed_beside_committed(committed, fresh)
        assert table.loc[("Joint training", 1)].tolist()[-2:] == ["2.0", verdict]


def test_recovered_by_hand():
    """From -40 to -10 is three quarters of the way back to the experts."""
    assert tables.recovered({"ties": -40.0, "ties+heads": -10.0}, "ties", "heads") == 75


def test_every_row_has_a_label():
    """A model that can be computed can be shown; the paper's rows exist in the paper's table."""
    assert set(PAPER_ROWS) <= set(MODELS)
    assert set(PAPER_ROWS.values()) <= PAPER["table3_taskonomy"].keys()
    assert set(PAPER_ROWS.values()) - {"TALL"} <= PAPER["table1_nyuv2"].keys()
    assert set(tables.CONTROLS) < set(MODELS)


def test_seconds_of_two_machines_are_not_averaged():
    """They are those of the machine that most records come from; of the other seed, steps still count."""
    records = [
        cost_record(seed, name, ("expert", steps, 800, 2_000_000, seconds))
        for seed, name, steps, seconds in (
            (0, "expert_depth", 100, 500.0), (1, "expert_depth", 300, 10.0), (1, "expert_normals", 300, 30.0)
        )
    ]  # fmt: skip
    for record, name in zip(records, ("one", "two", "two"), strict=True):
        record["provenance"]["device"] = f"{name}, 1 thread(s)"
    assert tables.seeds_on_other_devices(records) == set()
    for record in records[1:]:
        record["provenance"]["device"] = "NVIDIA H200"
    assert tables.seeds_on_other_devices(records) == {0}
    row = tables.efficiency(records).loc["An expert (ours: mean over tasks)"]
    assert (row["steps", "ours"], row["seconds", "ours"]) == ("200", "20")


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
    table = tables.efficiency(records, PAPER)
    table = table.replace("\u00a0", " ", regex=True)
    ours = table.xs("ours", axis=1, level=1)
    assert ours.loc["An expert (ours: mean over tasks)"].tolist() == ["200", "2.00 M", "800", "40"]
    assert ours.loc["All experts"].tolist() == ["400", "4.00 M", "800", "80"]
    assert ours.loc["Joint training"].tolist() == ["500", "3.00 M", "800", "60"]
    assert ours.loc["TA + heads"].tolist() == ["40", "1.00 M", "200", "5"]
    assert ours.loc["TA + heads, with its experts"].tolist() == ["440", "", "1,000", "85"]
    records[0] = cost_record(0, "expert_depth", ("expert", 100, 800, 2_000_000, float("nan")))  # continued
    table = tables.efficiency(records).replace("\u00a0", " ", regex=True)
    assert table.loc["All experts", ("seconds", "ours")] == "120"  # of the other seed
    table = tables.efficiency(records, PAPER).replace("\u00a0", " ", regex=True)
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
    points = tables.subset_scores(tables.Findings([record], all_models(), "nyuv2", []))
    assert points.to_dict("records") == [
        {"seed": 1, "tasks": "segmentation+depth", "size": 2, "performance": 0.5}
    ]


def test_values_are_compared_at_the_papers_scale_only():
    """Without records of that scale the column says so; with them, a Δ too far away is marked."""
    frame = frame_of(**{name: [0.8, 0.9] for name in PAPER_ROWS if name != "expert"})
    column = ("Δ_MTL, %", "at its scale")
    assert set(
        tables.paper_beside_ours({"ours": frame, "at its scale": None}, "nyuv2", PAPER)[column].iloc[1:]
    ) == {"not run"}
    full = frame_of(task_arithmetic=[0.75], ties=[0.6], joint=[1.1])  # the paper: -27.5, -32.8 and -5.4
    beside = tables.paper_beside_ours({"ours": frame, "at its scale": full}, "nyuv2", PAPER)
    far = ["-25.0", "-40.0, differs", "+10.0, differs", "not run"]
    assert beside.loc[["TA", "TIES", "Joint training", "TA + heads"], column].tolist() == far
    assert ("depth, %", "ours") in beside
    assert ("depth, %", "at its scale") not in beside  # Δ says it


def test_misprints_are_marked():
    """A Δ that the paper's own metrics do not give has a star."""
    deltas = tables.paper_beside_ours({}, "taskonomy", PAPER)["Δ_MTL, %", "paper"]
    assert deltas[["Joint training", "TA", "TIES + heads"]].tolist() == ["-25.7", "-83.3*", "-31.1*"]


def test_pattern_by_hand():
    """The paper's own order has rank correlation 1, its reverse -1; shares are those of the loss."""
    printed = {m: PAPER["table1_nyuv2"][r][-1] for m, r in PAPER_ROWS.items() if r in PAPER["table1_nyuv2"]}
    del printed["expert"]
    same = frame_of(**{model: [1 + delta / 100] for model, delta in printed.items()})
    table = tables.pattern({"ours": same}, "nyuv2", PAPER, {})
    assert table.filter(like="order of the methods", axis=0).ours.item() == "1.00"
    share = "share of the loss recovered by TA + heads"
    assert table.loc[share].tolist() == ["80 %", "80 %, experts' gain not run"]  # from -27.5 to -5.4
    assert table.loc["methods that lose against the experts"].tolist() == ["7 of 7", "7 of 7"]
    better = frame_of(
        **{model: [1 + delta / 100] for model, delta in printed.items()}, **{"expert+heads": [1.08]}
    )
    assert tables.pattern({"ours": better}, "nyuv2", PAPER, {}).loc[share, "ours"] == "experts gain, too"
    trained = frame_of(
        **{model: [1 + delta / 100] for model, delta in printed.items()}, **{"expert+heads": [1.02]}
    )
    assert tables.pattern({"ours": trained}, "nyuv2", PAPER, {}).loc[share, "ours"] == "80 %"
    nothing = {"ours": pd.DataFrame({"task_arithmetic": [0.0], "ties": [0.4]}), "other": pd.DataFrame()}
    none = tables.pattern({"ours": trained}, "nyuv2", PAPER, nothing)
    assert none.loc[share, "ours"] == "nothing merged"
    assert none.loc[share.replace("TA", "TIES"), "ours"].endswith("%")
    small = frame_of(**{"task_arithmetic": [0.96], "task_arithmetic+heads": [0.98], "expert+heads": [1.0]})
    assert tables.pattern({"ours": small}, "nyuv2", PAPER, {}).loc[share, "ours"] == "no clear loss"
    deep = {"constant": [0.3], "ties": [0.2], "ties+heads": [0.65], "expert+heads": [1.0]}
    found = tables.pattern({"ours": frame_of(**deep)}, "nyuv2", PAPER, {}).ours
    assert found[f"{share.replace('TA', 'TIES')}, from a constant"] == "50 %"  # -35 of -70, not of -80
    # ranks are those among the three that both have
    three = frame_of(joint=[0.7], task_arithmetic=[0.8], ties=[0.9])
    found = tables.pattern({"ours": three}, "nyuv2", PAPER, {}).filter(like="order of the methods", axis=0)
    assert found.ours.item() == "-1.00"
    turned = frame_of(**{model: [1.4 - delta / 100] for model, delta in printed.items()})
    table = tables.pattern({"ours": turned}, "nyuv2", PAPER, {})
    assert table.filter(like="order of the methods", axis=0).ours.item() == "-1.00"
    assert table.loc["methods that lose against the experts", "ours"] == "0 of 7"


def test_shares_are_of_the_seeds_that_merged():
    """Of three seeds one took α = 0: its half, of the pretrained encoder, is in no share; two halves are."""
    frame = frame_of(
        **{"task_arithmetic": [0.6, 0.5, 0.6], "task_arithmetic+heads": [0.9, 0.75, 0.9]},
        **{"expert+heads": [1.0, 1.0, 1.0], "pretrained+heads": [0.7, 0.75, 0.7], "constant": [0.55] * 3},
    )
    chosen = pd.DataFrame({"task_arithmetic": [0.3, 0.0, 0.1]})
    table = tables.pattern({"ours": frame}, "nyuv2", PAPER, {"ours": chosen}).ours
    assert table["share of the loss recovered by TA + heads"] == "75 %, 2 of 3 seeds"
    assert table["share of the gain by TA + heads that needs no merging"] == "33 %, 2 of 3 seeds"
    frame = frame.drop([("task_arithmetic+heads", 0), ("task_arithmetic+heads", 2)])  # not run on those
    table = tables.pattern({"ours": frame}, "nyuv2", PAPER, {"ours": chosen}).ours
    assert table["share of the loss recovered by TA + heads"] == "not run"
    # only on the seed that merged nothing is a constant prediction ahead
    assert "share of the loss recovered by TA + heads, from a constant" not in table


def test_task_vectors_are_compared_once_a_pair():
    """The least and the largest of all seeds' cosines, without a vector's own of 1, and of all lengths."""

    def record(cosine, *lengths):
        cosines = {"a": {"a": 1.0, "b": cosine}, "b": {"a": cosine, "b": 1.0}}
        details = {"cosines": cosines, "relative_norms": dict(zip("ab", lengths, strict=True))}
        return {"experiment": "merge_task_arithmetic", "details": details}

    other = {"experiment": "joint", "details": {}}
    found = tables.vectors([record(0.25, 0.0051, 0.2), record(-0.001, 0.3, 0.28), other])
    assert [*found.values()] == ["0.00 to 0.25", "0.51 to 30"]
    assert tables.vectors([]) == {}


def test_nothing_is_less_than_zero_by_rounding():
    """A mean of −.04 is 0.0 in a table, not −0.0."""
    assert tables.spread(pd.Series([-0.04])) == "+0.0"
    assert tables.spread(pd.Series([-0.001, 0.0]), ".2f") == "0.00\u00a0±\u00a00.00"
