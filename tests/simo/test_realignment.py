"""simo.realignment: what may change, what may not, and that nothing depends on chance or company."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from simo import training
from simo.adapters import ReleasedAdapter, add_adapters
from simo.encoders import Features
from simo.errors import SimoError
from simo.models import create_model
from simo.realignment import trained as realignment
from simo.realignment.trained import FeatureDataset, expert_labels, realign_heads, realign_representation
from simo.training import Optimisation

BUDGET = Optimisation(steps=3, batch_size=2, seed=1, weight_decay=0.1)


class Interrupted(Exception):
    """What ends a realignment of these tests before its time."""


def realign_both(model, val, tasks, budget=BUDGET, rate=0.01, resume=None):
    """Both realignments' models, as the realigning notebook makes them."""
    heads, _ = realign_heads(model, val, tasks, budget, rate, resume)
    adapted, _ = realign_representation(model, val, tasks, budget, 2, rate, rate, resume)
    return heads, adapted


def batch_norm(name):
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_model_passed_in_is_unchanged(model, val, tasks, state_of, same):
    """The merged model can be realigned in several ways, one after the other: weights, modes and all."""
    before, flags = state_of(model), [parameter.requires_grad for parameter in model.parameters()]
    realign_both(model, val, tasks)
    assert same(before, model.state_dict())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not model.training


def test_head_realignment_trains_heads_only(model, val, tasks, same):
    """The encoder is the merged one to the last bit; every head has moved."""
    realigned, histories = realign_heads(model, val, tasks, BUDGET, 0.01)
    assert same(model.encoder.state_dict(), realigned.encoder.state_dict())
    for task in tasks:
        before, after = model.heads[task.name], realigned.heads[task.name]
        assert not torch.equal(before.project.weight, after.project.weight)
        assert [row["step"] for row in histories[task.name]] == [1, 2, 3]
    trainable = {name for name, p in realigned.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in realigned.named_parameters() if name.startswith("heads.")}
    assert not realigned.training


@pytest.mark.parametrize("still", ["heads", "adapters"])
def test_heads_and_adapters_have_rates_of_their_own(model, val, tasks, still):
    """What has rate 0 stays as it was to the last bit, while the other moves."""
    adapter_rate, head_rate = (0.01, 0.0) if still == "heads" else (0.0, 0.01)
    start, _ = realign_representation(model, val, tasks, BUDGET, 2, 0.0, 0.0)
    moved, _ = realign_representation(model, val, tasks, BUDGET, 2, adapter_rate, head_rate)
    before, after = (dict(each.named_parameters()) for each in (start, moved))
    trained = {name for name in after if not torch.equal(before[name], after[name])}
    assert trained
    assert {name.startswith("heads.") for name in trained} == {still != "heads"}


def test_cached_features_predict_what_the_model_predicts(model, val, tasks, tmp_path):
    """Heads are trained on just what they will see: features in files equal those of a full pass."""
    features = FeatureDataset(model.encoder, val, tmp_path, replace(BUDGET, batch_size=3))
    assert len(features) == 4
    for index in range(4):
        item, sample = features[index, 99], val[index]
        with torch.no_grad():
            expected = model(sample["image"][None])
            seen = Features(item["patches"][None], item["classes"][None])
            ours = model.predict(seen, features.size)
        for task in tasks:
            torch.testing.assert_close(ours[task.name], expected[task.name])
            assert torch.equal(item[task.name], sample[task.name])
            assert features.of(task)[index, 0].keys() == {"patches", "classes", task.name}


def test_features_are_files(model, val, tmp_path):
    """Features of a large split are on disk: the files are as large as the tensors, and hold their values."""
    features = FeatureDataset(model.encoder, val, tmp_path, replace(BUDGET, batch_size=3))
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["patches"] == 4 * 2 * 16 * 2 * 2 * 4  # images, taps, width, grid, bytes
    assert sizes == {name: tensor.nbytes for name, tensor in features.tensors.items()}
    stored = np.fromfile(tmp_path / "patches", np.float32).reshape(4, 2, 16, 2, 2)
    np.testing.assert_array_equal(stored[3], features[3, 0]["patches"])


def test_features_of_mixed_precision_take_half_the_room(model, val, tmp_path):
    """In bfloat16 they are stored as that: the values of single precision to two digits in half the bytes."""
    for name in ("full", "half"):
        (tmp_path / name).mkdir()
    full = FeatureDataset(model.encoder, val, tmp_path / "full", BUDGET)
    half = FeatureDataset(model.encoder, val, tmp_path / "half", replace(BUDGET, precision="bfloat16"))
    assert half[0, 0]["patches"].dtype == half[0, 0]["classes"].dtype == torch.bfloat16
    assert half[0, 0]["depth"].dtype == torch.float32
    torch.testing.assert_close(half[0, 0]["patches"].float(), full[0, 0]["patches"], atol=0.05, rtol=0.05)
    assert half.tensors["patches"].nbytes * 2 == full.tensors["patches"].nbytes


@pytest.mark.parametrize("given", [True, False])
def test_features_are_deleted(model, val, tasks, tmp_path, monkeypatch, given):
    """Gigabytes of features do not outlive the realignment, its failure, or the next run after a kill."""
    monkeypatch.setattr(realignment.tempfile, "tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "resume" if given else None
    left = tmp_path / "resume" / ".features_of_realign_heads" / "patches"  # of a run that was killed
    users = tmp_path / "resume" / "features" / "mine.txt"
    users.parent.mkdir(parents=True)
    users.write_text("hours of work")
    left.parent.mkdir()
    left.write_bytes(b"half a file")
    seen = []
    files = realignment._map_files
    monkeypatch.setattr(realignment, "_map_files", lambda *a: seen.append(a[0]) or files(*a))
    realign_heads(model, val, tasks, BUDGET, 0.01, folder)
    monkeypatch.setattr(realignment, "fit", lambda *a, **b: (_ for _ in ()).throw(Interrupted))
    with pytest.raises(Interrupted):
        realign_heads(model, val, tasks, BUDGET, 0.01, folder)
    assert len(seen) == 2
    assert all((folder or tmp_path / "elsewhere") in path.parents for path in seen)
    assert not any(path.exists() for path in seen)
    assert left.exists() != given
    assert users.exists()


def test_full_disk_is_found_before_features_are_written(model, val, tmp_path, monkeypatch):
    """Writing to a mapped file on a full disk kills the process; instead the need and the room are named."""
    room = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(realignment.shutil, "disk_usage", lambda folder: room)
    message = "needs 0.0 GiB for the features of 4 images, but its disk has 0.0 GiB left: free some space"
    with pytest.raises(SimoError, match=message):
        FeatureDataset(model.encoder, val, tmp_path, replace(BUDGET, batch_size=3))
    assert not list(tmp_path.iterdir())


def test_workers_change_nothing(model, val, tasks, same):
    """Features may be loaded by other processes: the realigned heads are the same to the last bit."""
    expected, _ = realign_heads(model, val, tasks[1:2], BUDGET, 0.01)
    loaded, _ = realign_heads(model, val, tasks[1:2], replace(BUDGET, workers=1), 0.01)
    assert same(expected.state_dict(), loaded.state_dict())


def test_mixed_precision_trains_heads(model, val, tasks, same):
    """Features in bfloat16 reach every kind of loss; heads stay in single precision and move."""
    realigned, histories = realign_heads(model, val, tasks, replace(BUDGET, precision="bfloat16"), 0.01)
    exact, exact_histories = realign_heads(model, val, tasks, BUDGET, 0.01)
    for task in tasks:
        assert realigned.heads[task.name].project.weight.dtype == torch.float32
        first, expected = histories[task.name][0], exact_histories[task.name][0]
        assert first[task.name] == pytest.approx(expected[task.name], rel=0.05)
    assert not same(realigned.heads.state_dict(), model.heads.state_dict())


def test_encoder_runs_once_an_image(model, val, tasks):
    """The cost of head realignment does not grow with its steps or heads times the encoder's size."""
    seen = []
    model.encoder.forward, forward = None, model.encoder.forward

    def counted(image):
        seen.append(len(image))
        return forward(image)

    model.encoder.forward = counted
    realign_heads(model, val, tasks, replace(BUDGET, steps=20), 0.01)
    assert sum(seen) == len(val)


def test_each_head_is_trained_by_itself(model, val, tasks, same):
    """A task's realigned head does not depend on which other tasks are realigned, or in which order."""
    together, _ = realign_heads(model, val, tasks, BUDGET, 0.01)
    backwards, _ = realign_heads(model, val, tasks[::-1], BUDGET, 0.01)
    for task in tasks:
        alone, _ = realign_heads(model, val, [task], BUDGET, 0.01)
        expected = together.heads[task.name].state_dict()
        assert same(alone.heads[task.name].state_dict(), expected)
        assert same(backwards.heads[task.name].state_dict(), expected)


def test_adapters_are_the_encoders_only_change(model, val, tasks):
    """Representation realignment freezes the merged encoder: only adapters and heads have moved."""
    adapted, _ = realign_representation(model, val, tasks, BUDGET, 2, 0.01, 0.01)
    before, after = model.encoder.state_dict(), adapted.encoder.state_dict()
    added = {name: after.pop(name) for name in list(after) if ".down." in name or ".up." in name}
    assert len(added) == 4
    assert all(tensor.any() for tensor in added.values())
    assert before.keys() == {name.replace(".block.", ".") for name in after}
    assert all(torch.equal(before[name.replace(".block.", ".")], x) for name, x in after.items())
    for task in tasks:
        assert not torch.equal(model.heads[task.name].project.weight, adapted.heads[task.name].project.weight)


def test_released_variant_trains_adapters_only(model, val, tasks, same):
    """Without a learning rate for heads they stay as they are to the last bit, statistics included."""
    adapted, _ = realign_representation(model, val, tasks, BUDGET, 2, 0.01, None, adapter="released")
    assert same(model.heads.state_dict(), adapted.heads.state_dict())
    blocks = adapted.encoder.backbone.blocks
    assert {type(block) for block in blocks} == {ReleasedAdapter}
    assert all(block.up.weight.any() for block in blocks)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(".down." in name or ".up." in name for name in trainable)
    assert len(trainable) == 4


def test_encoder_is_in_eval_mode(val, tasks, settings, same):
    """Heads are trained on features as they are at test time: the encoder's dropout stays off."""
    args = {**settings["backbone_args"], "proj_drop_rate": 0.5}
    model = create_model(tasks, seed=0, **{**settings, "backbone_args": args})
    expected = realign_both(model.eval(), val, tasks)
    for realigned, other in zip(realign_both(model.train(), val, tasks), expected, strict=True):
        assert same(realigned.state_dict(), other.state_dict())


def test_zero_learning_rate_changes_statistics_only(model, val, tasks, same):
    """Without learning rate there is no training: weight decay included, only batch norm statistics move."""
    heads, adapted = realign_both(model, val, tasks, rate=0.0)
    expected = model.state_dict()
    for name, tensor in heads.state_dict().items():
        assert torch.equal(tensor, expected[name]) != batch_norm(name), name
    add_adapters(model.encoder, 2)
    for name, tensor in adapted.state_dict().items():
        if ".down." not in name:
            assert torch.equal(tensor, model.state_dict()[name]) != batch_norm(name), name


def test_result_does_not_depend_on_what_ran_before(model, val, tasks, same):
    """The same seed gives the same adapters, whatever the process drew at random until then."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        adapted, _ = realign_representation(model, val, tasks, BUDGET, 2, 0.01, 0.01)
        results.append(adapted.state_dict())
    assert same(*results)


def test_seeds_give_different_adapters(model, val, tasks):
    """Repetitions differ in the adapters' initial weights, too."""
    downs = []
    for seed in (1, 2):
        adapted, _ = realign_representation(model, val, tasks, replace(BUDGET, seed=seed), 2, 0.0, 0.0)
        downs.append(adapted.encoder.backbone.blocks[0].down.weight)
    assert not torch.equal(*downs)


@pytest.mark.parametrize("stop", [2, 5, 10, 11])
def test_interrupted_realignment_resumes(model, val, tasks, tmp_path, monkeypatch, same, stop):
    """Interrupted in a head, between both kinds or in the adapters, it ends with the very same weights."""
    budget = replace(BUDGET, save_seconds=0)
    expected = [realigned.state_dict() for realigned in realign_both(model, val, tasks, budget)]
    steps, resuming, one_cycle = 0, False, training.one_cycle

    def counted(*arguments):
        nonlocal steps
        steps += 1
        if steps == stop and not resuming:
            raise Interrupted
        return one_cycle(*arguments)

    monkeypatch.setattr(training, "one_cycle", counted)
    with pytest.raises(Interrupted):
        realign_both(model, val, tasks, budget, resume=tmp_path)
    torch.manual_seed(99)  # another process
    resuming = True
    resumed = realign_both(model, val, tasks, budget, resume=tmp_path)
    assert steps == 12 + 1  # of four trainings; it goes on with the step that was cut short
    assert all(same(a.state_dict(), b) for a, b in zip(resumed, expected, strict=True))


def test_heads_go_on_under_their_own_encoder_only(model, val, tasks, tmp_path):
    """Models that were merged in other ways have the same heads: what one left is not the other's."""
    plan = val, tasks, BUDGET, 0.01
    realign_heads(model, *plan, resume=tmp_path)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.encoder.parameters()).add_(0.01)
    with pytest.raises(SimoError, match="head_segmentation.safetensors is the state of another training"):
        realign_heads(other, *plan, resume=tmp_path)
    realign_heads(model, *plan, resume=tmp_path)


def test_what_one_kind_of_realignment_left_is_not_anothers(model, val, tasks, tmp_path):
    """Labels that are made up, or an adapter in another place, give other weights of the same shapes."""
    plan = val, tasks[:2], BUDGET
    realign_heads(model, *plan, 0.01, resume=tmp_path)
    with pytest.raises(SimoError, match="head_segmentation.safetensors is the state of another training"):
        realign_heads(
            model, *plan, 0.01, resume=tmp_path, teacher=expert_labels({t.name: model for t in tasks}, tasks)
        )
    realign_representation(model, *plan, 2, 0.01, 0.01, resume=tmp_path)
    with pytest.raises(SimoError, match="representation.safetensors is the state of another training"):
        realign_representation(model, *plan, 2, 0.01, 0.01, resume=tmp_path, adapter="released")


def test_expert_labels_are_predictions_as_targets(model, val, tasks):
    """Distillation sees classes where there are scores, and no value that would count as unknown."""
    experts = {task.name: model.only([task.name]) for task in tasks}
    image = val[0]["image"][None]
    predictions = model(image)
    model.train()  # labels are not of its batch norms' training mode
    labels = expert_labels(experts, tasks)(image)
    for task in tasks:
        task.check_target(labels[task.name][0], task.name)
        if task.is_segmentation:
            assert torch.equal(labels[task.name], predictions[task.name].argmax(1))
        else:
            torch.testing.assert_close(labels[task.name], predictions[task.name], atol=2e-6, rtol=0)
            assert (labels[task.name] != 0).all()


def test_distillation_reads_no_label(model, val, tasks):
    """With the experts' predictions as targets, the data set's own targets play no part."""
    experts = {task.name: copy.deepcopy(model) for task in tasks}
    teacher = expert_labels(experts, tasks)
    realigned, _ = realign_heads(model, val, tasks, BUDGET, 0.01, teacher=teacher)

    class Unlabelled(type(val)):
        def _read_target(self, task, name, valid):
            target = super()._read_target(task, name, valid)
            return torch.full_like(target, -1 if task.is_segmentation else 0)

    hidden = copy.copy(val)
    hidden.__class__ = Unlabelled
    other, _ = realign_heads(model, hidden, tasks, BUDGET, 0.01, teacher=teacher)
    for name, tensor in realigned.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
