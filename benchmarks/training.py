"""Training: `simo.training.fit` with all that belongs to it against a bare step; what bfloat16 buys."""

from contextlib import nullcontext

import torch
from torch.utils.data import default_collate

from benchmarks.pairs import Pair
from benchmarks.realigning import quietly
from benchmarks.sizes import TASKS, model_of
from benchmarks.throughput import WARM_UP, RandomSamples, clock, time_training
from simo.models import create_model
from simo.training import Optimisation, autocast

# by profile: images a step (None: the profile's), steps that are timed in a round, and with how many workers;
# the last one's precision and attention are compared, too
SIZES = {
    "full": {"miniature": (None, 10, (0, 1)), "paper": (1, 1, (0,)), "photos": (None, 2, (0, 1))},
    "tiny": {"tiny": (None, 1, (0, 1))},
}


def pairs(size, folder):
    """Pairs of training steps. Nothing is written into the folder."""
    for profile, (images, steps, variants) in SIZES[size].items():
        settings, shape, batch = model_of(profile)
        budget = Optimisation(steps=steps, batch_size=images or batch, seed=0)
        model = create_model(TASKS, 0, **settings).train()
        samples = RandomSamples(TASKS, shape)
        of = {"miniature": "miniature ViT", "photos": "ViT-S/14", "paper": "ViT-B/14"}.get(profile, profile)
        for workers in variants:
            yield Pair(
                f"Training, {of}, {workers or 'no'} worker{'s' * (not workers)}",
                "bare forward, backward and step on one batch in memory",
                lambda m=model, s=samples, b=budget, w=workers: trained(m, s, b, workers=w),
                lambda m=model, s=samples, b=budget: bare(m, s, b), aim=0.95,
            )  # fmt: skip
    yield Pair(
        f"bfloat16, {of}", "float32",
        lambda: trained(model, samples, budget, precision="bfloat16"),
        lambda: trained(model, samples, budget),
    )  # fmt: skip
    yield Pair(
        f"bfloat16, {of}, attention as plain products", "PyTorch's fused attention",
        lambda: bare(model, samples, budget, lambda: autocast("cpu", "bfloat16")),
        lambda: bare(model, samples, budget, lambda: torch.autocast("cpu", torch.bfloat16)),
    )  # fmt: skip


def trained(model, samples, budget, **changes):
    """Seconds of a step of `fit`."""
    budget = Optimisation(**{**vars(budget), **changes})
    return quietly(lambda: time_training(model, samples, TASKS, budget))


def bare(model, samples, budget, precision=None, tasks=TASKS):
    """Seconds of forward pass, losses, backward pass and AdamW's step, over and over on one batch.

    `precision` gives the context of a forward pass.
    """
    batch = default_collate([samples[number, 0] for number in range(budget.batch_size)])
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    for step in range(WARM_UP + budget.steps):
        if step == WARM_UP:
            start = clock("cpu")
        with precision() if precision else nullcontext():
            predictions = model(batch["image"])
        losses = [task.compute_loss(predictions[task.name].float(), batch[task.name]) for task in tasks]
        torch.stack(losses).mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return (clock("cpu") - start) / budget.steps
