"""The committed records: complete, made by the committed parameters, and what the book claims from them."""

import pytest

from simo.claims import judge
from simo.notebooks import ROOT, declared_parameters, read_parameters
from simo.records import load_pictures, load_records, results_table
from simo.tables import MODELS, scores

FOLDER = ROOT / "records" / "miniature" / "nyuv2"


@pytest.fixture(scope="module")
def records():
    """All committed NYUv2 records of the miniature."""
    return load_records(FOLDER)


def test_three_seeds_are_complete(records):
    """Every seed holds the same experiments, so that no mean hides a missing run."""
    by_seed = {}
    for record in records:
        by_seed.setdefault(record["seed"], set()).add(record["experiment"])
    assert by_seed.keys() == {0, 1, 2}
    assert by_seed[0] == by_seed[1] == by_seed[2]


def test_records_were_made_with_the_committed_parameters(records):
    """A parameter file that changed without new records would make the book describe another experiment."""
    values = read_parameters(ROOT / "notebooks/params/miniature/nyuv2.yaml")
    for record in records:
        provenance = record["provenance"]
        shared = values.keys() & declared_parameters(provenance["notebook"]).keys()
        assert {name: provenance["parameters"][name] for name in shared} == {
            name: values[name] for name in shared
        }


def test_seeds_share_code_data_and_backbone(records):
    """Spread over seeds must come from the seed: code, data and backbone are the same for all."""
    for experiment in {record["experiment"] for record in records}:
        hashes = [r["provenance"]["hashes"] for r in records if r["experiment"] == experiment]
        for name in ("code", "data", "backbone"):
            assert len({each[name] for each in hashes}) == 1, (experiment, name)


def test_every_model_of_the_tables_has_results(records):
    """Table 1 and its controls have a row for every model on every seed."""
    frame = scores(results_table(records), "nyuv2")
    assert set(frame.index) == {(model, seed) for model in MODELS for seed in (0, 1, 2)}


def test_collapse_and_recovery_hold_on_every_seed(records):
    """What the introduction says: merging collapses, realignment recovers most, and experts had converged."""
    verdicts = judge(scores(results_table(records), "nyuv2")).verdict
    for method in ("task_arithmetic", "ties"):
        assert verdicts[f"{method}-collapses"] == "holds"
        assert verdicts[f"{method}-heads-recover"] == "holds"
        assert verdicts[f"{method}-beats-pretrained"] == "holds"
    assert verdicts["experts-converged-heads"] == "holds"


def test_pictures_match_their_record(records):
    """The qualitative figure shows as many images as the parameters name, for every row and task."""
    pictures = load_pictures(FOLDER / "seed0" / "qualitative.npz")
    count = len(read_parameters(ROOT / "notebooks/params/miniature/nyuv2.yaml")["images"])
    assert {len(array) for array in pictures.values()} == {count}
    assert {name.split("/")[0] for name in pictures} == {
        "image", "truth", "expert", "merged", "heads", "representation"
    }  # fmt: skip
