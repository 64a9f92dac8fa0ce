"""The claims about the paper's figures: what it says of them, and what they show at a glance."""

from itertools import pairwise
from statistics import fmean

from report.evidence import EFFECT, Claim


def moved(seed, along, head):
    """What a whole task vector, λ = 1 against 0, does to another task's head, in points of performance."""
    curve = seed.curves[along][head]
    return 100 * (curve[1.0] - curve[0.0])


def others(seed):
    """Performance in per cent of every head at the end of every other task's vector, λ = 1."""
    return [
        100 * curve[1.0]
        for primary, heads in seed.curves.items()
        for evaluated, curve in heads.items()
        if evaluated != primary
    ]


def gains(seed):
    """What representation realignment of task arithmetic gains, in points of performance, for every task."""
    bare, realigned = (seed.performance[f"task_arithmetic{kind}"] for kind in ("", "+representation"))
    return [realigned[task] - bare[task] for task in bare]


def half(seed):
    """What half of its own task vector gives each head, in per cent of the expert, by task."""
    return {task: 100 * heads[task][0.5] for task, heads in seed.curves.items()}


def untouched(seed):
    """What the pretrained encoder, λ = 0, gives each expert's head, in per cent of the expert, by task."""
    return {task: 100 * heads[task][0.0] for task, heads in seed.curves.items()}


def zeros(seed):
    """Share of AdaMerging's coefficients inside blocks that are 0, in per cent."""
    return 100 * _coefficients(seed).eq(0).to_numpy().mean()


def middle(seed, task):
    """Mean block that a task's coefficients take, weighted by them, in per cent of the encoder's depth."""
    mean = _coefficients(seed)[task].groupby(level=0).mean()
    return 100 * (mean * mean.index).sum() / mean.sum() / mean.index.max()


def _coefficients(seed):
    if seed.coefficients is None:
        raise KeyError("coefficients")  # not run
    return seed.coefficients


def _vector(name, sentence, along, head, helps, source, dataset):
    """A claim that a task vector helps, or hurts, another task's head: λ = 1 against λ = 0."""
    return Claim(
        name,
        f"{sentence}: λ = 1 against λ = 0, more than {EFFECT} point.",
        lambda seed: moved(seed, along, head),
        (lambda value: value > EFFECT) if helps else (lambda value: value < -EFFECT),
        "points of performance",
        source=source,
        datasets=(dataset,),
    )


FIGURE_CLAIMS = [
    Claim(
        "collapses-more-than-clip",
        "Merging tasks that share their input loses more than merging CLIP encoders of as many tasks: below "
        f"the paper's CLIP curve at every number of tasks, by more than {EFFECT} point (the least distance).",
        lambda seed: max(100 * (value - seed.clip[size]) for size, value in seed.sizes.items() if size > 1),
        lambda value: value < -EFFECT,
        "points of performance",
        source="Figure 1",
        datasets=("taskonomy",),
    ),
    Claim(
        "each-task-costs",
        "Every further merged task costs performance: the mean falls from each number of tasks to the next, "
        f"by more than {EFFECT} point (shown: the smallest step; negative is a loss).",
        lambda seed: max(100 * (after - before) for before, after in pairwise(seed.sizes.values())),
        lambda value: value < -EFFECT,
        "points of performance",
        source="Figure 1",
        datasets=("taskonomy",),
    ),
    Claim(
        "two-tasks-lose-most",
        "Two merged tasks already lose more than half of the performance (what their mean keeps).",
        lambda seed: 100 * seed.sizes[2],
        lambda value: value < 50,
        "% of the experts",
        source="Figure 1",
        datasets=("taskonomy",),
    ),
    Claim(
        "coefficients-mostly-zero",
        "Layer-wise AdaMerging uses few tensors (read off the heat map, which prints no numbers): more than "
        "half of its coefficients inside the blocks are 0.",
        zeros,
        lambda value: value > 50,
        "% of the coefficients",
        source="Figure 2",
        datasets=("nyuv2",),
    ),
    Claim(
        "depth-takes-earlier-blocks",
        "AdaMerging takes depth's vector from earlier blocks than segmentation's: the coefficients' middles "
        "are more than 5 % of the encoder's depth apart.",
        lambda seed: middle(seed, "segmentation") - middle(seed, "depth"),
        lambda value: value > 5,
        "% of the encoder's depth",
        source="Figure 2",
        datasets=("nyuv2",),
    ),
    _vector(
        "segmentation-helps-parts",
        "Moving along the segmentation's task vector helps the parts' head",
        "segmentation",
        "parts",
        True,
        "Figure 3",
        "cityscapes",
    ),
    _vector(
        "parts-hurt-segmentation",
        "Moving along the parts' task vector hurts the segmentation's head",
        "parts",
        "segmentation",
        False,
        "Figure 3",
        "cityscapes",
    ),
    Claim(
        "disparity-hurts-others",
        "Moving along disparity's task vector hurts both other heads: λ = 1 against λ = 0, more than "
        f"{EFFECT} point (shown: the head that is hurt less; negative is a loss).",
        lambda seed: max(moved(seed, "disparity", head) for head in ("segmentation", "parts")),
        lambda value: value < -EFFECT,
        "points of performance",
        source="Figure 3",
        datasets=("cityscapes",),
    ),
    Claim(
        "disparity-needs-its-whole-vector",
        "Disparity needs λ close to 1: half of its own task vector gives less than half of the performance.",
        lambda seed: 100 * seed.curves["disparity"]["disparity"][0.5],
        lambda value: value < 50,
        "% of the expert",
        source="Figure 3",
        datasets=("cityscapes",),
    ),
    Claim(
        "no-vector-serves-another-head",
        "No single task vector makes another task's head work: at λ = 1 the best of them stays below 90 %.",
        lambda seed: max(others(seed)),
        lambda value: value < 90,
        "% of the expert",
        source="ours, from Figures 3, 5 and 6",
    ),
    Claim(
        "every-task-regained",
        "What the pictures show holds for every task: representation realignment of task arithmetic brings "
        f"each nearer to its expert, by more than {EFFECT} point (the least gain).",
        lambda seed: min(gains(seed)),
        lambda value: value > EFFECT,
        "points of performance",
        source="Figure 4",
        datasets=("taskonomy",),
        premise=lambda seed: seed.merged("task_arithmetic"),
    ),
    _vector(
        "depth-helps-segmentation",
        "Moving along depth's task vector helps the segmentation's head",
        "depth",
        "segmentation",
        True,
        "Figure 5",
        "nyuv2",
    ),
    _vector(
        "segmentation-hurts-depth",
        "Moving along the segmentation's task vector hurts depth's head",
        "segmentation",
        "depth",
        False,
        "Figure 5",
        "nyuv2",
    ),
    Claim(
        "normals-hurt-others",
        "Moving along the normals' task vector hurts both other heads: λ = 1 against λ = 0, more than "
        f"{EFFECT} point (shown: the head that is hurt less; negative is a loss).",
        lambda seed: max(moved(seed, "normals", head) for head in ("segmentation", "depth")),
        lambda value: value < -EFFECT,
        "points of performance",
        source="Figure 5",
        datasets=("nyuv2",),
    ),
    Claim(
        "normals-start-lowest",
        "On the pretrained encoder the normals' head keeps least: less than both others, by more than "
        f"{EFFECT} point (shown: the distance to the nearer one).",
        lambda seed: (
            min(untouched(seed)[task] for task in ("segmentation", "depth")) - untouched(seed)["normals"]
        ),
        lambda value: value > EFFECT,
        "points of performance",
        source="Figure 5",
        datasets=("nyuv2",),
    ),
    Claim(
        "tasks-hardly-overlap",
        "Taskonomy's tasks hardly overlap: along another task's vector, heads keep less than half of their "
        "performance (mean at λ = 1).",
        lambda seed: fmean(others(seed)),
        lambda value: value < 50,
        "% of the expert",
        source="Figure 6",
        datasets=("taskonomy",),
    ),
    Claim(
        "half-a-vector-is-not-enough",
        "But for normals, half of its own task vector gives a head less than half of its performance (the "
        "most that one gets).",
        lambda seed: max(value for task, value in half(seed).items() if task != "normals"),
        lambda value: value < 50,
        "% of the expert",
        source="Figure 6",
        datasets=("taskonomy",),
    ),
    Claim(
        "normals-need-least",
        "On the pretrained encoder the normals' head keeps more than any other, by more than "
        f"{EFFECT} point (distance to the next).",
        lambda seed: (
            untouched(seed)["normals"]
            - max(value for task, value in untouched(seed).items() if task != "normals")
        ),
        lambda value: value > EFFECT,
        "points of performance",
        source="Figure 6",
        datasets=("taskonomy",),
    ),
]
