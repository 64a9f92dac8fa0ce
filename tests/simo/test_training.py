"""simo.training: the schedule, the loop's arithmetic, and that interrupting it changes nothing."""

import math
import os
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simo import training
from simo.checkpoints import TensorFile
from simo.datasets import PreparedDataset
from simo.errors import SimoError
from simo.models import create_model
from simo.tasks import TASKS
from simo.training import (
    MemoryNeed,
    Optimisation,
    autocast,
    device_name,
    fit,
    memory_need,
    one_cycle,
    pick_device,
    probe_then_finetune,
)

DEPTH = TASKS["nyuv2"][1]
BUDGET = Optimisation(steps=7, batch_size=2, seed=3, weight_decay=0.01, warmup=0.3, save_seconds=0)


class Interrupted(Exception):
    """What ends a training of these tests before its time."""


class Ramps(torch.utils.data.Dataset):
    """Five images whose depth is twice their red, with noise that depends on the augmentation key."""

    def __len__(self):
        return 5

    def __getitem__(self, item):
        index, key = item
        noise = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(key))
        image = torch.linspace(0.1, 1 + index, 16).view(1, 4, 4) + 0.1 * noise
        return {"red": image, "depth": 2 * image}


def small_model():
    """A network with everything that a resumed training must restore: batch norm, dropout, a frozen part."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(4, 1, 1),
        nn.Conv2d(1, 1, 1),
    )
    model[4].requires_grad_(False)
    return model.train()


def train(resume=None, budget=BUDGET, stop=None, kill=None, rates=(0.01, 0.05), label=None):
    """Train a small model; raise `Interrupted`, or end the process, in the middle of step `stop`."""
    model, calls = small_model(), 0
    start = int(TensorFile(resume).metadata["step"]) if resume and Path(resume).exists() else 0

    def predict(batch):
        nonlocal calls
        if stop is not None and start + calls // budget.accumulate == stop:
            if kill:
                signal.raise_signal(kill)
            raise Interrupted
        calls += 1
        return {"depth": model(batch["red"])}

    history = fit(
        model, predict, groups_of(model, rates), Ramps(), [DEPTH], budget, label=label, resume=resume
    )
    return model.state_dict(), history


def groups_of(model, rates=(0.01, 0.05)):
    """What is trained of a small model, each with its learning rate."""
    return [(list(model[:2].parameters()), rates[0]), (list(model[5].parameters()), rates[1])]


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 0.05), (200, 0.1), (700, 0.5)])
def test_one_cycle_shape(steps, warmup):
    """The learning rate rises from 1/25 to its peak within the warm-up, then falls to almost nothing."""
    factors = [one_cycle(step, steps, warmup) for step in range(steps)]
    peak = round(warmup * steps)
    assert factors[0] == 1 / 25
    assert factors[-1] == pytest.approx(1 / 250_000)
    assert max(factors) == pytest.approx(1, abs=1e-3)
    assert factors.index(max(factors)) in (peak, peak - 1)
    assert factors[: peak - 1] == sorted(factors[: peak - 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_one_cycle_is_torchs():
    """Agrees with torch's own scheduler, cosine, without momentum: the paper's schedule by its usual name."""
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=1, total_steps=501, pct_start=0.1, cycle_momentum=False, final_div_factor=1e4
    )
    for step in range(500):
        assert one_cycle(step, 500, 0.1) == pytest.approx(theirs.get_last_lr()[0], abs=0.03)
        optimiser.step()
        theirs.step()


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.05), (3, 0.1), (4, 0.0), (4, 1.0)])
def test_one_cycle_of_few_steps(steps, warmup):
    """Smoke tests take a handful of steps: every factor lies in (0, 1]."""
    assert all(0 < one_cycle(step, steps, warmup) <= 1 for step in range(steps))


def test_loss_decreases():
    """The loop learns that depth is twice the red."""
    model = nn.Conv2d(1, 1, 1)
    groups = [(list(model.parameters()), 0.1)]
    budget = replace(BUDGET, steps=100, weight_decay=0.0)
    history = fit(model, lambda batch: {"depth": model(batch["red"])}, groups, Ramps(), [DEPTH], budget)
    assert history[-1]["depth"] < history[0]["depth"] / 10
    assert model.weight.item() == pytest.approx(2, abs=0.1)


def test_parameters_may_come_as_a_generator():
    """As `parameters()` gives them; what is counted, clipped, trained and told apart is each of them."""
    ends = []
    for given in (list, iter):
        model = nn.Conv2d(1, 1, 1)
        nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
        groups, budget = [(given(list(model.parameters())), 0.1)], replace(BUDGET, clip=1e-3)
        predict = lambda batch, model=model: {"depth": model(batch["red"])}  # noqa: E731
        fit(model, predict, groups, Ramps(), [DEPTH], budget, label="counted")
        ends.append(model.weight.item())
    assert ends[0] == ends[1] != 1


def test_each_micro_batch_draws_anew():
    """Dropout is another for every part of a step, as it is for every image of a batch."""
    model, drawn = nn.Conv2d(1, 1, 1), []

    def predict(batch):
        drawn.append(torch.rand(1).item())
        return {"depth": model(batch["red"])}

    budget = replace(BUDGET, steps=3, accumulate=2)
    fit(model, predict, [(list(model.parameters()), 0.1)], Ramps(), [DEPTH], budget)
    assert len(set(drawn)) == len(drawn) == 6


def test_first_step_by_hand():
    """One step is torch's AdamW on the clipped gradient, each group with its own rate times the factor."""
    budget = replace(BUDGET, steps=1, clip=0.1, weight_decay=0.1)
    state, history = train(budget=budget)
    model = small_model()
    groups = [(list(model[:2].parameters()), 0.01), (list(model[5].parameters()), 0.05)]
    (batch,) = training.training_batches(Ramps(), 2, 0, 1, seed=3)
    torch.manual_seed(3 * 1_000_003)
    loss = (model(batch["red"]) - batch["depth"]).abs().mean()
    loss.backward()
    trained = groups[0][0] + groups[1][0]
    norm = math.sqrt(sum((p.grad**2).sum() for p in trained))
    assert norm > 0.1
    for parameter in trained:
        parameter.grad *= 0.1 / norm
    factor = one_cycle(0, 1, budget.warmup)
    for parameters, rate in groups:
        torch.optim.AdamW(parameters, lr=rate * factor, weight_decay=0.1).step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-6)
    assert history == [{"step": 1, "learning_rate": factor, "depth": pytest.approx(loss.item())}]


def test_learning_rates_follow_the_cycle(monkeypatch):
    """Both groups' rates are their peak times the schedule's factor, at every step."""
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a: seen.append([group["lr"] for group in self.param_groups]) or step(self, *a),
    )
    _, history = train()
    factors = [one_cycle(number, 7, 0.3) for number in range(7)]
    assert seen == [[0.01 * factor, 0.05 * factor] for factor in factors]
    assert [row["learning_rate"] for row in history] == factors


def test_history_averages_between_rows():
    """About a hundred rows, each the mean loss since the last, so that figures show the whole training."""
    _, history = train(budget=replace(BUDGET, steps=203))
    assert [row["step"] for row in history] == [*range(2, 203, 2), 203]
    losses = []
    model = small_model()

    def predict(batch):
        prediction = model(batch["red"])
        losses.append((prediction - batch["depth"]).abs().mean().item())
        return {"depth": prediction}

    groups = [(list(model[:2].parameters()), 0.01), (list(model[5].parameters()), 0.05)]
    fit(model, predict, groups, Ramps(), [DEPTH], replace(BUDGET, steps=203))
    assert history[10]["depth"] == pytest.approx((losses[20] + losses[21]) / 2, rel=1e-5)
    assert history[-1]["depth"] == pytest.approx(losses[202], rel=1e-5)


def test_objective_is_the_mean_of_the_losses():
    """Joint training weighs tasks equally: two tasks of equal loss give the gradient of one."""

    class Twice(Ramps):
        def __getitem__(self, item):
            sample = super().__getitem__(item)
            return {**sample, "again": sample["depth"]}

    weights = []
    for tasks in ([DEPTH], [DEPTH, replace(DEPTH, name="again")]):
        model = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.zeros_(model.weight)
        gradients = []
        model.weight.register_hook(gradients.append)

        def predict(batch, model=model, tasks=tasks):
            return dict.fromkeys([task.name for task in tasks], model(batch["red"]))

        fit(model, predict, [([model.weight], 0.1)], Twice(), tasks, replace(BUDGET, steps=1))
        weights.append(gradients[0])
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", range(1, 8))
def test_resumed_equals_uninterrupted(tmp_path, same, stop, accumulate):
    """Interrupted at any step, a training goes on to the same bits: weights, batch norm and history."""
    path, budget = tmp_path / "state.safetensors", replace(BUDGET, accumulate=accumulate)
    expected = train(budget=budget)
    if stop < 7:
        with pytest.raises(Interrupted):
            train(path, budget, stop=stop)
    else:
        train(path, budget)
    assert int(TensorFile(path).metadata["step"]) == stop
    state, history = train(path, budget)
    assert same(state, expected[0])
    assert history == expected[1]


def test_resumed_between_rows_equals_uninterrupted(tmp_path, same):
    """With fewer rows than steps, what the unfinished row has summed up is not lost."""
    budget = replace(BUDGET, steps=203)
    expected = train(budget=budget)
    for stop in (51, 102):
        with pytest.raises(Interrupted):
            train(tmp_path / "state.safetensors", budget, stop=stop)
    state, history = train(tmp_path / "state.safetensors", budget)
    assert same(state, expected[0])
    assert history == expected[1]


def test_killed_process_resumes(tmp_path, same):
    """A process that is killed without a chance to clean up loses nothing but the step it was in."""
    path = tmp_path / "a folder" / "state.safetensors"
    code = (
        "import signal, torch, test_training as t; torch.set_num_threads(1);"
        f"t.train({str(path)!r}, stop=4, kill=signal.SIGKILL)"
    )
    here = Path(__file__)
    own = os.environ | {"PYTHONPATH": str(here.parents[2])}  # the code under test, not what is installed
    killed = subprocess.run([sys.executable, "-c", code], cwd=here.parent, env=own, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert int(TensorFile(path).metadata["step"]) == 4
    state, history = train(path)
    expected = train()
    assert same(state, expected[0])
    assert history == expected[1]


def test_finished_training_is_not_repeated(tmp_path, same):
    """Running again costs nothing and gives the same weights and history."""
    path = tmp_path / "state.safetensors"
    expected = train(path)
    state, history = train(path, stop=7)
    assert same(state, expected[0])
    assert history == expected[1]


def test_state_is_saved_rarely(tmp_path, monkeypatch):
    """Saving goes by the clock, not by the step: a fast training does not spend its time on the disk."""
    saved = []
    monkeypatch.setattr(training, "_save_state", lambda *arguments: saved.append(arguments))
    train(tmp_path / "state.safetensors", replace(BUDGET, save_seconds=1000))
    assert len(saved) == 1  # at the end


def test_frozen_parameters_are_not_saved(tmp_path):
    """The state holds what training changes: of a ViT under a trained head, 300 MB need not be written."""
    train(tmp_path / "state.safetensors")
    names = {name.split(".", 1)[1] for name in TensorFile(tmp_path / "state.safetensors") if "model." in name}
    assert {"0.weight", "1.running_mean", "1.num_batches_tracked", "5.bias"} <= names
    assert not {"4.weight", "4.bias"} & names


def test_state_of_another_training_is_refused(tmp_path):
    """A state that does not fit is named, and the model is not trained from a mixture."""
    path = tmp_path / "state.safetensors"
    train(path)
    other = nn.Conv2d(1, 1, 1)
    with pytest.raises(SimoError, match="state.safetensors is the state of another training: expected"):
        fit(other, None, [(list(other.parameters()), 0.1)], Ramps(), [DEPTH], BUDGET, resume=path)


@pytest.mark.parametrize(
    "other",
    [
        {"budget": replace(BUDGET, seed=8)},
        {"budget": replace(BUDGET, steps=5)},
        {"budget": replace(BUDGET, steps=300)},
        {"budget": replace(BUDGET, weight_decay=0.2)},
        {"budget": replace(BUDGET, batch_size=2 * BUDGET.batch_size)},
        {"budget": replace(BUDGET, accumulate=BUDGET.batch_size)},
        {"budget": replace(BUDGET, warmup=0.5)},
        {"budget": replace(BUDGET, clip=1.0)},
        {"rates": (0.01, 0.04)},
        {"label": "head depth"},  # or another balance, or adapter, of which labels tell
    ],
)
def test_state_is_continued_by_its_own_training_only(tmp_path, other):
    """What another seed, budget, rate or purpose would give is not passed off as this training's result."""
    path = tmp_path / "state.safetensors"
    train(path)
    with pytest.raises(SimoError, match="state.safetensors is the state of another training: expected"):
        train(path, **other)
    elsewhere = replace(BUDGET, precision="bfloat16", save_seconds=1.0)  # where is no matter
    train(path, elsewhere, stop=0)


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "4.weight"])  # trained, buffer, frozen
def test_state_is_continued_from_its_own_start_only(tmp_path, monkeypatch, name):
    """Another model of the same shapes, such as of another seed or α, is not given this one's result."""
    path = tmp_path / "state.safetensors"
    train(path)
    other = small_model()
    other.state_dict()[name].add_(0.01)
    monkeypatch.setitem(train.__globals__, "small_model", lambda: other)
    with pytest.raises(
        SimoError, match="is the state of another training: expected the model, tasks and budget of"
    ):
        train(path)


def test_damaged_state_is_refused(tmp_path):
    """A state that cannot be read is named; a half-written one cannot arise, because writing is atomic."""
    path = tmp_path / "state.safetensors"
    train(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SimoError, match="state.safetensors, in the format safetensors, cannot be decoded"):
        train(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_training(tmp_path, value):
    """The message names the task and the step, and no spoiled state is left to resume from."""
    model = small_model()

    def predict(batch, calls=[]):  # noqa: B006
        calls.append(batch)
        return {"depth": model(batch["red"]) * (value if len(calls) == 3 else 1)}

    with pytest.raises(SimoError, match="loss of depth became (nan|inf) at step 3 .*learning rate"):
        fit(
            model,
            predict,
            [(list(model[5].parameters()), 0.1)],
            Ramps(),
            [DEPTH],
            BUDGET,
            resume=tmp_path / "s.safetensors",
        )
    assert int(TensorFile(tmp_path / "s.safetensors").metadata["step"]) == 2


class Sparse(torch.utils.data.Dataset):
    """Four images of random depth; of image i only the first `valid[i]` of 16 pixels are valid."""

    def __init__(self, valid):
        self.valid = valid

    def __len__(self):
        return 4

    def __getitem__(self, item):
        index, _ = item
        image, depth = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(index))
        return {"red": image, "depth": (depth + 1) * (torch.arange(16).view(1, 4, 4) < self.valid[index])}


def first_gradient(accumulate, valid):
    """Gradient of the first step on all four images, and the order in which they came, in micro-batches."""
    torch.manual_seed(0)
    model = nn.Conv2d(1, 1, 3, padding=1)
    gradients, batches = [], []

    def predict(batch):
        batches.append(batch)
        return {"depth": model(batch["red"])}

    optimiser = torch.optim.AdamW.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.optim.AdamW,
            "step",
            lambda self: gradients.append(model.weight.grad.clone()) or optimiser(self),
        )
        budget = Optimisation(steps=1, batch_size=4, seed=0, clip=1e9, accumulate=accumulate)
        history = fit(model, predict, [(list(model.parameters()), 0.0)], Sparse(valid), [DEPTH], budget)
    return model, gradients[0], batches, history[0]["depth"]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_gradient_is_the_batchs(accumulate):
    """With equally many valid pixels everywhere, micro-batches give the whole batch's gradient and loss."""
    _, expected, (whole,), loss = first_gradient(1, [7, 7, 7, 7])
    _, gradient, parts, accumulated_loss = first_gradient(accumulate, [7, 7, 7, 7])
    assert torch.equal(torch.cat([part["red"] for part in parts]), whole["red"])
    assert {len(part["red"]) for part in parts} == {4 // accumulate}
    torch.testing.assert_close(gradient, expected)
    assert accumulated_loss == pytest.approx(loss)


def test_accumulated_gradient_is_the_mean_of_micro_batches():
    """With unequal numbers of valid pixels it is the micro-batches' mean, as documented: not the batch's."""
    valid = [1, 16, 5, 9]
    model, gradient, parts, loss = first_gradient(2, valid)
    losses = [DEPTH.compute_loss(model(part["red"]), part["depth"]) for part in parts]
    (expected,) = torch.autograd.grad(sum(losses) / 2, [model.weight])
    torch.testing.assert_close(gradient, expected)
    assert loss == pytest.approx((sum(losses) / 2).item())
    assert not torch.allclose(gradient, first_gradient(1, valid)[1], rtol=0.01)


@pytest.mark.parametrize("accumulate", [0, 3, 32])
def test_batch_must_be_divisible(accumulate):
    """A batch is not silently shortened to what micro-batches can make up."""
    with pytest.raises(SimoError, match=f"accumulate is {accumulate}: expected a divisor of batch_size, 16"):
        Optimisation(steps=1, batch_size=16, seed=0, accumulate=accumulate)


def test_compiled_training_is_the_same(model, nyuv2, monkeypatch):
    """torch.compile changes neither names nor, but for rounding, results (here it fuses nothing)."""
    dataset, calls = PreparedDataset(nyuv2, "nyuv2", "train", ["depth"], scales=(1.0,), crop=(16, 16)), []
    del model.heads["segmentation"], model.heads["normals"]
    compile_, states = torch.compile, []
    monkeypatch.setattr(
        torch, "compile", lambda function: calls.append(function) or compile_(function, backend="eager")
    )
    for compiled in (False, True):
        copy = deepcopy(model)
        budget = replace(BUDGET, steps=2, compile=compiled)
        probe_then_finetune(copy, dataset, [DEPTH], budget, budget, 0.001, 0.01)
        states.append(copy.state_dict())
    assert len(calls) == 2
    assert list(states[0]) == list(states[1]) == list(model.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=1e-5, rtol=1e-4)


def need_of(model, budget=BUDGET, predict=None):
    predict = predict or (lambda batch: {"depth": model(batch["red"])})
    return memory_need(model, predict, groups_of(model), Ramps(), [DEPTH], budget)


def test_memory_of_weights_is_exact():
    """Weights, gradients and optimiser are what a training holds after its first step, byte for byte."""
    held, step = {}, torch.optim.AdamW.step

    def watched(optimiser):
        step(optimiser)
        trained = [p for group in optimiser.param_groups for p in group["params"]]
        held["gradients"] = sum(p.grad.nbytes for p in trained)
        held["optimiser"] = sum(x.nbytes for state in optimiser.state.values() for x in state.values())

    model = small_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        predict = lambda batch: {"depth": model(batch["red"])}  # noqa: E731
        fit(model, predict, groups_of(model), Ramps(), [DEPTH], replace(BUDGET, steps=1))
    need = need_of(model)
    assert {"gradients": need.gradients, "optimiser": need.optimiser} == held
    assert need.weights == sum(tensor.nbytes for tensor in model.state_dict().values())


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_memory_of_activations_by_hand(batch_size):
    """Two convolutions keep their inputs (the ReLU is one of them), the L1 loss its error and mask."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    rates = [(list(model.parameters()), 0.1)]
    budget = replace(BUDGET, batch_size=batch_size)
    predict = lambda batch: {"depth": model(batch["red"])}  # noqa: E731
    need = memory_need(model, predict, rates, Ramps(), [DEPTH], budget)
    image = 16 * 4  # bytes of a channel of 4×4 floats
    mask, divisor = 16, 8  # a byte a pixel; the number of valid pixels, an integer
    assert need.activations == batch_size * (image + 4 * image + image + mask) + divisor
    assert need.images == batch_size


def test_memory_grows_with_the_micro_batch():
    """What a step needs depends on the images in memory, not on all of the step's."""
    needs = [need_of(small_model(), replace(BUDGET, batch_size=b, accumulate=a)) for b, a in [(4, 1), (8, 2)]]
    assert needs[0] == needs[1]


def test_memory_is_measured_without_a_trace(state_of, same):
    """Batch norm statistics, gradients and the stream of random numbers are as if nothing had been run."""
    model, calls = small_model(), []

    def predict(batch):
        calls.append(len(batch["red"]))
        return {"depth": model(batch["red"])}

    before = state_of(model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    need_of(model, predict=predict)
    assert calls == [2, 3]
    assert torch.equal(torch.rand(3), expected)
    assert same(model.state_dict(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_need_reads_well():
    """The line that a reader sees before a long training, in a unit that fits."""
    gib = 2**30
    need = MemoryNeed(int(0.4 * gib), int(0.7 * gib), int(0.3 * gib), int(3.9 * gib), 16)
    parts = "weights 0.4, optimiser 0.7, gradients 0.3, activations 3.9 for 16 images"
    assert str(need) == f"about 5.3 GiB ({parts})"
    assert str(MemoryNeed(0, 0, 512, 1024, 1)).startswith("about 1.5 KiB (weights 0.0, ")
    assert str(MemoryNeed(0, 0, 0, 0, 1)).startswith("about 0.0 KiB")
    assert str(MemoryNeed(0, 0, 512, 1024, 1)).endswith("activations 1.0 for 1 image)")


def test_probe_leaves_the_encoder_alone(model, nyuv2, tasks, tmp_path, state_of, same):
    """The first phase trains heads only, to the last bit; the second trains the encoder, too."""
    dataset = PreparedDataset(nyuv2, "nyuv2", "train", scales=(1.0,), crop=(16, 16))
    before = state_of(model)
    probe_then_finetune(model, dataset, tasks, BUDGET, replace(BUDGET, steps=0), 0.01, 0.01)
    probed = state_of(model)
    encoder = [name for name in before if name.startswith("encoder.")]
    assert same({name: before[name] for name in encoder}, {name: probed[name] for name in encoder})
    assert not torch.equal(before["heads.depth.project.weight"], probed["heads.depth.project.weight"])
    history = probe_then_finetune(model, dataset, tasks, BUDGET, BUDGET, 0.01, 0.01, tmp_path)
    after = model.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in encoder if name.endswith("qkv.weight"))
    assert [row.keys() for row in history["finetune"]] == [
        {"step", "learning_rate", "segmentation", "depth", "normals"}
    ] * 7
    assert {path.name for path in tmp_path.iterdir()} == {"probe.safetensors", "finetune.safetensors"}
    assert not any(".encoder." in name for name in TensorFile(tmp_path / "probe.safetensors"))


def test_probe_leaves_the_encoders_statistics_alone(settings, nyuv2, tasks, state_of, same):
    """Batch norms of the frozen encoder keep the statistics of θ_0; in fine-tuning they move."""
    dataset = PreparedDataset(nyuv2, "nyuv2", "train")
    args = {"backbone": "test_efficientnet", "backbone_args": {}, "blocks": [1, 2]}
    model = create_model(tasks, 0, **settings | args)
    before = state_of(model.encoder)
    probe_then_finetune(model, dataset, tasks, BUDGET, replace(BUDGET, steps=0), 0.01, 0.01)
    assert same(before, model.encoder.state_dict())
    probe_then_finetune(model, dataset, tasks, replace(BUDGET, steps=0), BUDGET, 0.01, 0.01)
    after = model.encoder.state_dict()
    assert not torch.equal(before["backbone.bn1.running_mean"], after["backbone.bn1.running_mean"])
    assert after["backbone.bn1.num_batches_tracked"] == BUDGET.steps


def test_memory_of_gradients_by_task_is_told(model, nyuv2, tasks, capsys):
    """PCGrad holds every task's gradient of the encoder, twice; what weighs losses holds none of them."""
    dataset = PreparedDataset(nyuv2, "nyuv2", "train", scales=(1.0,), crop=(16, 16))
    for balance, told in {"equal": 0, "pcgrad": 1}.items():
        probe_then_finetune(model, dataset, tasks, BUDGET, BUDGET, 0.01, 0.01, balance=balance)
        assert capsys.readouterr().out.count("\nmemory for pcgrad: up to 0.0 GiB more\n") == told


def test_expert_resumes_in_either_phase(model, nyuv2, tmp_path, monkeypatch, same):
    """Interrupted in probe or fine-tuning, an expert ends with the very weights of an uninterrupted run."""
    dataset = PreparedDataset(nyuv2, "nyuv2", "train", ["depth"], scales=(1.0, 1.5), crop=(16, 16))
    probe, finetune = replace(BUDGET, steps=3), replace(BUDGET, steps=4)

    def expert(folder=None, stop=None):
        copy, steps, one_cycle = deepcopy(model), 0, training.one_cycle
        del copy.heads["segmentation"], copy.heads["normals"]

        def counted(*arguments):
            nonlocal steps
            steps += 1
            if steps == stop:
                raise Interrupted
            return one_cycle(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(training, "one_cycle", counted)
            history = probe_then_finetune(copy, dataset, [DEPTH], probe, finetune, 0.01, 0.02, folder)
        return copy.state_dict(), history

    expected = expert()
    for stop in (3, 4):  # in the probe, then two steps further, in the fine-tuning
        with pytest.raises(Interrupted):
            expert(tmp_path, stop)
    assert int(TensorFile(tmp_path / "finetune.safetensors").metadata["step"]) == 2
    state, history = expert(tmp_path)
    assert same(state, expected[0])
    assert history == expected[1]


def test_unknown_precision_is_refused():
    """It does not silently mean float32."""
    refused = pytest.raises(SimoError, match="unknown precision 'fp16': expected one of .*'float32'")
    with refused, autocast("cpu", "fp16"):
        raise AssertionError("taken for another precision")


def attended(precision, shape=(2, 3, 20, 8)):
    """Attention within `autocast` on random queries, keys and values, and the queries' gradient."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(shape, generator=generator) for _ in range(4))
    q.requires_grad_()
    with autocast("cpu", precision):
        out = F.scaled_dot_product_attention(q, k, v)
    (out.float() * weight).sum().backward()
    return out, q.grad


def test_attention_in_bfloat16_is_attention():
    """Plain products give float32's values and gradients within bfloat16's 8 bits; the switch is put back."""
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    (exact, exact_gradient), (out, gradient) = attended("float32"), attended("bfloat16")
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == allowed
    assert out.dtype == torch.bfloat16
    for close, right in ((out, exact), (gradient, exact_gradient)):
        assert 0 < (close - right).norm() < 0.01 * right.norm()


def test_attention_in_float32_is_pytorchs_own():
    """The miniature's numbers do not depend on how bfloat16 is made fast."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, 3, 20, 8), generator=generator) for _ in range(3))
    assert torch.equal(attended("float32")[0], F.scaled_dot_product_attention(q, k, v))


def test_explicit_device_and_precision_are_kept():
    """What a reader asks for is not replaced by a guess; without a GPU, "auto" is exact arithmetic."""
    assert pick_device("cpu", "bfloat16") == ("cpu", "bfloat16")
    assert pick_device("cpu", "auto") == ("cpu", "float32")
    assert pick_device("auto", "float32")[1] == "float32"


def test_emulated_bfloat16_is_not_chosen(monkeypatch):
    """A GPU that has to emulate it computes faster in float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert pick_device("cuda") == ("cuda", "float32")


def test_a_processor_is_named_as_its_system_names_it(tmp_path, monkeypatch):
    """A record says on which processor its numbers came about: another one adds in another order."""
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(training, "Path", lambda path: told)
    monkeypatch.setattr(training.platform, "machine", lambda: "riscv64")
    rest = f", {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"
    assert device_name("cpu") == "riscv64" + rest
    told.write_text("processor\t: 0\nmodel name\t: Fast One @ 2 GHz\nmodel name\t: Other\n")
    assert device_name("cpu") == "Fast One @ 2 GHz" + rest
    told.write_text("processor\t: 0\n")
    assert device_name("cpu") == "riscv64" + rest
