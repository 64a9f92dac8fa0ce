"""tools/compare.py: which results changed by more than seeds differ."""

import pytest

from simo.files import write_json
from tools import compare


def record(seed, value, model="expert", **other):
    """A record of a study with one metric, and values that are none."""
    what = {"experiment": "expert_depth", "study": "nyuv2", "dataset": "nyuv2", "seed": seed, "details": {}}
    results = [
        {"model": model, "split": "test", "metrics": {"depth": value}, "cost": {"seconds": 9.0 * seed}}
    ]
    return what | {"results": results} | other


OLD = [record(seed, value) for seed, value in enumerate((0.4, 0.5, 0.6))]  # mean .5, deviation .1


@pytest.mark.parametrize(("shift", "change"), [(0.0, 0), (0.05, 0.5), (-0.3, 3)])
def test_a_change_is_in_units_of_the_spread_of_seeds(shift, change):
    """The same shift of all seeds moves the mean by it; .1 is one unit, either way."""
    found, lacking = compare.compare(OLD, [record(seed, 0.4 + 0.1 * seed + shift) for seed in range(3)])
    assert found.index.tolist() == [("nyuv2", "expert_depth", "expert test.metrics.depth")]
    assert found.iloc[0].tolist() == pytest.approx([0.5, 0.5 + shift, 0.1, change])
    assert lacking.empty


def test_only_seeds_that_both_have_are_compared():
    """Seed 0 alone, as `make book` computes it, is compared with seed 0, by the spread of all old ones."""
    found, lacking = compare.compare(OLD, [record(0, 0.4)])
    assert found.iloc[0].tolist() == pytest.approx([0.4, 0.4, 0.1, 0])
    assert lacking.index.get_level_values("seed").tolist() == [1, 2]


def test_one_seed_alone_has_a_tolerance():
    """Without a spread, 3 % of the metric is one unit."""
    found, _ = compare.compare([record(0, 0.5)], [record(0, 0.53)])
    assert found.change.tolist() == pytest.approx([2])


def test_studies_of_one_data_set_and_seeds_without_spread_are_kept_apart():
    """Cityscapes with another head is another result, and where no seed differs, any change is too large."""
    dpt = [record(seed, 0.5, study="nyuv2_dpt") for seed in range(2)]
    found, _ = compare.compare(OLD + dpt, OLD + [record(seed, 0.51, study="nyuv2_dpt") for seed in range(2)])
    assert found.change.tolist() == [float("inf"), 0]
    assert found.index[0][0] == "nyuv2_dpt"


def test_results_in_details_keep_their_names_when_a_method_is_added():
    """A list's elements are told apart by their texts; those with the same ones, by their places."""
    scans = [{"way": "bare", "metrics": {"depth": 1.0}}, {"way": "bare", "metrics": {"depth": 2.0}}]
    methods = [{"method": "ties", "scores": scans, "curve": [3.0, 4.0]}, {"method": "lot", "scores": []}]
    found = dict(compare.results_of({"methods": methods}))
    names = [
        f"methods.ties.{place}" for place in ("scores.bare 0.metrics.depth", "scores.bare 1.metrics.depth")
    ]
    names += ["methods.ties.curve.0", "methods.ties.curve.1"]
    assert found == dict(zip(names, (1.0, 2.0, 3.0, 4.0), strict=True))
    assert dict(compare.results_of({"methods": [{"method": "new"}, *methods]})) == found


def test_the_command_line_says_what_is_beyond_and_what_is_missing(tmp_path, capsys):
    """Equal folders give 0; a change beyond the spread and a model that is gone are listed, and give 1."""
    whole = {"profile": "smoke", "provenance": {"started": "2026-11-01", "hashes": {}}}
    for each in OLD:
        write_json(tmp_path / f"old/nyuv2/seed{each['seed']}/expert_depth.json", each | whole)
        changed = record(each["seed"], each["results"][0]["metrics"]["depth"] + 0.2)
        write_json(tmp_path / f"new/nyuv2/seed{each['seed']}/expert_depth.json", changed | whole)
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    assert compare.main([old, old]) == 0
    assert "1 results: 1 equal, 0 within the seeds' spread,\n0 beyond it" in capsys.readouterr().out
    write_json(tmp_path / "old/nyuv2/seed0/joint.json", record(0, 1.0, "joint", experiment="joint") | whole)
    assert compare.main([old, new]) == 1
    said = capsys.readouterr().out
    assert "1 beyond it; 1 results on one side only" in said
    assert "nyuv2 expert_depth expert test.metrics.depth  0.5  0.7     0.1       2" in said
    assert "joint" in said.split("on one side only, the first 1 of 1")[1]
    assert compare.main([old, str(tmp_path)[:-1] + "nowhere"]) == 1
    assert "holds no records" in capsys.readouterr().err
