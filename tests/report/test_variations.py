"""report.variations: tables from records made by hand."""

import pandas as pd
import pytest

from report import variations
from report.tables import Findings
from simo.tasks import tasks_of

TASKS = [task.name for task in tasks_of("nyuv2")]


def metrics(delta):
    """Metrics whose Δ is this, against the experts of `frame`: all of it in mIoU."""
    return dict(zip(TASKS, (40.0 * (1 + 3 * delta / 100), 0.5, 20.0), strict=True))


def frame(seeds=2):
    models = {"expert": 0.0, "joint": -2.0, "task_arithmetic": -20.0, "task_arithmetic+heads": -8.0}
    index = pd.MultiIndex.from_product([models, range(seeds)], names=["model", "seed"])
    rows = [[*metrics(delta).values(), delta] for delta in models.values() for _ in range(seeds)]
    return pd.DataFrame(rows, index=index, columns=[*TASKS, "printed"])


def records(details, seeds=2):
    return [{"seed": seed, "details": details, "provenance": {"resumed": False}} for seed in range(seeds)]


def scores(merged, heads):
    return [
        {"way": "merged", "score": 0.8, "metrics": metrics(merged)},
        {"way": "heads", "score": 0.9, "metrics": metrics(heads)},
        {"way": "closed form", "score": 0.9, "metrics": metrics(heads + 1)},
    ]


def test_alpha_chosen_before_and_after():
    """Before: the bare model's own choice; after: where the realigned one scores best, not where Δ does."""
    alphas = [
        {"alpha": 0.2, "way": "merged", "score": 0.8, "metrics": metrics(-20)},
        {"alpha": 0.2, "way": "heads", "score": 0.90, "metrics": metrics(-10)},
        {"alpha": 0.5, "way": "merged", "score": 0.7, "metrics": metrics(-30)},
        {"alpha": 0.5, "way": "heads", "score": 0.95, "metrics": metrics(-12)},
    ]
    details = {"alphas": alphas, "parts": {"everything": {"alpha": 0.2}}}
    table = variations.alpha_table(Findings(records(details), frame(), "nyuv2", []))
    assert table.loc["heads"].to_dict() == {
        "α chosen before": "0.2, 0.2",
        "Δ, α chosen before": "-10.0",
        "α chosen after": "0.5, 0.5",
        "Δ, α chosen after": "-12.0",
    }
    assert list(table.index) == ["heads"]


def test_adapters_by_kind_and_rank():
    """One row a seed and adapter, with Δ against the seed's experts."""
    adapters = [
        {"adapter": "paper", "rank": 16, "metrics": metrics(-5)},
        {"adapter": "lora", "rank": 2, "metrics": metrics(-4)},
    ]
    found = variations.adapter_scores(Findings(records({"adapters": adapters}), frame(), "nyuv2", []))
    assert found.method.tolist() == ["the paper's adapter", "LoRA"] * 2
    assert found.delta.tolist() == pytest.approx([-5, -4, -5, -4])


def test_parts_by_hand():
    """Share of the values that are merged, α by seed, and Δ of every way."""
    parts = {
        "everything": {"alpha": 0.3, "values": 200, "scores": scores(-20, -8)},
        "attention": {"alpha": 0.5, "values": 50, "scores": scores(-10, -7)},
    }
    table = variations.parts_table(Findings(records({"parts": parts}), frame(), "nyuv2", []))
    assert table.loc["attention"].tolist() == ["25", "0.5, 0.5", "-10.0", "-7.0", "-6.0"]
    assert list(table.columns) == ["values, %", "α", "merged", "heads", "closed form"]


def test_rates_stand_beside_the_main_experts():
    """Gentle experts are 3 points worse and lose nothing more; the main ones are the reference."""
    parts = {"everything": {"alpha": 0.3, "values": 1, "scores": scores(-20, -8)}}
    gentle = {
        "rate": 0.1,
        "alpha": 1.0,
        "lengths": dict.fromkeys(TASKS, 0.02),
        "experts": metrics(-3),
        "scores": scores(-3, -2),
    }
    details = {"parts": parts, "rates": [gentle], "lengths": dict.fromkeys(TASKS, 0.3)}
    table = variations.rates_table(Findings(records(details), frame(), "nyuv2", []))
    assert table.loc["0.1 × learning rate"].tolist() == ["2.0", "1, 1"]
    assert table.loc["1 × learning rate"].tolist() == ["30.0", "0.3, 0.3"]
    found = variations.rate_scores(Findings(records(details), frame(), "nyuv2", []))
    means = found.groupby(["rate", "method"]).delta.mean()
    assert means[0.1].to_dict() == pytest.approx(
        {"experts": -3, "merged": -3, "heads": -2, "closed form": -1}
    )
    assert means[1.0].to_dict() == pytest.approx(
        {"experts": 0, "merged": -20, "heads": -8, "closed form": -7}
    )


def test_depths_are_relative_to_experts_of_the_same_depth():
    """Experts of half the depth are 10 % worse; what is as good as they are loses nothing."""
    parts = {"everything": {"alpha": 0.3, "values": 1, "scores": scores(-20, -8)}}
    half = {"depth": 3, "experts": metrics(-10), "joint": metrics(-10), "scores": scores(-20, -10)}
    details = {"parts": parts, "depths": [half], "whole": 6}
    found = variations.depth_scores(Findings(records(details), frame(), "nyuv2", []))
    means = found.groupby(["depth", "method"]).delta.mean()
    assert means[3].to_dict() == pytest.approx(
        {"experts": -10, "heads": 0, "closed form": 10 / 7, "joint": 0, "merged": -100 / 7}
    )
    assert means[6].to_dict() == pytest.approx(
        {"experts": 0, "heads": -8, "closed form": -7, "joint": -2, "merged": -20}
    )


def test_feature_shares_by_hand():
    """One row an encoder, task, block and way; the table shows the merged encoder's last block."""
    features = {
        encoder: [
            {
                "task": task,
                "block": block,
                "cka": 0.5,
                **dict.fromkeys(variations.MAPS, 0.9 - 0.2 * (block == 1)),
                "nothing": share,
            }
            for task, share in (("depth", first), ("normals", 0.0))
            for block in (1, 2)
        ]
        for encoder, first in (("pretrained", 0.3), ("merged", -1.0))
    }
    found = variations.feature_shares(Findings(records({"features": features}, 1), frame(), "nyuv2", []))
    assert len(found) == 2 * 2 * 2 * 6
    shares = found.set_index(["encoder", "task", "block", "method"]).share
    assert shares["merged", "depth", 2, "as they are"] == -1.0
    assert shares["pretrained", "normals", 1, "CKA"] == 0.5
    table = variations.shares_table(Findings(records({"features": features}), frame(), "nyuv2", []))
    assert table.loc["depth", ["as they are", "turned"]].tolist() == ["-1.00", "0.90"]


def test_vectors_by_hand():
    """A task's cosine is the mean over the other tasks, not over itself."""
    pair = {"depth": {"depth": 1.0, "normals": 0.1, "segmentation": 0.3}}
    details = {
        "cosines": pair,
        "lengths": {"depth": 0.25},
        "shares": [0.1, 1.0],
        "spectra": {"depth": [0.6, 1.0]},
    }
    table = variations.vectors_table(Findings(records(details), frame(), "nyuv2", []))
    assert table.loc["depth"].tolist() == ["25.0", "0.20", "0.60"]


def test_contrast_is_relative_to_the_experts_of_its_row():
    """Frozen decoder: experts at half the mIoU of the main ones, and merging that loses nothing of it."""
    lower = metrics(-50 / 3)
    found = {"expert": lower, "merged": lower, "heads": metrics(0), variations.SAME_ALPHA: lower}
    own_heads = {"alpha": 0.3, "lengths": dict.fromkeys(TASKS, 0.2)}
    details = {"scores": found, "alpha": 0.6, "lengths": dict.fromkeys(TASKS, 0.1), "own_heads": own_heads}
    table = variations.contrast_table(Findings(records(details), frame(), "nyuv2", []))
    own, frozen = table.index
    assert list(table.columns) == [
        "‖τ‖ / ‖θ₀‖, %",
        "α",
        "experts",
        "merged",
        "heads",
        variations.SAME_ALPHA,
        variations.SAME_EXPERTS,
    ]
    first = ["20.0", "0.3, 0.3", *(f"{delta:+.1f}" for delta in (0, -20, -8, -8, -8))]
    second = ["10.0", "0.6, 0.6", *(f"{delta:+.1f}" for delta in (-50 / 3, 0, 100 / 3, 0, 0))]
    assert (table.loc[own].tolist(), table.loc[frozen].tolist()) == (first, second)


def test_contrast_scans_by_hand():
    """The main experiment's scan beside the frozen decoder's, in per cent."""
    scan = [{"alpha": 0.0, "score": 0.9}, {"alpha": 0.1, "score": 0.8}]
    main = [{"experiment": "merge_task_arithmetic", "seed": 0, "details": {"scan": scan[1:]}}]
    main.append({"experiment": "merge_ties", "seed": 0, "details": {"scan": scan}})
    found = variations.contrast_scores(Findings(records({"scan": scan}, 1), frame(), "nyuv2", main))
    assert found.values.tolist() == [
        [0, 0.1, "own heads", 80.0],
        [0, 0.0, "one frozen decoder", 90.0],
        [0, 0.1, "one frozen decoder", 80.0],
    ]


def test_studies_stand_side_by_side():
    """Each study's own mean and spread, under the names of the tables."""
    other = frame().assign(printed=lambda scores: scores.printed + [0.0, 2.0] * 4)
    table = variations.studies_table({"one": frame(), "other": other}, ["joint", "task_arithmetic"])
    assert table.loc["Joint training"].tolist() == ["-2.0", "-1.0\u00a0±\u00a01.4"]
    assert table.loc["TA"].tolist() == ["-20.0", "-19.0\u00a0±\u00a01.4"]


def test_moments_by_block_and_what_regmean_adds():
    """Two layers of a block are averaged, seeds are not; of changes 1, 2 and 6 the median is 2."""
    rows = [
        {"layer": "a", "block": 1, "distances": {"depth": 0.2}, "change": 1.0},
        {"layer": "b", "block": 1, "distances": {"depth": 0.4}, "change": 2.0},
        {"layer": "c", "block": 2, "distances": {"depth": 0.9}, "change": 6.0},
    ]
    own = records({"moments": rows})
    table = variations.moment_distances(Findings(own, None, "nyuv2", [])).set_index(["seed", "block"])
    assert table.distance.tolist() == pytest.approx([0.3, 0.9] * 2)
    assert set(table.method) == {"depth"}
    said = variations.regmean_changes(Findings(own, None, "nyuv2", []))
    assert said.startswith("*NYUv2: RegMean's task vector")
    assert "by 2 times" in said
