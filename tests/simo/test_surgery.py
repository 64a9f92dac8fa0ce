"""simo.realignment.surgery: modules change nothing at first, come close to the expert, and read no label."""

import copy

import pytest
import torch

from simo.adapters import ReleasedAdapter
from simo.encoders import Features
from simo.errors import SimoError
from simo.evaluation import evaluate
from simo.models import count_parameters
from simo.realignment.surgery import OperatedHead, surgery
from simo.training import Optimisation


@pytest.fixture
def encoders(model, tasks):
    """An expert's encoder a task: the merged one, whose tokens go elsewhere."""
    torch.manual_seed(1)
    found = {task.name: copy.deepcopy(model.encoder) for task in tasks}
    with torch.no_grad():
        for encoder in found.values():
            encoder.backbone.pos_embed.add_(0.3 * torch.randn_like(encoder.backbone.pos_embed))
    return found


def operate(model, encoders, val, tasks, steps, **options):
    optimisation = Optimisation(steps, batch_size=4, seed=0, clip=1.0)
    return surgery(model, encoders, val, tasks, optimisation, rank=4, learning_rate=0.01, **options)


def apart(found, expert, image):
    """Mean absolute difference of what is read of one encoder and of another."""
    return sum((x - y).abs().mean().item() for x, y in zip(found, expert(image), strict=True))


def test_a_module_by_hand(model):
    """Z' = Z − U relu(D Z), the same module for a tap's patch and class tokens, another for the next tap."""
    head = OperatedHead(model.heads["depth"], model.encoder, rank=1)
    with torch.no_grad():
        for number, tap in enumerate(head.taps):
            tap.down.weight.zero_()[0, 0] = 1.0
            tap.up.weight.zero_()[1, 0] = number + 1.0
    patches = torch.zeros(1, 2, 16, 1, 2)
    patches[0, :, 0, 0] = torch.tensor([3.0, -2.0])
    classes = torch.zeros(1, 2, 16)
    classes[0, :, 0] = 5.0
    found = head.operate(Features(patches, classes))
    assert found.patches[0, 0, :2].tolist() == [[[3.0, -2.0]], [[-3.0, 0.0]]]
    assert found.patches[0, 1, :2].tolist() == [[[3.0, -2.0]], [[-6.0, 0.0]]]
    assert found.classes[0, :, :2].tolist() == [[5.0, -5.0], [5.0, -10.0]]


@pytest.mark.parametrize("deep", [False, True])
def test_nothing_changes_at_first(model, encoders, val, tasks, deep):
    """The law of its authors: U = 0, so that before any step predictions are the merged model's."""
    image = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = model(image)
        for name, found in operate(model, encoders, val, tasks, steps=0, deep=deep).items():
            torch.testing.assert_close(found(image)[name], before[name])


@pytest.mark.parametrize("deep", [False, True])
def test_features_come_close_to_the_experts(model, encoders, val, tasks, deep, state_of, same):
    """What heads read comes closer to each expert's; the given model, encoder and heads stay as they are."""
    before, image = state_of(model), torch.stack([val[index]["image"] for index in range(4)])
    operated = operate(model, encoders, val, tasks[:2], steps=60, deep=deep)
    assert same(state_of(model), before)
    for task in tasks[:2]:
        found, expert = operated[task.name], encoders[task.name]
        assert list(found.heads) == [task.name]
        with torch.no_grad():
            features = found.encoder(image)
            if not deep:
                assert same(state_of(found.encoder), state_of(model.encoder))
                features = found.heads[task.name].operate(features)
            assert features.patches.shape == model.encoder(image).patches.shape  # the taps are as before
            assert apart(features, expert, image) < 0.9 * apart(model.encoder(image), expert, image)


def test_deep_modules_are_those_of_all_blocks(model, encoders, val, tasks):
    """Two blocks of width 16, rank 4: 2 · 2 · 16 · 4 values a task; of two taps as many without `deep`."""
    for deep in (False, True):
        operated = operate(model, encoders, val, tasks, steps=1, deep=deep)
        for name, found in operated.items():
            added = count_parameters(found.parameters()) - count_parameters(model.only([name]).parameters())
            assert added == 256
    blocks = [name for name, each in found.encoder.named_modules() if isinstance(each, ReleasedAdapter)]
    assert blocks == ["backbone.blocks.0", "backbone.blocks.1"]


@pytest.mark.parametrize("deep", [False, True])
def test_no_label_is_needed(model, encoders, val, tasks, same, state_of, deep):
    """Images alone give the same modules, bit for bit."""
    images = copy.copy(val)
    images.tasks = ()
    first, second = (
        operate(model, encoders, data, tasks[:1], steps=3, deep=deep)[tasks[0].name] for data in (val, images)
    )
    assert same(state_of(first), state_of(second))


def test_one_encoder_serves_all_operated_heads(model, encoders, val, tasks):
    """Heads of Surgery go under the merged encoder: one pass an image, and the same scores."""
    operated = operate(model, encoders, val, tasks, steps=3)
    together = copy.deepcopy(model)
    for name, found in operated.items():
        together.heads[name] = found.heads[name]
    batches = [{name: value[None] for name, value in val[0].items()}]
    scores = evaluate(together, batches, tasks)
    for task in tasks:
        assert scores[task.name] == evaluate(operated[task.name], batches, [task])[task.name]


def test_a_resumed_run_ends_with_the_same_modules(model, encoders, val, tasks, tmp_path, same, state_of):
    """What was trained already is read, not trained again."""
    plan = (model, encoders, val, tasks[:1])
    first = operate(*plan, steps=3, resume=tmp_path)[tasks[0].name]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = operate(*plan, steps=3, resume=tmp_path)[tasks[0].name]
    assert same(state_of(first), state_of(again))
    assert times
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    with torch.no_grad():
        encoders[tasks[0].name].backbone.pos_embed.add_(0.1)
    with pytest.raises(SimoError, match="is the state of another training"):  # of another expert
        operate(*plan, steps=3, resume=tmp_path)


@pytest.mark.parametrize("deep", [False, True])
def test_every_token_counts_alike(model, encoders, val, tasks, monkeypatch, deep):
    """The loss is the mean distance over all tokens: one class token weighs what one patch weighs."""
    batch = {"image": torch.stack([val[index]["image"] for index in range(2)])}
    losses = {}

    def only_look(trained, predict, *_, **__):
        losses.update(predict(batch))

    monkeypatch.setattr("simo.realignment.surgery.fit", only_look)
    operate(model, encoders, val, tasks[:1], steps=1, deep=deep)
    own, expert = (copy.deepcopy(each) for each in (model.encoder, encoders[tasks[0].name]))
    if deep:
        own.taps = expert.taps = [0, 1]
    with torch.no_grad():
        tokens = [
            torch.cat([patches.flatten(3), classes[..., None]], dim=3)
            for patches, classes in (own(batch["image"]), expert(batch["image"]))
        ]
    expected = (tokens[0] - tokens[1]).abs().mean()
    torch.testing.assert_close(losses[tasks[0].name].detach(), expected)
