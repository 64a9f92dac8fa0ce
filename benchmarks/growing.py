"""How a training step's cost grows: all of one thing against less of it, beside the operations of both.

The ratio is the larger step's seconds by the smaller's. If a step were nothing but products of matrices, it
would be the ratio of their operations, which torch counts.
"""

from dataclasses import dataclass, replace

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pairs import Pair
from benchmarks.sizes import TASKS, model_of
from benchmarks.throughput import RandomSamples
from benchmarks.training import bare
from simo.models import create_model
from simo.training import Optimisation

# the profile of a step, the one with a larger encoder, and steps that are timed in a round
SIZES = {"full": ("photos", "paper", 1), "tiny": ("tiny", "tiny", 1)}


@dataclass(frozen=True)
class Step:
    """What a training step computes."""

    settings: dict  # of the model
    shape: tuple
    images: int
    tasks: tuple = TASKS

    def model(self):
        """A model in training mode."""
        return create_model(self.tasks, 0, **self.settings).train()

    def seconds(self, steps):
        """Seconds of a bare step."""
        budget = Optimisation(steps=steps, batch_size=self.images, seed=0)
        return bare(self.model(), RandomSamples(self.tasks, self.shape), budget, tasks=self.tasks)

    def operations(self):
        """Floating-point operations of a step's products of matrices, forward and backward."""
        samples = RandomSamples(self.tasks, self.shape)
        batch = default_collate([samples[number, 0] for number in range(self.images)])
        # attention as plain products: fused on a CPU it is not counted
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            predictions = self.model()(batch["image"])
            sum(task.compute_loss(predictions[task.name], batch[task.name]) for task in self.tasks).backward()
        return counter.get_total_flops()


def pairs(size, folder):
    """Pairs of bare steps that differ in one thing. Nothing is written into the folder."""
    profile, larger, steps = SIZES[size]
    settings, (height, width), images = model_of(profile)
    step = Step(settings, (height, width), images)
    large = replace(
        step, images=images // 2, settings=settings | {"backbone": model_of(larger)[0]["backbone"]}
    )
    for less, full, unlike in (
        (replace(step, images=images // 2), step, f"{images // 2} images a step instead of {images}"),
        (replace(step, shape=(height, width // 2)), step, f"Half the pixels: {height}×{width // 2}"),
        (replace(step, tasks=TASKS[:1]), step, f"1 task instead of {len(TASKS)}"),
        (replace(step, images=images // 2), large, "The encoder of this profile, not the paper's"),
    ):
        ratio = full.operations() / less.operations()
        yield Pair(
            unlike, f"the whole step, of {ratio:.2f} times the operations",
            lambda less=less: less.seconds(steps), lambda full=full: full.seconds(steps),
        )  # fmt: skip
