"""Realignment and the choice of α, against computing the same again each time; closed form's limits."""

import contextlib
import io

import torch

from benchmarks.merging import vectors_of
from benchmarks.pairs import Pair
from benchmarks.sizes import DATASET, TASKS, model_of, write_images
from simo.checkpoints import load_into, save_tensors
from simo.datasets import PreparedDataset, evaluation_batches
from simo.evaluation import evaluate, scan_alpha
from simo.merging.methods import merge
from simo.models import create_model
from simo.realignment import closedform
from simo.realignment.trained import realign_heads
from simo.training import Optimisation, fit

# the profile, its images for realignment and steps of a head (both a twentieth of the study's), images of a
# scan, and its values of α
SIZES = {"full": ("photos", 20, 15, 8, 11), "tiny": ("tiny", 2, 2, 2, 2)}
RATE = 1e-3  # of heads


def pairs(size, folder):
    """Pairs of realigning and choosing, on made-up images written into a folder."""
    profile, images, steps, scanned, values = SIZES[size]
    settings, shape, batch = model_of(profile)
    model = create_model(TASKS, 0, **settings).eval()
    data = PreparedDataset(write_images(folder / "realign", images, shape), DATASET, "val")
    budget = Optimisation(steps=steps, batch_size=batch, seed=0)
    yield Pair(
        "Heads on features computed once", "every step encodes its images again",
        lambda: quietly(lambda: realign_heads(model, data, TASKS, budget, RATE)),
        lambda: quietly(lambda: encode_each_step(model, data, budget, settings)), aim=10.0,
    )  # fmt: skip
    yield from closed_form_pairs(model, data, batch, settings)
    few = PreparedDataset(write_images(folder / "scan", scanned, shape), DATASET, "val")
    yield from scan_pairs(model, few, batch, settings, folder, [v / values for v in range(values)])


def quietly(function):
    """Call without progress bars and printed lines."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return function()


def encode_each_step(model, data, budget, settings):
    """Fine-tune the heads one by one as `realign_heads` does, through the frozen encoder at each step."""
    copy = create_model(TASKS, 0, **settings)
    copy.load_state_dict(model.state_dict())
    copy.eval().requires_grad_(False)
    for task in TASKS:
        own = copy.only([task.name])
        head = own.heads[task.name].train().requires_grad_(True)
        one = PreparedDataset(data.root, DATASET, "val", [task.name])
        fit(own, lambda b, own=own: own(b["image"]), [([*head.parameters()], RATE)], one, [task], budget)
    return copy.eval()


def closed_form_pairs(model, data, batch, settings):
    """Closed form against the passes of its encoders alone, and its sums in float64 against float32."""
    loader = evaluation_batches(data, batch)
    experts = {task.name: create_model((), 1, **settings).encoder.eval() for task in TASKS}

    @torch.no_grad()
    def passes():
        for each in loader:
            for encoder in (model.encoder, *experts.values()):
                encoder(each["image"])

    layers, read = closedform._first_layers(model, experts, "cpu")
    streamed = model.encoder, experts, loader, read, closedform._output_of(layers)
    yield Pair(
        "Closed form's sums, image by image", "the passes of its encoders alone",
        lambda: quietly(lambda: closedform.stream_grams(*streamed)), passes,
    )  # fmt: skip
    yield Pair(
        f"Closed form of {len(data)} images, solved", "the passes of its encoders alone",
        lambda: quietly(lambda: closedform.realign_closed_form(model, experts, loader)), passes,
    )  # fmt: skip
    with torch.no_grad():
        features = model.encoder(next(iter(loader))["image"]).patches
    rows = features.flatten(3).transpose(2, 3).flatten(0, 2)
    plain = torch.cat([rows, rows[:, :17], torch.ones(len(rows), 1)], dim=1)
    yield Pair(
        "Gram matrices in float64", "the same products in float32",
        lambda: closedform.gram(rows, rows[:, :17]), lambda: plain.T @ plain,
    )  # fmt: skip


def scan_pairs(model, data, batch, settings, folder, alphas):
    """A scan of α against a new model, loader and pass a value, and against a pass a head."""
    base = {name: x.clone() for name, x in model.encoder.state_dict().items()}
    random = torch.Generator().manual_seed(0)
    paths = [folder / f"scanned_{number}.safetensors" for number in range(4)]
    for path in paths:
        save_tensors(path, {n: x + 1e-3 * torch.randn(x.shape, generator=random) for n, x in base.items()})
    baselines = {task.name: 1.0 for task in TASKS}
    loader = evaluation_batches(data, batch)

    def ours():
        merged = merge("task_arithmetic", vectors_of(paths)[1]).compute()
        return scan_alpha(model, base, merged, alphas, loader, TASKS, baselines)

    yield Pair(
        "A scan of α", "files read, a new model, loader and pass a value", ours,
        lambda: [evaluate(new_model(a, base, paths, model, settings), evaluation_batches(data, batch), TASKS)
                 for a in alphas],
        aim=3.0,
    )  # fmt: skip
    kept = merge("task_arithmetic", vectors_of(paths)[1]).compute()
    state = sum(x.nbytes for x in base.values())
    yield Pair(
        "Another α in place", "a new state dict a value",
        lambda: kept.load_into(model.encoder, base, 0.3),
        lambda: load_into(model.encoder, kept.apply(base, 0.3), "merged"), state=state, memory=0.6,
    )  # fmt: skip

    def pass_a_head():
        for task in TASKS:
            own = PreparedDataset(data.root, DATASET, "val", [task.name])
            evaluate(model.only([task.name]), evaluation_batches(own, batch), [task])

    yield Pair(
        "Scores of all tasks", "an encoder pass a head",
        lambda: evaluate(model, loader, TASKS), pass_a_head,
    )  # fmt: skip


def new_model(alpha, base, paths, model, settings):
    """A model made anew, with the encoder merged from files."""
    made = create_model(TASKS, 0, **settings)
    made.heads.load_state_dict(model.heads.state_dict())
    made.encoder.load_state_dict(merge("task_arithmetic", vectors_of(paths)[1]).apply(base, alpha))
    return made
