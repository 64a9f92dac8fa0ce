"""The paper's merging methods.

Methods are pure functions from the experts' task vectors to one merged task vector, which is applied as
θ_0 + α τ.
"""

import inspect

import numpy as np
import torch

from simo.errors import SimoError
from simo.merging.task_vectors import TaskVector


def pretrained(task_vectors):
    """No change at all: θ_0 under the experts' heads. The control that merging must beat."""
    return task_vectors[0] * 0.0


def average(task_vectors):
    """Mean of the task vectors: θ_0 + τ is the average of the experts' weights (Wortsman et al., 2022)."""
    return (1 / len(task_vectors)) * task_arithmetic(task_vectors)


def task_arithmetic(task_vectors):
    """Sum of the task vectors (Ilharco et al., 2023)."""
    return sum(task_vectors[1:], task_vectors[0])


def ties(task_vectors, density=0.2):
    """Trim, elect sign, disjoint mean (Yadav et al., 2023).

    Variant: as in the official code, trimming ranks the entries of a whole task vector, not of each
    tensor. The `density` largest magnitudes are kept, and all that equal the smallest kept one. The sign
    of an entry is the sign of the sum of the trimmed task vectors; where that is 0, the majority of the
    elected signs over all entries (minus if that is a tie, too). The result is the mean of the trimmed,
    non-zero entries that agree with the sign, and 0 if none does. `density=1` does not trim, which is
    the default of the paper's released code.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    density : float
        Fraction of entries to keep, in (0, 1].
    """
    thresholds = [magnitude_threshold(vector, density) for vector in task_vectors]

    def trimmed(name):
        tensors = [vector[name] for vector in task_vectors]
        return torch.stack(
            [x * (x.abs() >= low) for x, low in zip(tensors, thresholds, strict=True)]
        )  # (T, ...)

    votes = sum(trimmed(name).sum(0).sign().sum().item() for name in task_vectors[0])
    majority = 1.0 if votes > 0 else -1.0

    def merge(name):
        stack = trimmed(name)
        sign = stack.sum(0).sign()
        sign = torch.where(sign == 0, majority, sign)
        agrees = stack * sign > 0
        return (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1)

    return TaskVector(task_vectors[0], merge)


def magnitude_threshold(vector, density):
    """The smallest of the `density` largest magnitudes of a task vector; 0 keeps everything."""
    if not 0 < density <= 1:
        raise SimoError(f"density {density}: expected a fraction in (0, 1], such as 0.2")
    if density == 1:
        return 0.0
    magnitudes = np.concatenate([vector[name].abs().flatten().numpy() for name in vector])
    kept = max(1, int(density * magnitudes.size))
    return float(np.partition(magnitudes, magnitudes.size - kept)[magnitudes.size - kept])


def ties_untrimmed(task_vectors):
    """TIES without its trimming: the default of the paper's released code."""
    return ties(task_vectors, density=1.0)


METHODS = {
    "pretrained": pretrained,
    "average": average,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "ties_untrimmed": ties_untrimmed,
}


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
        Lazy; `compute()` it before scanning α.

    Raises
    ------
    SimoError
        For an unknown method, no task vector, or options that the method does not have or lacks.
    """
    if method not in methods:
        raise SimoError(f"unknown merging method {method!r}: expected one of {sorted(methods)}")
    if not task_vectors:
        raise SimoError("nothing to merge: expected at least one task vector")
    try:
        inspect.signature(methods[method]).bind(task_vectors, **options)
    except TypeError as error:
        raise SimoError(f"options {options} of {method}: {error}") from error
    return methods[method](list(task_vectors), **options)
