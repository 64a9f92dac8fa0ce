"""The paper's merging methods.

Methods are pure functions from the experts' task vectors to one merged task vector, which is applied as
θ_0 + α τ. They compute where the tensors of the base are; only the CPU was measured.
"""

import inspect
from numbers import Real

import numpy as np
import torch
from torch.nn.functional import hardshrink

from simo.errors import SimoError, require, require_known
from simo.merging.task_vectors import TaskVector

PIECE = 2**18  # entries that are worked on at a time: a megabyte of each expert


def pretrained(task_vectors):
    """No change at all: θ_0 under the experts' heads. The control that merging must beat.

    Examples
    --------
    >>> a, b = ({"w": torch.tensor(w)} for w in ([4.0, 1.0], [2.0, 3.0]))
    >>> pretrained([TaskVector(x, x.get) for x in (a, b)])["w"]
    tensor([0., 0.])
    """
    return task_vectors[0] * 0.0


def average(task_vectors):
    """Mean of the task vectors: θ_0 + τ is the average of the experts' weights (Wortsman et al., 2022).

    Examples
    --------
    >>> a, b = ({"w": torch.tensor(w)} for w in ([4.0, 1.0], [2.0, 3.0]))
    >>> average([TaskVector(x, x.get) for x in (a, b)])["w"]
    tensor([3., 2.])
    """
    return (1 / len(task_vectors)) * task_arithmetic(task_vectors)


def task_arithmetic(task_vectors):
    """Sum of the task vectors (Ilharco et al., 2023).

    Examples
    --------
    >>> a, b = ({"w": torch.tensor(w)} for w in ([4.0, 1.0], [2.0, 3.0]))
    >>> task_arithmetic([TaskVector(x, x.get) for x in (a, b)])["w"]
    tensor([6., 4.])
    """
    return sum(task_vectors[1:], task_vectors[0])


def ties(task_vectors, density=0.2):
    """Trim, elect sign, disjoint mean (Yadav et al., 2023).

    Trimming ranks the entries of a whole task vector, not of each tensor, as the official code does. Variant:
    the `density` largest magnitudes are kept, k of d, and all that equal the smallest kept one; the official
    code's threshold, the value of rank d − k, keeps one entry more. The sign
    of an entry is the sign of the sum of the trimmed task vectors; where that is 0, the majority of the
    elected signs over all entries (minus if that is a tie, too). The result is the mean of the trimmed,
    non-zero entries that agree with the sign, and 0 if none does. `density=1` does not trim, which is
    the default of the paper's released code.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    density : float
        Fraction of entries to keep, in (0, 1].

    Raises
    ------
    SimoError
        For a `density` out of range.

    Examples
    --------
    Of three entries two are kept; each has the sign of the larger one, and the mean of those that agree:

    >>> a, b = ({"w": torch.tensor(w)} for w in ([5.0, -4.0, 1.0], [1.0, 2.0, 3.0]))
    >>> ties([TaskVector(x, x.get) for x in (a, b)], density=2 / 3)["w"]
    tensor([ 5., -4.,  3.])
    """
    thresholds = [magnitude_threshold(vector, density) for vector in task_vectors]
    merged, ties_of, votes = {}, {}, 0
    for name in task_vectors[0]:
        merged[name], ties_of[name], vote = _elect(name, task_vectors, thresholds)
        votes += vote
    for name, (entries, means) in ties_of.items():  # rare: only the majority of all entries can decide them
        merged[name].view(-1)[entries] = means[0 if votes > 0 else 1]
    return TaskVector(merged, merged.__getitem__)


def _elect(name, task_vectors, thresholds):
    """TIES for one tensor, in one pass over it, in pieces that stay in the processor's cache.

    Returns
    -------
    (Tensor, (Tensor, Tensor), int)
        The merged tensor; which of its entries have sums of exactly 0 that are not made of zeros, `(n,)`, and
        their means for a positive and for a negative sign, `(2, n)`; and the sum of all elected signs.
    """
    tensors = [vector[name].contiguous() for vector in task_vectors]
    # what is not larger than the next smaller float is trimmed
    below = [float(np.nextafter(np.float32(low), np.float32(0))) for low in thresholds]
    merged, entries, means, votes = torch.empty_like(tensors[0]), [], [], 0
    flat, out = [tensor.view(-1) for tensor in tensors], merged.view(-1)
    for start in range(0, out.numel(), PIECE):
        own = slice(start, start + PIECE)
        trimmed = [hardshrink(x[own], low) if low else x[own] for x, low in zip(flat, below, strict=True)]
        stack = torch.stack(trimmed)  # (T, n)
        total = stack.sum(0)
        sign = total.sign()
        votes += int(sign.sum())
        out[own] = _agreeing_mean(stack, sign)
        tied = (total == 0).nonzero().squeeze(1)
        tied = tied[stack[:, tied].any(0)]
        if len(tied):
            entries.append(start + tied)
            means.append(torch.stack([_agreeing_mean(stack[:, tied], sign) for sign in (1.0, -1.0)]))
    none = out.new_empty(0, dtype=torch.long), out.new_empty(2, 0)
    return merged, (torch.cat(entries), torch.cat(means, dim=1)) if entries else none, votes


def _agreeing_mean(stack, sign):
    """Mean of those entries of several tensors `(T, n)` that have the sign, ±1; 0 where none has: `(n,)`."""
    agreeing = (stack * sign).clamp_(min=0)
    count = agreeing.sign().sum(0)
    return agreeing.sum(0) * sign / count.clamp_(min=1)


def magnitude_threshold(vector, density):
    """The smallest of the `density` largest magnitudes of a task vector; 0 keeps everything.

    Floats that are not negative have the order of their bits. So the upper half of the bits is counted first,
    and then only the entries that share the threshold's are compared in full: no copy of all magnitudes.
    """
    require("density", density, 0 < density <= 1, "a fraction in (0, 1], such as 0.2")
    if density == 1:
        return 0.0
    counts = sum(torch.bincount(bits >> 16, minlength=2**15) for bits in _magnitude_bits(vector))
    kept = max(1, int(density * int(counts.sum()) + 1e-6))  # .29 · 100 is less than 29 in binary
    above = counts.flip(0).cumsum(0)  # how many entries have these upper bits or larger ones
    place = int((above < kept).sum())
    upper, rank = 2**15 - 1 - place, kept - (int(above[place - 1]) if place else 0)
    found = torch.cat([bits[bits >> 16 == upper] for bits in _magnitude_bits(vector)])
    return found.sort(descending=True).values[rank - 1].view(torch.float32).item()


def _magnitude_bits(vector):
    """Yield the bits of a task vector's magnitudes as int32, in pieces."""
    for name in vector:
        for piece in vector[name].float().abs().reshape(-1).split(PIECE):
            yield piece.view(torch.int32)


def ties_untrimmed(task_vectors):
    """TIES without its trimming: the default of the paper's released code.

    Examples
    --------
    >>> a, b = ({"w": torch.tensor(w)} for w in ([5.0, -4.0, 1.0], [1.0, 2.0, 3.0]))
    >>> ties_untrimmed([TaskVector(x, x.get) for x in (a, b)])["w"]
    tensor([ 3., -4.,  2.])
    """
    return ties(task_vectors, density=1.0)


METHODS = {each.__name__: each for each in (pretrained, average, task_arithmetic, ties, ties_untrimmed)}


def merge(method, task_vectors, methods=METHODS, **options):
    """Merge by a method's name.

    Parameters
    ----------
    method : str
        A key of `methods`.
    task_vectors : sequence of TaskVector
        One an expert, over the same base.
    methods : dict of str to callable
        The paper's, unless those of `simo.merging.field.METHODS` are given, which has more.
    **options
        Of the method, such as `density`.

    Returns
    -------
    TaskVector
        Often lazy: `compute()` it before scanning α.

    Raises
    ------
    SimoError
        For an unknown method, no task vector, those of several architectures, or options that the method does
        not have, lacks or cannot use.

    Examples
    --------
    >>> a, b = ({"w": torch.tensor(w)} for w in ([4.0, 1.0], [2.0, 3.0]))
    >>> merged = merge("task_arithmetic", [TaskVector(x, x.get) for x in (a, b)])
    >>> merged.apply({"w": torch.ones(2)}, alpha=0.5)["w"]  # θ_0 + α τ
    tensor([4., 3.])
    """
    require_known("merging method", method, methods)
    task_vectors = list(task_vectors)
    names = {tuple(vector) if isinstance(vector, TaskVector) else None for vector in task_vectors}
    if len(names) != 1 or None in names:
        kinds = [type(vector).__name__ for vector in task_vectors]
        raise SimoError(f"expected task vectors, `TaskVector.between`, of one architecture, found {kinds}")
    try:
        known = inspect.signature(methods[method]).bind(task_vectors, **options).signature.parameters
        for name in options.keys() & known.keys():
            if isinstance(known[name].default, int | float) and not isinstance(options[name], Real):
                raise TypeError(f"expected a number as {name}")
    except TypeError as error:
        raise SimoError(f"options {options} of {method}: {error}") from error
    return methods[method](task_vectors, **options)
