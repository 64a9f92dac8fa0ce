"""Masks over the summed task vectors: an encoder for each task, or one where the masks agree."""

from simo.errors import require
from simo.merging.methods import magnitude_threshold, task_arithmetic
from simo.merging.task_vectors import TaskVector


def tall_mask(task_vectors, index, scale):
    """Σ τ where one expert's change outweighs the others': `|τ_t| > λ |Σ τ − τ_t|` (Wang et al., 2024).

    Applied with α = 1 it is an encoder for that task alone: all tasks need as many encoder passes as tasks.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    index : int
        Which expert is t.
    scale : float
        λ; the larger, the fewer entries are kept.

    Examples
    --------
    >>> a, b = ({"w": torch.tensor(w)} for w in ([4.0, 1.0], [1.0, 1.0]))
    >>> tall_mask([TaskVector(x, x.get) for x in (a, b)], index=0, scale=1.0)["w"]  # 4 > 1, but not 1 > 1
    tensor([5., 0.])
    """
    return _masked(task_vectors, lambda name, whole: _outweighs(task_vectors[index][name], whole, scale))


def magnitude_mask(task_vectors, index, density):
    """Σ τ where one expert's change is among its `density` largest; an encoder for that task alone.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    index : int
        Which expert.
    density : float
        Fraction of entries to keep, in (0, 1]; the released code's is 0.1.

    Raises
    ------
    SimoError
        For a `density` out of range.

    Examples
    --------
    >>> a, b = ({"w": torch.tensor(w)} for w in ([4.0, 1.0], [1.0, 1.0]))
    >>> magnitude_mask([TaskVector(x, x.get) for x in (a, b)], index=0, density=0.5)["w"]
    tensor([5., 0.])
    """
    own = task_vectors[index]
    least = magnitude_threshold(own, density)
    return _masked(task_vectors, lambda name, _: own[name].abs() >= least)


def consensus(task_vectors, scales, least=2):
    """Σ τ where the TALL masks of at least `least` experts agree: one encoder again (Wang et al., 2024).

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    scales : sequence of float
        λ of each expert's mask.
    least : int
        0 keeps everything: task arithmetic.

    Raises
    ------
    SimoError
        For another number of scales than of experts.

    Examples
    --------
    >>> a, b = ({"w": torch.tensor(w)} for w in ([4.0, 1.0], [1.0, 1.0]))
    >>> consensus([TaskVector(x, x.get) for x in (a, b)], scales=[1.0, 0.2])["w"]  # 4 > 1 and 1 > 0.2 · 4
    tensor([5., 0.])
    """
    count = len(task_vectors)
    require("number of scales", len(scales), len(scales) == count, f"{count}, one an expert")
    experts = list(zip(task_vectors, scales, strict=True))

    def keep(name, whole):
        return sum(_outweighs(own[name], whole, scale).int() for own, scale in experts) >= least

    return _masked(task_vectors, keep)


def _masked(task_vectors, keep):
    """Σ τ where `keep(name, tensor of Σ τ)` says so, 0 elsewhere."""
    total = task_arithmetic(task_vectors)

    def mask(name):
        whole = total[name]
        return whole * keep(name, whole)

    return TaskVector(total, mask)


def _outweighs(own, whole, scale):
    """Where one expert's change is larger than `scale` times that of all others together."""
    return own.abs() > scale * (whole - own).abs()
