"""The wider field of merging: methods that the paper does not try, each from its published formula.

Like those of `simo.merging.methods` they are pure functions from the experts' task vectors to one merged
task vector, applied as θ_0 + α τ: those that look at single entries or whole blocks are here, others in
`simo.merging.matrices`, `simo.merging.spaces` and `simo.merging.moments`. `merge(name, task_vectors,
METHODS)` calls all by name.
"""

import zlib
from collections import ChainMap

import torch

from simo.encoders import block_number
from simo.errors import require
from simo.merging import methods
from simo.merging.matrices import ace, esm, iso_c, iso_cts, svc, tsv_m, wudi
from simo.merging.methods import task_arithmetic
from simo.merging.moments import lot, regmean
from simo.merging.spaces import core_space, knots
from simo.merging.task_vectors import TaskVector


def dare(task_vectors, drop=0.5, seed=0):
    """Sum of the task vectors after dropping entries at random and rescaling the others (Yu et al., 2024).

    Each entry is 0 with probability `drop`, otherwise divided by 1 − `drop`: its mean stays.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    drop : float
        In [0, 1).
    seed : int
        Which entries; every task and tensor draws its own.

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        For a `drop` out of range.

    Examples
    --------
    >>> x = {"w": torch.ones(8)}
    >>> sorted({*dare([TaskVector(x, x.get)])["w"].tolist()})
    [0.0, 2.0]
    """
    require("drop", drop, 0 <= drop < 1, "a fraction in [0, 1)")

    def merge(name):
        total = 0
        for number, vector in enumerate(task_vectors):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {number} {name}".encode()))
            own = vector[name]
            kept = torch.rand(own.shape, generator=generator, device="cpu") >= drop
            total = total + own * kept.to(own.device) / (1 - drop)
        return total

    return TaskVector(task_vectors[0], merge)


def breadcrumbs(task_vectors, keep=0.15, outliers=0.006):
    """Sum of the task vectors without their largest and smallest entries (Davari & Belilovsky, 2024).

    Of every tensor the `outliers` largest magnitudes are dropped, and the `keep` next ones kept. Variant: by
    tensor, as in the paper's text; the official code goes by rows, where short rows lose no outlier.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    keep, outliers : float
        Fractions of a tensor's entries, in (0, 1] and [0, 1), together at most 1.

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        For fractions out of range.

    Examples
    --------
    >>> x = {"w": torch.tensor([9.0, 3.0, -2.0, 1.0])}
    >>> breadcrumbs([TaskVector(x, x.get)], keep=0.5, outliers=0.25)["w"]
    tensor([ 0.,  3., -2.,  0.])
    """
    fits = keep > 0 and outliers >= 0 and keep + outliers <= 1
    require("(keep, outliers)", (keep, outliers), fits, "fractions in (0, 1] and [0, 1), together at most 1")

    def masked(tensor):
        order = tensor.abs().flatten().argsort(descending=True, stable=True)
        first = round(outliers * len(order))
        dropped = torch.ones_like(order, dtype=torch.bool)
        dropped[order[first : first + max(1, round(keep * len(order)))]] = False
        return tensor.masked_fill(dropped.view_as(tensor), 0)

    return TaskVector(task_vectors[0], lambda name: sum(masked(vector[name]) for vector in task_vectors))


def lines(task_vectors, slope=1.0):
    """Sum of the task vectors, deeper blocks more of it (LiNeS; Wang et al., 2025).

    Block l of L is scaled by 1 + slope · (l − 1) / (L − 1), and everything else by 1. The paper's first block
    takes a and its last a + b; here α stands for a, and the slope for b / a. Variant: in a pyramid, blocks of
    all stages are counted through, and so is what leads from one stage to the next.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    slope : float
        0 is task arithmetic.

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        If no tensor's name has a block's number.

    Examples
    --------
    >>> x = {f"blocks.{i}.w": torch.tensor(2.0) for i in range(3)}
    >>> [tensor.item() for tensor in lines([TaskVector(x, x.get)]).values()]
    [2.0, 3.0, 4.0]
    """
    total = task_arithmetic(task_vectors)
    blocks = sorted({block_number(name) for name in total} - {()})
    require("lines: the list of tensors' names", [*total][:3], blocks, "some with numbers, as in blocks.2")

    def scale(name):
        block = block_number(name)
        return 1 + slope * (blocks.index(block) if block else 0) / max(1, len(blocks) - 1)

    return TaskVector(total, lambda name: total[name] * scale(name))


def equal_norms(task_vectors):
    """Sum of the task vectors, all as long as the shortest: DisTaC's remedy, without its training.

    Yoshida et al. (2026) find that task vectors of unequal norms merge badly; they shrink the long ones, and
    then distil the expert into the shrunk one, which is not done here. One that is 0 is not the shortest.
    Read as abstract and code.

    Parameters
    ----------
    task_vectors : sequence of TaskVector

    Returns
    -------
    TaskVector

    Examples
    --------
    >>> a, b = ({"w": torch.tensor(w)} for w in ([3.0, 4.0], [1.0, 0.0]))
    >>> equal_norms([TaskVector(x, x.get) for x in (a, b)])["w"]  # both as long as the second
    tensor([1.6000, 0.8000])
    """
    norms = [vector.norm() for vector in task_vectors]
    shortest, pairs = min(filter(None, norms), default=0.0), zip(task_vectors, norms, strict=True)
    return task_arithmetic([vector * (shortest / norm if norm else 1.0) for vector, norm in pairs])


DATA_FREE = (dare, breadcrumbs, lines, iso_c, iso_cts, tsv_m, equal_norms, wudi, ace, svc, knots, core_space)
_OWN: dict = {each.__name__: each for each in (*DATA_FREE, regmean, lot, esm)}
METHODS = ChainMap(_OWN, methods.METHODS)  # what is added to the paper's is here, too
FROM_IMAGES = ("regmean", "lot", "esm")  # they need `input_moments` of every expert
