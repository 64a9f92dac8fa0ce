"""simo.training: the schedule, the loop's arithmetic, and that interrupting it changes nothing."""

import math
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from simo import training
from simo.checkpoints import TensorFile
from simo.datasets import PreparedDataset
from simo.errors import SimoError
from simo.tasks import TASKS
from simo.training import Optimisation, fit, one_cycle, pick_device, probe_then_finetune

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
        return {"image": image, "depth": 2 * image}


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


def train(resume=None, budget=BUDGET, stop=None, kill=None, rates=(0.01, 0.05)):
    """Train a small model; raise `Interrupted`, or end the process, in the middle of step `stop`."""
    model, calls = small_model(), 0
    start = int(TensorFile(resume).metadata["step"]) if resume and Path(resume).exists() else 0

    def predict(batch):
        nonlocal calls
        if stop is not None and start + calls == stop:
            if kill:
                signal.raise_signal(kill)
            raise Interrupted
        calls += 1
        return {"depth": model(batch["image"])}

    groups = [(list(model[:2].parameters()), rates[0]), (list(model[5].parameters()), rates[1])]
    history = fit(model, predict, groups, Ramps(), [DEPTH], budget, resume)
    return model.state_dict(), history


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
    history = fit(model, lambda batch: {"depth": model(batch["image"])}, groups, Ramps(), [DEPTH], budget)
    assert history[-1]["depth"] < history[0]["depth"] / 10
    assert model.weight.item() == pytest.approx(2, abs=0.1)


def test_first_step_by_hand():
    """One step is torch's AdamW on the clipped gradient, each group with its own rate times the factor."""
    budget = replace(BUDGET, steps=1, clip=0.1, weight_decay=0.1)
    state, history = train(budget=budget)
    model = small_model()
    groups = [(list(model[:2].parameters()), 0.01), (list(model[5].parameters()), 0.05)]
    (batch,) = training.training_batches(Ramps(), 2, 0, 1, seed=3)
    torch.manual_seed(3 * 1_000_003)
    loss = (model(batch["image"]) - batch["depth"]).abs().mean()
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
        prediction = model(batch["image"])
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
            return dict.fromkeys([task.name for task in tasks], model(batch["image"]))

        fit(model, predict, [([model.weight], 0.1)], Twice(), tasks, replace(BUDGET, steps=1))
        weights.append(gradients[0])
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("stop", range(1, 8))
def test_resumed_equals_uninterrupted(tmp_path, same, stop):
    """Interrupted at any step, a training goes on to the same bits: weights, batch norm and history."""
    path = tmp_path / "state.safetensors"
    expected = train()
    if stop < 7:
        with pytest.raises(Interrupted):
            train(path, stop=stop)
    else:
        train(path)
    assert int(TensorFile(path).metadata["step"]) == stop
    state, history = train(path)
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


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill")
def test_killed_process_resumes(tmp_path, same):
    """A process that is killed without a chance to clean up loses nothing but the step it was in."""
    path = tmp_path / "a folder" / "state.safetensors"
    code = (
        "import signal, torch, test_training as t; torch.set_num_threads(1);"
        f"t.train({str(path)!r}, stop=4, kill=signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True)
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
    monkeypatch.setattr(training, "_save_state", lambda *arguments: saved.append(arguments[3]))
    train(tmp_path / "state.safetensors", replace(BUDGET, save_seconds=1000))
    assert saved == [7]


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
    with pytest.raises(SimoError, match="state.safetensors is the state of another training: delete it"):
        fit(other, None, [(list(other.parameters()), 0.1)], Ramps(), [DEPTH], BUDGET, path)


def test_damaged_state_is_refused(tmp_path):
    """A state that cannot be read is named; a half-written one cannot arise, because writing is atomic."""
    path = tmp_path / "state.safetensors"
    train(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SimoError, match="state.safetensors cannot be read"):
        train(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_training(tmp_path, value):
    """The message names the task and the step, and no spoiled state is left to resume from."""
    model = small_model()

    def predict(batch, calls=[]):  # noqa: B006
        calls.append(batch)
        return {"depth": model(batch["image"]) * (value if len(calls) == 3 else 1)}

    with pytest.raises(SimoError, match="loss of task depth became (nan|inf) at step 3 .*learning rate"):
        fit(
            model,
            predict,
            [(list(model[5].parameters()), 0.1)],
            Ramps(),
            [DEPTH],
            BUDGET,
            tmp_path / "s.safetensors",
        )
    assert int(TensorFile(tmp_path / "s.safetensors").metadata["step"]) == 2


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


def test_expert_resumes_in_either_phase(model, nyuv2, tmp_path, monkeypatch, same):
    """Interrupted in probe or fine-tuning, an expert ends with the very weights of an uninterrupted run."""
    dataset = PreparedDataset(nyuv2, "nyuv2", "train", ["depth"], scales=(1.0, 1.5), crop=(16, 16))
    probe, finetune = replace(BUDGET, steps=3), replace(BUDGET, steps=4)

    def expert(folder=None, stop=None):
        copy, steps = deepcopy(model), 0
        del copy.heads["segmentation"], copy.heads["normals"]
        forward = copy.forward

        def counted(image):
            nonlocal steps
            steps += 1
            if steps == stop:
                raise Interrupted
            return forward(image)

        copy.forward = counted
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


def test_explicit_device_and_precision_are_kept():
    """What a reader asks for is not replaced by a guess; without a GPU, "auto" is exact arithmetic."""
    assert pick_device("cpu", "bfloat16") == ("cpu", "bfloat16")
    assert pick_device("cpu", "auto") == ("cpu", "float32")
    assert pick_device("auto", "float32")[1] == "float32"
