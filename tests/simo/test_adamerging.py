"""simo.merging.adamerging: what the coefficients mean, their gradient, and what learning them may change."""

from dataclasses import replace

import pytest
import torch

from simo.errors import SimoError
from simo.merging.adamerging import LayerwiseMerge, learn_coefficients, null_space_shares
from simo.merging.methods import merge
from simo.merging.task_vectors import TaskVector
from simo.models import create_model
from simo.training import Optimisation

BUDGET = Optimisation(steps=30, batch_size=2, seed=1, weight_decay=0.1)


class Interrupted(Exception):
    """What ends a training of these tests before its time."""


@pytest.fixture
def base(model):
    """θ_0: the tiny model's encoder."""
    return {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}


@pytest.fixture
def task_vectors(base, tasks):
    """Random task vectors, one a task."""
    found = {}
    for seed, task in enumerate(tasks):
        generator = torch.Generator().manual_seed(seed)
        change = {name: 0.1 * torch.randn(x.shape, generator=generator) for name, x in base.items()}
        found[task.name] = TaskVector(change, change.__getitem__)
    return found


def learn(model, base, task_vectors, val, tasks, rate=0.05, budget=BUDGET, **given):
    return learn_coefficients(model, base, task_vectors, val, tasks, budget, rate, 0.3, **given)


def test_equal_coefficients_are_task_arithmetic(model, base, task_vectors):
    """All λ = α is θ_0 + α Σ τ, tensor by tensor."""
    state = LayerwiseMerge(model.encoder, base, task_vectors, 0.3).state()
    expected = merge("task_arithmetic", list(task_vectors.values())).apply(base, 0.3)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor)


def test_coefficients_belong_to_tensors_and_tasks(model, base, task_vectors):
    """One coefficient moves one tensor along one task vector; those outside [0, 1] count as its ends."""
    layers = LayerwiseMerge(model.encoder, base, task_vectors, 0.0)
    name, other = layers.names[3], layers.names[4]
    with torch.no_grad():
        layers.coefficients[1, 3], layers.coefficients[2, 4] = 0.5, 7.0
    state, task, last = layers.state(), layers.tasks[1], layers.tasks[2]
    torch.testing.assert_close(state[name], base[name] + 0.5 * task_vectors[task][name])
    torch.testing.assert_close(state[other], base[other] + task_vectors[last][other])
    assert all(torch.equal(state[n], base[n]) for n in layers.names if n not in (name, other))
    assert layers.table()[task][name] == 0.5
    assert layers.table()[last][other] == 1.0


def test_gradient_is_that_of_the_weights_along_the_task_vectors(model, base, task_vectors, tasks, val):
    """∂L/∂λ_t^l = ⟨∂L/∂θ^l, τ_t^l⟩, from a merged encoder of ordinary weights."""
    layers = LayerwiseMerge(model.encoder, base, task_vectors, 0.3)
    image = val[0]["image"][None]
    layers(image).patches.square().sum().backward()
    model.encoder.load_state_dict({name: x.detach() for name, x in layers.state().items()})
    model.encoder.requires_grad_(True).zero_grad()
    model.encoder(image).patches.square().sum().backward()
    gradients = dict(model.encoder.named_parameters())
    for row, task in enumerate(layers.tasks):
        for column, name in enumerate(layers.names):
            gradient = gradients[name].grad
            expected = 0.0 if gradient is None else (gradient * task_vectors[task][name]).sum().item()
            assert layers.coefficients.grad[row, column].item() == pytest.approx(expected, rel=1e-3, abs=1e-2)


def test_learning_lowers_the_loss_and_leaves_the_heads(model, base, task_vectors, val, tasks, state_of, same):
    """Heads stay byte for byte; the model holds what the table says; the loss falls."""
    heads = state_of(model.heads)
    table, history = learn(model, base, task_vectors, val, tasks)
    assert same(heads, model.heads.state_dict())
    total = [sum(row[task.name] for task in tasks) for row in history]
    assert sum(total[-5:]) < sum(total[:5])
    for name, tensor in model.encoder.state_dict().items():
        expected = base[name] + sum(table[task.name][name] * task_vectors[task.name][name] for task in tasks)
        torch.testing.assert_close(tensor, expected)
    assert all(0 <= value <= 1 for row in table.values() for value in row.values())


def test_learns_from_what_experts_say(model, base, task_vectors, val, tasks, state_of, same):
    """SyMerge's idea: other labels in place of the data's, which are not read, and heads that learn, too."""
    heads, asked = state_of(model.heads), []

    def teacher(image):
        asked.append(len(image))
        return {
            task.name: torch.zeros(len(image), *image.shape[-2:], dtype=torch.int64)
            if task.is_segmentation
            else torch.ones(len(image), task.channels, *image.shape[-2:])
            for task in tasks
        }

    _, history = learn(model, base, task_vectors, val, tasks, head_rate=0.01, teacher=teacher)
    assert asked[-BUDGET.steps :] == [BUDGET.batch_size] * BUDGET.steps
    assert not same(heads, model.heads.state_dict())
    assert history[-1]["depth"] < 0.5 * history[0]["depth"]  # all ones: nothing that the data say
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_nothing_learned_is_the_start(model, base, task_vectors, val, tasks):
    """Without learning rate the coefficients stay where they were."""
    table, _ = learn(model, base, task_vectors, val, tasks, rate=0.0)
    assert {round(value, 6) for row in table.values() for value in row.values()} == {0.3}


def test_the_encoders_own_state_is_no_base(model, task_vectors, val, tasks):
    """What is merged in place would change it, and with it task vectors that are computed when asked for."""
    with pytest.raises(SimoError, match="of the base is the module's own: expected a clone"):
        learn(model, model.encoder.state_dict(), task_vectors, val, tasks)


def test_weight_decay_does_not_pull(model, base, task_vectors, val, tasks):
    """Towards 0, the pretrained encoder: the coefficients are the same with much of it and with none."""
    much, none = (
        learn(model, base, task_vectors, val, tasks, budget=replace(BUDGET, weight_decay=decay))
        for decay in (10.0, 0.0)
    )
    assert much == none


def test_interrupted_learning_ends_the_same(model, base, task_vectors, val, tasks, tmp_path, monkeypatch):
    """A run that was cut in the middle goes on to the same coefficients."""
    expected, _ = learn(model, base, task_vectors, val, tasks)
    budget = replace(BUDGET, save_seconds=0.0)
    steps = iter(range(12))
    clip = torch.nn.utils.clip_grad_norm_

    def interrupted(*arguments):
        if next(steps, None) is None:
            raise Interrupted
        return clip(*arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", interrupted)
    with pytest.raises(Interrupted):
        learn(model, base, task_vectors, val, tasks, budget=budget, resume=tmp_path / "state.safetensors")
    steps = iter(range(18))  # it goes on, and does not begin again
    with torch.no_grad():  # as a scan of α leaves it: the encoder's own weights are no part of the training
        [parameter.mul_(1.1) for parameter in model.encoder.parameters()]
    table, _ = learn(
        model, base, task_vectors, val, tasks, budget=budget, resume=tmp_path / "state.safetensors"
    )
    assert table == expected
    other = dict(reversed(task_vectors.items()))
    with pytest.raises(SimoError, match="is the state of another training"):  # whose rows are others'
        learn(model, base, other, val, tasks, budget=budget, resume=tmp_path / "state.safetensors")
    with torch.no_grad():
        model.heads["depth"].project.bias.add_(0.1)
    with pytest.raises(SimoError, match="is the state of another training"):  # under other heads
        learn(model, base, task_vectors, val, tasks, budget=budget, resume=tmp_path / "state.safetensors")


def test_batch_norms_are_merged_too(settings, val, tasks):
    """Statistics stay at the first coefficient and variances above 0; counts are those of the base."""
    args = {"backbone": "test_efficientnet", "backbone_args": {}, "blocks": [1, 2]}
    model = create_model(tasks, 0, **settings | args).eval()
    base = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    lower = {name: x - 0.6 if name.endswith("_var") else 1.1 * x for name, x in base.items()}
    vectors = {task.name: TaskVector.between(base, lower) for task in tasks}
    coefficients, _ = learn(model, base, vectors, val, tasks, budget=replace(BUDGET, steps=3))
    state = model.encoder.state_dict()
    assert state.keys() == base.keys()
    name = "backbone.bn1.running_var"
    torch.testing.assert_close(state[name], base[name] - 3 * 0.3 * 0.6)
    assert coefficients["depth"][name] == pytest.approx(0.3)
    assert coefficients["depth"]["backbone.conv_stem.weight"] != pytest.approx(0.3, abs=1e-4)
    assert "backbone.bn1.num_batches_tracked" not in coefficients["depth"]
    full = LayerwiseMerge(model.encoder, base, vectors, 1.0).state()[name]
    assert (full == 0).all()


def test_null_space_shares_are_those_of_an_adapter():
    """NSC's own way, √(1 − (A x)ᵀ (A Aᵀ)⁻¹ (A x) / ‖x‖²), gives the same for any A with these rows' space."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 8, generator=random, dtype=torch.float64)
    adapters = torch.randn(3, 2, 8, generator=random, dtype=torch.float64)
    seen = adapters @ rows.T  # (T, r, n)
    inside = (seen * torch.linalg.solve(adapters @ adapters.mT, seen)).sum(dim=1)
    expected = (1 - inside / rows.square().sum(dim=1)).sqrt()
    spaces = torch.linalg.svd(adapters, full_matrices=False).Vh
    torch.testing.assert_close(null_space_shares(rows, spaces), expected)


def test_null_space_shares_can_be_learned_from():
    """Inputs of 0, or wholly within the space, have a gradient that is finite."""
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    null_space_shares(rows, torch.tensor([[[1.0, 0.0]]])).sum().backward()
    assert torch.isfinite(rows.grad).all()
