"""tools/verify.py: what counts as the same record."""

import copy

import pytest

from simo.files import write_json
from tools import verify

RECORD = {
    "experiment": "expert_depth",
    "seed": 0,
    "results": [{"model": "expert", "split": "test", "metrics": {"depth": 0.5}, "cost": {"seconds": 12.5}}],
    "details": {"history": [{"step": 10, "depth": 0.9}], "curve": [0.001], "alpha": None},
    "provenance": {"commit": "abc", "seconds": 20.0},
}


def changed(**metrics):
    """The record with other seconds and provenance, and with some metrics changed."""
    record = copy.deepcopy(RECORD)
    record["results"][0]["metrics"] |= metrics
    record["results"][0]["cost"]["seconds"] = 99.0
    return record | {"provenance": {"commit": "def"}}


def test_times_and_provenance_do_not_count():
    """A run on a busier machine, from another commit, is the same record."""
    same, lines = verify.compare(RECORD, changed())
    assert same
    assert lines == ["equal: all 9 values"]  # experiment, seed, model, split, metric, step, loss, point, α


@pytest.mark.parametrize(("value", "same"), [(0.514, True), (0.486, True), (0.516, False), (None, False)])
def test_a_metric_may_differ_by_the_tolerance(value, same):
    """3 % of .5 is .015, either way; a metric that is missing or no number is not the same."""
    found, lines = verify.compare(RECORD, changed(depth=value))
    assert found == same
    assert lines[0].startswith("within tolerance" if same else "not the same")
    assert f"results.0.metrics.depth: 0.5 committed, {value} now" in lines[1]


def test_losses_on_the_way_are_told_but_do_not_decide():
    """A loss on the way may differ by more; it is listed, results that are too far first."""
    record = changed(depth=0.6)
    record["details"]["history"][0]["depth"] = 9.0
    same, lines = verify.compare(RECORD, record)
    assert not same
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "results.0.metrics.depth",
        "details.history.0.depth",
    ]
    record["results"][0]["metrics"]["depth"] = 0.5
    assert verify.compare(RECORD, record)[0]


@pytest.mark.parametrize(("value", "same"), [(0.0012, True), (0.0014, False)])
def test_figures_are_results_too(value, same):
    """A curve has no metrics by name; 3 % of what is nearly 0 is told from 3 % of .01."""
    record = changed()
    record["details"]["curve"] = [value]
    assert verify.compare(RECORD, record)[0] == same


def test_what_only_the_new_record_has_does_not_decide():
    """A notebook may record more than it did; that something is missing now is a difference."""
    record = changed()
    record["details"]["residual"] = 0.1
    assert verify.compare(RECORD, record)[0]
    assert not verify.compare(record, RECORD)[0]
    record["details"]["alpha"] = 0.3  # the committed one says that there is none
    assert not verify.compare(RECORD, record)[0]


def test_a_value_that_one_record_lacks_differs():
    """A row more is a difference, not an equality of what both have."""
    record = changed()
    record["details"]["history"].append({"step": 20, "depth": 0.8})
    _, lines = verify.compare(RECORD, record)
    assert "2 of 11 values differ" in lines[0]


def test_only_committed_records_are_verified(tmp_path, capsys):
    """The path says what to compute; any other is refused before anything runs."""
    path = tmp_path / "expert_depth.json"
    write_json(path, RECORD)
    assert verify.main([str(path)]) == 1
    assert "expected a committed record, records/PROFILE/STUDY/seedN/NAME.json" in capsys.readouterr().err
    assert verify.main([""]) == 1  # of `make verify` alone
    assert "expected a committed record, RECORD=records/" in capsys.readouterr().err


def test_the_pipeline_is_asked_for_the_record_of_that_name(monkeypatch, capsys):
    """Profile, study and seed come from the path; what the pipeline wrote is compared with it."""
    path, asked = verify.ROOT / "records/miniature/cityscapes_dpt/seed2/merge_ties.json", []

    def run(command, **options):
        asked.append(command)
        return type("Done", (), {"returncode": 0})

    committed = verify.read_json(path)
    monkeypatch.setattr(verify.subprocess, "run", run)
    monkeypatch.setattr(verify, "read_json", lambda name: committed)
    assert verify.main([str(path), "--cores", "1"]) == 0
    (command,) = asked
    assert "build/verify/miniature/records/cityscapes_dpt/seed2/merge_ties.json" in command
    assert {"profile=miniature", "studies=cityscapes_dpt", "seeds=2", "further=all"} <= set(command)
    assert "equal: all" in capsys.readouterr().out
