"""report.run and report.records: what identifies a run, what a record holds, and records read back."""

import copy
import json
import shutil
import subprocess
import time

import numpy as np
import pytest
import torch

import report.run
from report import records
from report.parameters import declared_parameters
from report.records import load_pictures, load_records, provenance_table
from report.run import Run, result
from simo.checkpoints import TensorFile, load_recipe, save_checkpoint
from simo.errors import SimoError
from simo.files import read_json, write_json
from simo.tasks import tasks_of
from simo.training import Optimisation

PLACES = {"data", "checkpoints", "records", "device", "threads", "workers", "compile_model"}
PRECISION = {"precision", "backbone_weights"}  # neither clearly a place nor clearly not one


@pytest.fixture
def namespace(tmp_path, nyuv2):
    """The parameters of the expert notebook, with all folders below tmp_path."""
    weights = tmp_path / "backbone.safetensors"
    save_checkpoint(weights, {"x": torch.zeros(1)}, {})
    folders = {
        "data": shutil.copytree(nyuv2, tmp_path / "data"),
        "checkpoints": tmp_path / "checkpoints",
        "records": tmp_path / "records",
        "backbone_weights": weights,
    }
    return {
        **declared_parameters("expert"),
        **{name: str(path) for name, path in folders.items()},
        "threads": 1,
    }


def identity(namespace, inputs=()):
    """What the folder of unfinished training is named by."""
    return Run("expert", namespace, inputs).partial.name


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "cpu" if value == "auto" else f"{value}2"
    if isinstance(value, list):
        return [*value[:-1], value[-1] + 1]
    return {**value, "depth": 2} if isinstance(value, dict) else value + 1


def test_clock_measures_a_block(namespace):
    """Wall time of a table comes from the record; a continued run says that its times are too short."""
    run = Run("expert", namespace)
    with run.clock("sleep"):
        time.sleep(0.3)
    assert 0.2 < run.seconds["sleep"] < 5
    assert not run.resumed
    assert read_json(run.finish("first", []))["provenance"]["resumed"] is False
    run.partial.mkdir(parents=True)
    again = Run("expert", namespace)
    assert read_json(again.finish("second", []))["provenance"]["resumed"] is True


@pytest.mark.parametrize("name", sorted(set(declared_parameters("expert")) - PLACES - PRECISION))
def test_identity_changes_with_each_parameter(namespace, name):
    """A training is continued only by one that would itself have begun it: same value of every parameter."""
    assert identity({**namespace, name: other(namespace[name])}) != identity(namespace)


@pytest.mark.parametrize("name", sorted(PLACES))
def test_identity_does_not_change_with_places(namespace, name, tmp_path):
    """A moved folder, another device or more processes do not throw unfinished work away."""
    moved = {**namespace, name: other(namespace[name])}
    if name == "data":
        shutil.copytree(namespace["data"], moved["data"])
    assert identity(moved) == identity(namespace)


def test_identity_changes_with_code_data_and_inputs(namespace, monkeypatch, tmp_path):
    """What a result depends on besides parameters: code, data, pretrained weights, and checkpoints read."""
    save_checkpoint(tmp_path / "checkpoints" / "expert_depth.safetensors", {"x": torch.zeros(1)}, {})
    seen = [identity(namespace), identity(namespace, ["expert_depth"])]
    save_checkpoint(tmp_path / "checkpoints" / "expert_depth.safetensors", {"x": torch.ones(1)}, {})
    seen.append(identity(namespace, ["expert_depth"]))
    write_json(tmp_path / "data" / "prepared.json", {"sha256": "1" * 64, "source": "x", "fixture": False})
    seen.append(identity(namespace))
    save_checkpoint(tmp_path / "backbone.safetensors", {"x": torch.ones(1)}, {})
    seen.append(identity(namespace))
    monkeypatch.setattr(report.run, "code_hash", lambda notebook: "other code")
    seen.append(identity(namespace))
    assert len(set(seen)) == 6


def test_run_knows_its_folders_and_model(namespace, tmp_path):
    """Notebooks find data, checkpoints and settings where their parameters say."""
    run = Run("expert", {**namespace, "device": "cpu", "precision": "bfloat16", "unrelated": 1})
    assert (run.data, run.checkpoints, run.records) == tuple(
        tmp_path / name for name in ("data", "checkpoints", "records")
    )
    names = ("backbone", "backbone_args", "blocks", "head", "head_options", "input_scale")
    assert run.model == {name: namespace[name] for name in names}
    assert run.where == {"device": "cpu", "precision": "bfloat16"}
    assert Optimisation(steps=1, batch_size=1, seed=0, **run.where).device == "cpu"
    assert "unrelated" not in run.parameters


def test_run_hands_its_training_parameters_over(namespace):
    """What a parameter file says about training is what the training loop gets."""
    given = {"weight_decay": 0.01, "warmup": 0.2, "clip": 3.0, "seed": 5, "accumulate": 2, "workers": 1}
    run = Run("expert", {**namespace, **given, "compile_model": True, "device": "cpu"})
    expected = Optimisation(steps=7, batch_size=8, compile=True, **given, **run.where)
    assert run.optimisation(7, 8) == expected


def test_run_refuses_what_it_cannot_start_from(namespace, tmp_path):
    """Before anything is computed: half-prepared data and missing inputs are named."""
    with pytest.raises(SimoError, match="expert_depth.safetensors does not exist: make it first"):
        Run("expert", namespace, ["expert_depth"])
    (tmp_path / "data" / "prepared.json").unlink()
    with pytest.raises(SimoError, match="not prepared to the end"):
        Run("expert", namespace)


def test_record_schema(namespace, tmp_path):
    """Protects what tables, figures and the status page read from a record."""
    run = Run("expert", namespace)
    run.partial.mkdir(parents=True)
    metrics = {"depth": 0.25}
    path = run.finish("expert_depth", [result("expert", "test", metrics, steps=7)], curve=[1, 2])
    assert path == tmp_path / "records" / "expert_depth.json"
    assert not run.partial.exists()
    record = read_json(path)
    provenance = record.pop("provenance")
    assert record == {
        "experiment": "expert_depth",
        "profile": "miniature",
        "dataset": "nyuv2",
        "seed": 0,
        "results": [{"model": "expert", "split": "test", "metrics": {"depth": 0.25}, "cost": {"steps": 7}}],
        "details": {"curve": [1, 2]},
    }
    assert provenance["parameters"] == run.parameters
    assert provenance["hashes"].keys() == {"code", "data", "backbone"}
    assert (provenance["source"], provenance["fixture"]) == ("random", False)
    assert torch.__version__.startswith(provenance["versions"]["torch"])  # PyPI's adds its CUDA: 2.13.0+cu130
    assert {"python", "timm", "simo"} <= provenance["versions"].keys()
    assert 0 <= provenance["seconds"] < 60
    assert 50 < provenance["peak_memory_mb"] < 100_000


def test_nan_is_not_recorded(namespace, tmp_path):
    """A result that is no number stops the notebook; unfinished training is kept, an old record too."""
    run = Run("expert", namespace)
    run.partial.mkdir(parents=True)
    run.finish("expert_depth", [])
    run.partial.mkdir(parents=True)
    with pytest.raises(SimoError, match="expert_depth.json.*finite"):
        run.finish("expert_depth", [result("expert", "test", {"depth": float("nan")})])
    assert run.partial.exists()
    assert read_json(tmp_path / "records" / "expert_depth.json")["results"] == []


def test_checkpoints_say_what_they_are(namespace, model, tasks):
    """What the run knows, and how the model was made; the weights come back bit by bit."""
    run = Run("expert", namespace)
    run.save("merged_ties", model, "merged", method="ties", alpha=0.4)
    path = run.checkpoints / "merged_ties.safetensors"
    names = [task.name for task in tasks]
    known = {"kind": "merged", "dataset": "nyuv2", "tasks": names, "seed": run.parameters["seed"]}
    recipe = load_recipe(path, **known, method="ties", alpha=0.4)
    assert (recipe["model"], recipe["hashes"]) == (run.model, run.hashes)
    assert all(torch.equal(TensorFile(path)[name], x) for name, x in model.state_dict().items())


def test_baselines_are_the_experts_own(namespace):
    """α is chosen relative to the experts' validation scores, not their test scores."""
    run = Run("expert", namespace)
    run.finish(
        "expert_depth", [result("expert", split, {"depth": x}) for split, x in (("val", 1), ("test", 2))]
    )
    assert run.baselines(tasks_of("nyuv2", ["depth"])) == {"depth": 1}
    assert run.baselines(tasks_of("nyuv2", ["depth"]), "test") == {"depth": 2}
    with pytest.raises(SimoError, match=r"expert_normals.json \(JSON\) is missing"):
        run.baselines(tasks_of("nyuv2", ["normals"]))


@pytest.fixture
def record(namespace):
    """A record as read from the disk."""
    run = Run("expert", namespace)
    results = [result("expert", split, {"depth": 0.5, "normals": 20.0}) for split in ("val", "test")]
    return read_json(run.finish("expert", results))


def git(folder, *arguments):
    """Run git in a folder, as somebody; return what it prints."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_record_knows_its_commit(monkeypatch, tmp_path):
    """A reader can check out what made a number: the commit, and whether code was changed since."""
    monkeypatch.setattr(report.run, "ROOT", tmp_path)
    assert report.run.repository() == {"commit": None, "clean": None}
    for name in ("simo", "report", "data_scripts", "notebooks", "tools", "records"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("1")
    (tmp_path / "Snakefile").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "records" / "a").write_text("2")  # what a run itself brings about
    assert report.run.repository() == {"commit": commit, "clean": True}
    (tmp_path / "simo" / "a").write_text("2")
    assert report.run.repository() == {"commit": commit, "clean": False}
    git(tmp_path, "commit", "-qam", "second")
    (tmp_path / "simo" / "new").write_text("1")
    assert report.run.repository()["clean"] is False


@pytest.mark.parametrize(
    ("provenance", "shown"),
    [
        ({"commit": None, "clean": None}, "not recorded"),
        ({"commit": "a" * 40, "clean": True}, "a" * 8),
        ({"commit": "a" * 40, "clean": False}, "a" * 8 + "+"),
    ],
)
def test_commits_are_shown_short(provenance, shown):
    """Changed code is marked; records of a project that was downloaded without git say so."""
    assert records.commit_of(provenance) == shown


def test_provenance_table(record):
    """The status page tells of each record where, when and how long."""
    (row,) = provenance_table([record | {"study": "cityscapes_dpt"}]).to_dict("records")
    assert row["study"] == "cityscapes_dpt"  # not the data set, which several studies share
    assert row["experiment"] == "expert"
    assert row["seconds"] == f"{record['provenance']['seconds']:.0f}"
    resumed = record | {
        "study": "nyuv2",
        "provenance": record["provenance"] | {"resumed": True, "seconds": 9.6},
    }
    assert provenance_table([resumed]).seconds.tolist() == ["over 10"]
    assert record["provenance"]["hashes"]["code"].startswith(row["code"])


def test_records_are_loaded_in_a_fixed_order(record, tmp_path):
    """Tables do not depend on the order in which a file system lists files."""
    for seed, name in ((1, "b"), (0, "c"), (1, "a")):
        write_json(tmp_path / "all" / f"seed{seed}" / f"{name}.json", {**record, "experiment": name})
    loaded = load_records(tmp_path / "all")
    assert [record["experiment"] for record in loaded] == ["c", "a", "b"]
    assert {record["study"] for record in loaded} == {"all"}


def test_seeds_without_all_experts_are_unfinished():
    """An interrupted run of a further seed takes nothing from the seeds that are whole."""
    names = ["expert_segmentation", "expert_depth", "expert_normals", "joint"]
    whole = [{"dataset": "nyuv2", "seed": 0, "experiment": name} for name in names]
    begun = [{"dataset": "nyuv2", "seed": 5, "experiment": name} for name in names[1:]]
    for each in whole + begun:
        each["provenance"] = {
            "started": "2026-11-01",
            "hashes": {},
            "parameters": {"clip": 1, "seed": each["seed"]},
        }
    assert records.drawable(whole + begun) == whole
    other = [copy.deepcopy(each) | {"seed": 1} for each in whole]  # of a build with other settings, before
    for each in other:
        each["provenance"] |= {"started": "2026-10-01", "parameters": {"clip": 2, "seed": 1, "threads": 4}}
    made = copy.deepcopy(other[0]) | {"experiment": "control"}  # of one of these, and of no such parameter
    made["provenance"] |= {"hashes": {"expert_segmentation": ""}, "parameters": {}}
    other.append(made)
    assert records.outdated(whole + other) == other
    assert records.drawable(whole + other) == whole


def test_records_older_than_what_they_used_are_outdated():
    """A control of before its expert was trained anew, and what used such; joint training used none."""

    def record(experiment, started, *used, seed=0):
        made = {"started": f"2026-11-01T{started}:00:00+00:00", "hashes": dict.fromkeys(("data", *used), "")}
        return {"seed": seed, "experiment": experiment, "provenance": made}

    found = records.outdated(
        [
            record("expert_depth", "09"),
            record("joint", "08"),
            record("control", "08", "expert_depth"),
            record("merge_ties", "10", "expert_depth"),
            record("merge_average", "08", "expert_depth"),
            record("closed_form", "12", "merged_average"),
            record("realign_ties", "11", "merged_ties"),
            record("qualitative", "10", "realigned_ties_heads"),
            record("released", "09", "merged_ties"),
            record("control", "08", "expert_depth", seed=1),
        ]
    )
    assert [each["experiment"] for each in found] == [
        *("control", "merge_average", "closed_form", "qualitative", "released")
    ]


def test_unusable_records_are_refused(record, tmp_path):
    """No records, a file that is not one, and one that is cut off are named."""
    with pytest.raises(SimoError, match="none holds no records: `make book`"):
        load_records(tmp_path / "none")
    del record["provenance"], record["seed"]
    write_json(tmp_path / "bad" / "a.json", record)
    with pytest.raises(SimoError, match=r"a.json is not a record: it lacks \['provenance', 'seed'\]"):
        load_records(tmp_path / "bad")
    (tmp_path / "bad" / "a.json").write_text(json.dumps(record)[:-5])
    with pytest.raises(SimoError, match=r"a.json \(JSON\) cannot be decoded"):
        load_records(tmp_path / "bad")


def test_pictures_roundtrip(val, tasks, model, tmp_path):
    """The qualitative figure shows what was predicted: classes exactly, values to a thousandth."""
    batch = {name: x[None] for name, x in val[0].items()}
    with torch.no_grad():
        rows = {"truth": batch, "merged": model(batch["image"])}
    report.run.save_pictures(tmp_path / "p.npz", batch["image"], rows, tasks)
    pictures = load_pictures(tmp_path / "p.npz")
    assert len(pictures) == 1 + 2 * 3
    image = np.moveaxis(batch["image"].numpy(), 1, -1)
    np.testing.assert_allclose(pictures["image"] / 255, image, atol=0.5 / 255 + 1e-6)
    truth = np.where(batch["segmentation"] == -1, 255, batch["segmentation"])
    np.testing.assert_array_equal(pictures["truth/segmentation"], truth)
    np.testing.assert_array_equal(
        pictures["merged/segmentation"], rows["merged"]["segmentation"].numpy().argmax(1)
    )
    for row, maps in rows.items():
        for name in ("depth", "normals"):
            values = np.moveaxis(maps[name].numpy(), 1, -1)
            np.testing.assert_allclose(pictures[f"{row}/{name}"], values, rtol=1e-3, atol=1e-6)


def test_pictures_keep_what_is_far_off(tasks, tmp_path):
    """A wildly wrong depth is drawn as far, not wrapped around to negative."""
    depth = {"depth": torch.tensor([1e9, 40.0, 0.0]).view(1, 1, 1, 3)}
    report.run.save_pictures(tmp_path / "p.npz", torch.zeros(1, 3, 1, 3), {"merged": depth}, tasks[1:2])
    assert load_pictures(tmp_path / "p.npz")["merged/depth"].ravel().tolist() == [np.inf, 40, 0]
