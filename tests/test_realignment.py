"""simo.realignment: what may change, what may not, and that nothing depends on chance or company."""

from dataclasses import replace

import pytest
import torch

from simo import training
from simo.models import add_adapters, create_model
from simo.realignment import FeatureDataset, realign_heads, realign_representation
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


def test_cached_features_predict_what_the_model_predicts(model, val):
    """Heads are trained on just what they will see: features in memory equal those of a full pass."""
    features = FeatureDataset(model.encoder, val, batch_size=3)
    assert len(features) == 4
    for index in range(4):
        item, sample = features[index, 99], val[index]
        with torch.no_grad():
            expected = model(sample["image"][None])
            ours = model.predict(
                type(model.encoder(sample["image"][None]))(item["patches"][None], item["classes"][None]),
                features.size,
            )
        for name, prediction in expected.items():
            torch.testing.assert_close(ours[name], prediction)
            assert torch.equal(item[name], sample[name])


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
    steps, one_cycle = 0, training.one_cycle

    def counted(*arguments):
        nonlocal steps
        steps += 1
        if steps == stop:
            raise Interrupted
        return one_cycle(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "one_cycle", counted)
        with pytest.raises(Interrupted):
            realign_both(model, val, tasks, budget, resume=tmp_path)
    torch.manual_seed(99)  # another process
    resumed = realign_both(model, val, tasks, budget, resume=tmp_path)
    assert all(same(a.state_dict(), b) for a, b in zip(resumed, expected, strict=True))
