"""report.beyond: curves and savings against hand computation."""

import copy

import pandas as pd
import pytest
from stories import cost_record

from report import beyond
from report.tables import Findings
from simo.tasks import tasks_of

TASKS = [task.name for task in tasks_of("nyuv2")]


def curves_of(rows):
    """A frame of curves from (method, images, seconds, delta), two seeds a point either side of it."""
    return pd.DataFrame(
        [
            {"seed": seed, "method": method, "images": images, "seconds": seconds, "delta": delta + shift}
            for method, images, seconds, delta in rows
            for seed, shift in ((0, -1.0), (1, 1.0))
        ]
    )


def test_curves_are_relative_to_the_experts_of_the_seed():
    """Δ by hand: half the experts' mIoU, their depth error, twice their angle: (50 + 100 + 50) / 3 - 100."""
    experts = pd.DataFrame([[40.0, 0.5, 20.0]], columns=TASKS)
    experts.index = pd.MultiIndex.from_tuples([("expert", 2)], names=["model", "seed"])
    metrics = dict(zip(TASKS, (20.0, 0.5, 40.0), strict=True))
    row = {"method": "heads", "images": 4, "seconds": 1.5, "metrics": metrics}
    records = [{"seed": 2, "details": {"curves": [row]}, "provenance": {}}]
    curves = beyond.realignment_curves(Findings(records, experts, "nyuv2", []))
    row = curves.drop(columns="delta").to_dict("records")[0]
    assert row == {"seed": 2, "method": "heads", "images": 4, "seconds": 1.5} | dict(
        zip(TASKS, (50.0, 100.0, 50.0), strict=True)
    )
    assert curves.delta[0] == pytest.approx(-100 / 3)


def test_savings_by_hand():
    """The least number of images that reaches the mark counts, with its own time; factors follow."""
    rows = [("heads", 16, 9.0, -30.0), ("heads", 256, 10.0, -20.0)]
    rows += [
        ("closed form", 4, 0.5, -40.0),
        ("closed form", 64, 2.5, -20.0),
        ("closed form", 256, 5.0, -10.0),
    ]
    table = beyond.savings({"nyuv2": curves_of(rows)}, {"nyuv2": -50.0})
    few, all_of_them = (table.loc[f"NYUv2, {count} labelled images"] for count in (16, 256))
    assert (all_of_them["Δ of heads"], all_of_them["seconds"]) == ("-20.0", "10.0")
    assert all_of_them["closed form needs"] == few["closed form needs"] == "64 images, about 2.5 s"
    assert (all_of_them["times fewer images"], all_of_them["times faster"]) == ("4.0", "4.0")
    assert (few["times fewer images"], few["times faster"]) == ("0.2", "3.6")
    assert set(table["a factor of 10 in either"]) == {"no"}
    rows[2:] = [("closed form", 16, 2.0, -20.0)]
    assert list(beyond.savings({"nyuv2": curves_of(rows)}, {"nyuv2": -50.0})["a factor of 10 in either"]) == [
        "no",
        "yes",
    ]  # images
    rows[2:] = [("closed form", 256, 1.0, -20.0)]
    assert list(beyond.savings({"nyuv2": curves_of(rows)}, {"nyuv2": -50.0})["a factor of 10 in either"]) == [
        "no",
        "yes",
    ]  # time


def test_time_that_is_not_known_settles_nothing():
    """An interrupted run says how few images suffice, and not how fast."""
    rows = [("heads", 64, 9.0, -20.0), ("heads", 256, 9.0, -20.0), ("closed form", 16, float("nan"), -20.0)]
    table = beyond.savings({"nyuv2": curves_of(rows)}, {"nyuv2": -50.0})
    assert table["closed form needs"].tolist() == ["16 images, interrupted"] * 2
    assert table["times faster"].tolist() == ["interrupted"] * 2
    assert table["a factor of 10 in either"].tolist() == ["unknown", "yes"]


def test_a_lucky_point_does_not_count_as_reached():
    """Closed form that is good enough from 4 images but not from 16 needs the 64 from which it stays so."""
    rows = [("heads", 64, 9.0, -20.0)]
    rows += [("closed form", n, 1.0, delta) for n, delta in ((4, -19.0), (16, -21.0), (64, -18.0))]
    assert (
        beyond.savings({"nyuv2": curves_of(rows)}, {"nyuv2": -50.0}).iloc[0]["closed form needs"]
        == "64 images, about 1.0 s"
    )


def test_mark_that_is_not_reached_is_shown():
    """Where closed form falls short at every size, the table says so, and claims no factor."""
    rows = [("heads", 256, 10.0, -5.0), ("closed form", 256, 2.0, -10.0)]
    row = beyond.savings({"taskonomy": curves_of(rows)}, {"taskonomy": -50.0}).iloc[0]
    assert row["closed form needs"] == "more than 256 images"
    assert "times faster" not in row


def test_worse_than_not_realigning_sets_no_mark():
    """Labelled heads that end below the merged model as it is are nothing to be as good as."""
    rows = [("heads", 4, 9.0, -50.0), ("closed form", 4, 1.0, -20.0)]
    row = beyond.savings({"nyuv2": curves_of(rows)}, {"nyuv2": -40.0}).iloc[0]
    assert row["closed form needs"] == "none: bare is better"
    assert "times faster" not in row


def curves_table(monkeypatch, rows):
    """The table of some curves, whatever records they come from."""
    monkeypatch.setattr(beyond, "realignment_curves", lambda *_: curves_of(rows))
    return beyond.curves_table(Findings([], None, "nyuv2", []))


def test_table_leaves_out_what_not_all_were_given(monkeypatch):
    """Closed form alone has a point at 8 images: the table has no column for it."""
    rows = [("heads", 4, 1.0, -30.0), ("closed form", 4, 1.0, -20.0), ("closed form", 8, 1.0, -10.0)]
    assert list(curves_table(monkeypatch, rows).columns) == ["4 images"]


def test_table_shows_mean_and_spread(monkeypatch):
    """Two seeds a point either side: the standard deviation is √2."""
    row = curves_table(monkeypatch, [("heads", 4, 1.0, -30.0), ("heads", 16, 1.0, -20.0)]).loc["heads"]
    assert row.to_dict() == {"4 images": "-30.0\u00a0±\u00a01.4", "16 images": "-20.0\u00a0±\u00a01.4"}


def frame_of(**deltas):
    """Scores of one seed: experts, and models whose loss is all in mIoU."""
    rows = {"expert": [40.0, 0.5, 20.0, 100.0, 100.0, 100.0, 0.0]}
    rows |= {name: [0.0, 0.0, 0.0, 100 + 3 * delta, 100.0, 100.0, delta] for name, delta in deltas.items()}
    index = pd.MultiIndex.from_product([rows, [0]], names=["model", "seed"])
    columns = [*TASKS, *(f"{task} %" for task in TASKS), "printed"]
    return pd.DataFrame(list(rows.values()), index, columns)


def test_repairs_are_those_of_most_images():
    """Per cent of the expert by task and Δ, of every method from the largest number of images."""
    frame = frame_of(task_arithmetic=-20.0, tall_mask=-9.0, joint=-3.0)
    names = list(beyond.REPAIRS)[3:]
    rows = [
        {"method": name, "images": n, "metrics": dict(zip(TASKS, (miou, 0.5, 20.0), strict=True))}
        for name in names
        for n, miou in ((4, 0.0), (16, 40.0 - 3 * names.index(name)))
    ]
    records = [{"seed": 0, "details": {"curves": rows}, "provenance": {}}]
    table = beyond.repairs_table(Findings(records, frame, "nyuv2", []))
    assert list(table.index) == list(beyond.REPAIRS.values())
    assert table.loc["merged"].tolist() == ["40", "100", "100", "-20.0"]
    expected = [-20, -9, -3, *(-2.5 * number for number in range(len(names)))]
    assert table["Δ printed, %"].tolist() == [f"{delta + 0:+.1f}" for delta in expected]


def test_controls_stand_beside_the_main_models():
    """What the notebook found, with its time, and what the main experiments have."""
    models = ["task_arithmetic", *beyond.BESIDE_JOINT]
    frame = frame_of(**{name: -10.0 - number for number, name in enumerate(models)})
    row = {"name": "TA + closed form", "seconds": 2.4}
    row["metrics"] = dict(zip(TASKS, (34.0, 0.5, 20.0), strict=True))  # 15 % less in one of three
    records = [{"seed": 0, "details": {"controls": [row]}, "provenance": {}}]
    table = beyond.controls_table(Findings(records, frame, "nyuv2", []))
    assert table["TA + closed form"] == "-5.0, about 2.4 s"
    assert table[["TA", "Joint training", "Pretrained + representation"]].tolist() == [
        "-10.0",
        "-11.0",
        "-15.0",
    ]


def test_field_table_by_hand():
    """Δ bare and realigned, methods ordered by closed form, the best option, seconds those of merging."""
    experts = pd.DataFrame([[40.0, 0.5, 20.0]], columns=TASKS)
    experts.index = pd.MultiIndex.from_tuples([("expert", 0)], names=["model", "seed"])

    def scores(merged, solved):
        ways = {"": merged, "heads": solved, "representation": solved, "closed form": solved}
        return [
            {"realignment": way, "seconds": 7.4, "metrics": dict(zip(TASKS, (miou, 0.5, 20.0), strict=True))}
            for way, miou in ways.items()
        ]

    scans = [{"options": {"density": share}, "alpha": 0.2 + share, "score": share} for share in (0.2, 0.5)]
    methods = [
        {"method": "lot", "scores": scores(10.0, 20.0), "scans": []},
        {"method": "ties", "scores": scores(20.0, 40.0), "scans": scans},
    ]
    for number, row in enumerate(methods):
        row["scores"][-1]["residual"] = {"segmentation": 0.1, "depth": 0.2, "normals": 0.3 + 0.3 * number}
    records = [{"seed": 0, "details": {"methods": methods}, "provenance": {}}]
    table = beyond.field_table(Findings(records, experts, "nyuv2", []))
    assert list(table.index) == ["TIES (2023)", "LOT (2025), images"]
    # mIoU is a third of Δ: a half of it is -16.7, a quarter -25
    zero = ["+0.0"] * 3
    assert table.loc["TIES (2023)"].tolist() == ["-16.7", *zero, "0.7", "density 0.5", "7", "0.30"]
    assert table.loc["LOT (2025), images", ["merged", "residual"]].tolist() == ["-25.0", "0.20"]
    slower = copy.deepcopy(methods)
    slower[1]["scores"][0]["seconds"] = 9.6  # other work ran beside: the least of both seeds is shown
    seeds = enumerate((methods, slower))
    records = [{"seed": seed, "details": {"methods": own}, "provenance": {}} for seed, own in seeds]
    both = pd.concat([experts, experts.rename({0: 1}, level="seed")])
    assert beyond.field_table(Findings(records, both, "nyuv2", []))["seconds to merge"].tolist() == ["7", "7"]
    for record in records:
        record["provenance"] = {"resumed": True}  # nobody knows how long it took
    assert "seconds to merge" not in beyond.field_table(Findings(records, both, "nyuv2", []))


def test_neighbours_table_by_hand():
    """Best first, whatever the order of the record; seconds of a continued run are left out of their mean."""
    frame = pd.DataFrame([[40.0, 0.5, 20.0]] * 2, columns=TASKS)
    frame.index = pd.MultiIndex.from_tuples([("expert", 0), ("expert", 1)], names=["model", "seed"])

    def row(name, miou, seconds, passes=1, added=0):
        metrics = dict(zip(TASKS, (miou, 0.5, 20.0), strict=True))
        return {"name": name, "seconds": seconds, "passes": passes, "added": added, "metrics": metrics}

    rows = [row("FeatCal", 10.0, 3.0), row("SurgeryV2", 20.0, 40.0, 3, 73728)]
    records = [
        {"seed": seed, "details": {"rows": rows}, "provenance": {"resumed": seed == 1}} for seed in (0, 1)
    ]
    table = beyond.neighbours_table(Findings(records, frame, "nyuv2", []))
    assert list(table.index) == ["SurgeryV2", "FeatCal"]
    # mIoU is a third of Δ: a half of it is -16.7, a quarter -25
    found = table.loc["SurgeryV2"].tolist()
    assert found == ["50", "100", "100", "-16.7", "40", "3", "73,728"]
    assert table.loc["FeatCal", "Δ printed, %"] == "-25.0"
    continued = beyond.neighbours_table(Findings(records[1:], frame, "nyuv2", []))
    assert continued.loc["FeatCal", "seconds"] == "interrupted"


def test_joint_table_by_hand():
    """Variants beside plain joint training and realignment, best first, with what they cost."""
    models = ("expert", "joint", "task_arithmetic+heads", "task_arithmetic+representation")
    index = pd.MultiIndex.from_tuples([(model, 0) for model in models], names=["model", "seed"])
    frame = pd.DataFrame([[40.0, 0.5, 20.0, delta] for delta in (0.0, -5.0, -8.0, -7.0)], index=index)
    frame.columns = [*TASKS, "printed"]
    metrics = dict(zip(TASKS, (38.8, 0.5, 20.0), strict=True))  # a hundredth less in the mean
    variant = {"name": "dwa", "metrics": metrics, "cost": {"steps": 600, "samples": 1056, "seconds": 9.6}}
    records = [{"seed": 0, "details": {"variants": [variant]}, "provenance": {}}]
    main = [
        cost_record(0, "expert_depth", ("expert", 300, 1056, 9, 4.0)),
        cost_record(0, "expert_normals", ("expert", 300, 1056, 9, 5.0)),
        cost_record(0, "joint", ("joint", 500, 1056, 9, 8.0)),
        cost_record(0, "realign", ("task_arithmetic+heads", 600, 256, 9, 2.0)),
        cost_record(0, "realign", ("task_arithmetic+representation", 200, 256, 9, float("nan"))),
        cost_record(0, "merge", ("ties", 0, 256, 0, 1.0)),
    ]
    table = beyond.joint_table(Findings(records, frame, "nyuv2", main))
    assert list(table.index) == ["Joint, DWA", "Joint training", "TA + representation", "TA + heads"]
    assert table.loc["Joint, DWA"].tolist() == ["-1.0", "600", "1,056", "10", "", "", ""]
    assert table.loc["TA + heads"].tolist() == ["-8.0", "600", "256", "2", "1,200", "1,312", "11"]
    assert table.loc["TA + representation"].tolist() == ["-7.0", "200", "256", "", "800", "1,312", ""]
    scores = beyond.joint_scores(Findings(records, frame, "nyuv2", main))
    figure = beyond.joint_figure({"nyuv2": scores})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(table.index)
    main[1] = cost_record(0, "expert_normals", ("expert", 300, 1056, 9, float("nan")))
    assert beyond.joint_table(Findings(records, frame, "nyuv2", main)).loc["TA + heads"].iloc[-1] == ""


def test_balance_is_chosen_on_the_validation_split():
    """Of equal weights and two ways, the best on val, though not on test; trained on val is no candidate."""
    index = pd.MultiIndex.from_tuples([("expert", 0), ("joint", 0)], names=["model", "seed"])
    frame = pd.DataFrame([[40.0, 0.5, 20.0], [36.0, 0.5, 20.0]], index=index, columns=list(TASKS))

    def metrics(iou):
        return dict(zip(TASKS, (iou, 0.5, 20.0), strict=True))

    ways = {"dwa": (30.0, 38.0), "pcgrad": (34.0, 34.0), "validation too": (39.0, 40.0)}
    variants = [
        {"name": name, "val": metrics(val), "metrics": metrics(test)} for name, (val, test) in ways.items()
    ]
    records = [{"seed": 0, "details": {"variants": variants}}]
    main = [
        {"seed": 0, "results": [{"model": model, "split": "val", "metrics": metrics(iou)}]}
        for model, iou in (("expert", 40.0), ("joint", 33.0))
    ]
    (row,) = beyond.chosen_balance(Findings(records, frame, "nyuv2", main)).to_dict("records")
    assert row == {"seed": 0, "name": beyond.CHOSEN, "delta": pytest.approx(-5.0)}  # 34 of 40 in one of three
    assert beyond.chosen_balance(Findings(records, frame, "nyuv2", main[:1])).empty  # joint's are not kept


def test_seconds_of_a_continued_run_do_not_count():
    """They are too few; the score is as good as any."""
    experts = pd.DataFrame([[40.0, 0.5, 20.0]], columns=TASKS)
    experts.index = pd.MultiIndex.from_tuples([("expert", 0)], names=["model", "seed"])
    row = {"seconds": 1.5, "metrics": dict(zip(TASKS, (40.0, 0.5, 20.0), strict=True))}
    records = [{"seed": 0, "details": {"curves": [row]}, "provenance": {"resumed": True}}]
    found = beyond.realignment_curves(Findings(records, experts, "nyuv2", [])).iloc[0]
    assert found.delta == 0
    assert pd.isna(found.seconds)


def test_rules_that_choose_alpha_by_hand():
    """Each rule takes its own α of three, and Δ is that of closed form with it; one pair is out of order."""
    experts = dict(zip(TASKS, (40.0, 0.5, 20.0), strict=True))
    frame = pd.DataFrame([experts], index=pd.MultiIndex.from_tuples([("expert", 0)], names=["model", "seed"]))

    def row(alpha, residual, distance, val, test):
        scaled = [
            dict(zip(TASKS, (40.0 * r, 0.5 / r, 20.0 / r), strict=True)) for r in (val / 100, test / 100)
        ]
        apart = {"residual": dict.fromkeys(TASKS, residual), "distance": dict.fromkeys(TASKS, distance)}
        return {"method": "ties", "alpha": alpha, "val": scaled[0], "metrics": scaled[1]} | apart

    grid = [row(0.2, 0.3, 0.5, 70, 60), row(0.4, 0.1, 0.6, 80, 90), row(0.6, 0.2, 0.7, 85, 95)]
    records = [{"seed": 0, "details": {"alphas": grid}, "provenance": {}}]
    scan = [{"alpha": alpha, "score": score} for alpha, score in ((0.2, 0.5), (0.4, 0.3), (0.6, 0.1))]
    main = [
        {
            "experiment": "merge_ties",
            "seed": 0,
            "results": [],
            "details": {"scan": scan},
        },
        {
            "experiment": "expert",
            "seed": 0,
            "results": [{"model": "expert", "split": "val", "metrics": experts}],
            "details": {},
        },
    ]
    every = beyond.chosen_alphas(Findings(records, frame, "nyuv2", main))
    chosen = every[every.method == "ties"].set_index("rule")
    assert chosen.choice.to_dict() == {
        "before": "0.2",
        "after": "0.6",
        "distance": "0.2",
        "residual": "0.4",
        "capped": "0.4",
        "test": "0.6",
    }
    assert chosen.delta.tolist() == pytest.approx([-40, -5, -40, -10, -10, -5])
    assert chosen.order["residual"] == pytest.approx(-0.5)
    table = beyond.alphas_table(Findings(records, frame, "nyuv2", main))
    assert table.loc["TIES", beyond.RULES["residual"]] == "-10.0 (α\u00a00.4)"
    either = table.loc[beyond.EITHER, beyond.RULES["residual"]]
    assert either == "-10.0 (TIES α\u00a00.4)"  # there is no other
    # another seed is judged by what its own labels said
    frame = pd.concat([frame, frame.rename({0: 1}, level="seed")])
    turned = {"scan": [row | {"score": 1 - row["score"]} for row in scan]}
    main += [each | {"seed": 1} for each in main]
    main[2]["details"] = turned
    every = beyond.chosen_alphas(Findings([*records, records[0] | {"seed": 1}], frame, "nyuv2", main))
    before = every[(every.method == "ties") & (every.rule == "before")]
    assert before.set_index("seed").choice.to_dict() == {0: "0.2", 1: "0.6"}


def test_rules_that_choose_the_method_by_hand():
    """Before realignment the better score leads to TIES, the residual to task arithmetic, which is better."""
    experts = dict(zip(TASKS, (40.0, 0.5, 20.0), strict=True))
    frame = pd.DataFrame([experts], index=pd.MultiIndex.from_tuples([("expert", 0)], names=["model", "seed"]))

    def row(method, residual, share):
        values = dict(zip(TASKS, (40.0 * share, 0.5 / share, 20.0 / share), strict=True))
        apart = {name: dict.fromkeys(TASKS, residual) for name in ("residual", "distance")}
        return {"method": method, "alpha": 0.5, "val": values, "metrics": values} | apart

    grid = [row("task_arithmetic", 0.1, 0.9), row("ties", 0.2, 0.8)]
    records = [{"seed": 0, "details": {"alphas": grid}, "provenance": {}}]
    main = [
        {"experiment": f"merge_{name}", "seed": 0, "results": [], "details": {"scan": [best]}}
        for name, best in (
            ("task_arithmetic", {"alpha": 0.5, "score": 0.3}),
            ("ties", {"alpha": 0.5, "score": 0.4}),
        )
    ]
    results = [{"model": "expert", "split": "val", "metrics": experts}]
    main.append({"experiment": "expert", "seed": 0, "results": results, "details": {}})
    chosen = beyond.chosen_alphas(Findings(records, frame, "nyuv2", main))
    own = chosen[chosen.method == beyond.EITHER].set_index("rule")
    assert own.choice.to_dict() == dict.fromkeys(beyond.RULES, "TA α 0.5") | {"before": "TIES α 0.5"}
    assert own.delta["before"] == pytest.approx(-20)
    # another density, which was scored by itself: best before and by its residual, not after
    grid.append(row("ties", 0.05, 0.7) | {"options": {"density": 0.5}, "bare": experts})
    chosen = beyond.chosen_alphas(Findings(records, frame, "nyuv2", main))
    own = chosen[chosen.method == beyond.EITHER].set_index("rule")
    other = dict.fromkeys(("before", "distance", "residual", "capped"), "TIES 0.5 α 0.5")
    assert own.choice.to_dict() == dict.fromkeys(beyond.RULES, "TA α 0.5") | other
    assert set(chosen.method) == {"task_arithmetic", "ties", beyond.EITHER}  # it is no choice of α alone
    # of a method without a merge of its own, α and the option are chosen together
    grid += [
        row("knots", 0.3 - share / 10, share) | {"options": {"density": share}, "bare": experts}
        for share in (0.5, 0.6)
    ]
    chosen = beyond.chosen_alphas(Findings(records, frame, "nyuv2", main))
    own = chosen[chosen.method == "knots"].set_index("rule")
    assert own.choice["residual"] == "0.6 α 0.5"
    table = beyond.alphas_table(Findings(records, frame, "nyuv2", main))
    assert table.loc["KnOTS", beyond.RULES["residual"]] == "-40.0 (0.6 α\u00a00.5)"


def test_residual_by_task_by_hand():
    """At the α of the least residual: told where the task with most left keeps least."""
    frame = pd.DataFrame(
        [[40.0, 0.5, 20.0]] * 2,
        pd.MultiIndex.from_product([["expert"], [0, 1]], names=["model", "seed"]),
        TASKS,
    )

    def row(method, alpha, residuals, kept):
        values = (40.0 * kept[0], 0.5 / kept[1], 20.0 / kept[2])
        residual, metrics = (dict(zip(TASKS, own, strict=True)) for own in (residuals, values))
        return {"method": method, "alpha": alpha, "residual": residual, "metrics": metrics}

    poor = row("ties", 0.1, (0.9, 0.1, 0.1), (0.1, 0.9, 0.9))  # told, but another α leaves less
    grids = [
        [poor, row("ties", 0.5, (0.2, 0.1, 0.3), (0.9, 0.8, 0.7))],
        [
            row("ties", 0.5, (0.1, 0.2, 0.3), (0.7, 0.8, 0.9)),
            poor | {"method": "average", "options": {"a": 1}},
        ],
    ]
    records = [{"seed": n, "details": {"alphas": grid}, "provenance": {}} for n, grid in enumerate(grids)]
    found = beyond.residual_by_task(Findings(records, frame, "nyuv2", []))
    assert found[["seed", "method", "told"]].values.tolist() == [[0, "ties", True], [1, "ties", False]]
    assert found.order.tolist() == pytest.approx([-0.5, 1.0])


def test_a_task_that_hardly_varies_does_not_choose_alone():
    """Residuals of 3 and 2 at one task count as 1: the other two decide, against the plain mean."""
    experts = dict(zip(TASKS, (40.0, 0.5, 20.0), strict=True))
    frame = pd.DataFrame([experts], index=pd.MultiIndex.from_tuples([("expert", 0)], names=["model", "seed"]))

    def row(alpha, residuals):
        apart = {kind: dict(zip(TASKS, residuals, strict=True)) for kind in ("residual", "distance")}
        return {"method": "ties", "alpha": alpha, "val": experts, "metrics": experts} | apart

    records = [{"seed": 0, "details": {"alphas": [row(0.1, (0.2, 0.2, 3.0)), row(0.9, (0.6, 0.6, 2.0))]}}]
    records[0]["provenance"] = {}
    scan = {"scan": [{"alpha": alpha, "score": 0.5} for alpha in (0.1, 0.9)]}
    main = [
        {"experiment": "merge_ties", "seed": 0, "results": [], "details": scan},
        {
            "experiment": "expert",
            "seed": 0,
            "results": [{"model": "expert", "split": "val", "metrics": experts}],
            "details": {},
        },
    ]
    chosen = beyond.chosen_alphas(Findings(records, frame, "nyuv2", main))
    choices = chosen[chosen.method == "ties"].set_index("rule").choice
    assert (choices.residual, choices.capped) == ("0.9", "0.1")
