"""Merging in bases that the experts' changes of a layer share, which was made for low-rank adapters.

Called by name through `simo.merging.field.METHODS`. Bases are computed in float64.
"""

from functools import partial

import torch

from simo.errors import require_known
from simo.merging.matrices import iso_c, names_of_matrices, tsv_m
from simo.merging.methods import ties
from simo.merging.task_vectors import TaskVector


def knots(task_vectors, density=0.2):
    """TIES in one left basis of all experts' changes of a matrix (KnOTS; Stoica et al., 2025).

    With [τ_1 … τ_T] = U S [V_1 … V_T]ᵀ, side by side, TIES merges S V_tᵀ, and U leads back. What is no matrix
    is merged as it is. Made for LoRA, whose changes have few directions (unless half precision's rounding, or
    single precision's of changes a thousandth of the weights, adds others). Read as abstract and code.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    density : float
        See `simo.merging.methods.ties`, which ranks the entries of all matrices together, as the code does.

    Returns
    -------
    TaskVector

    Examples
    --------
    Both experts change the same direction: in a basis along it there is one entry, and not two, to trim.

    >>> a, b = ({"x.weight": torch.tensor([[n * 0.6], [n * 0.8]])} for n in (1.0, 3.0))
    >>> knots([TaskVector(x, x.get) for x in (a, b)], density=0.5)["x.weight"].T  # the mean of 1 and 3
    tensor([[1.2000, 1.6000]])
    """
    return _in_space(task_vectors, partial(ties, density=density), both=False)


def core_space(task_vectors, inner="ties", density=0.2):
    """Any method in left and right bases that all experts share (Core Space; Panariello et al., 2025).

    As `knots`, with a basis of the inputs, too, from the changes one above the other: of LoRA experts of rank
    r the T r × T r matrices U_refᵀ B_t A_t V_ref are merged, which is exact and small. Variants: bases are
    the changes' own, there their factors'. Where the stacked factors have full rank, both span the same, and
    TSV-M and Iso-C come out the same; TIES, which looks at entries, does not. It ranks all matrices' entries
    together, there each matrix's alone. Read as abstract and code.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    inner : str
        `ties`, `tsv_m` or `iso_c`, whose mean singular value is then that of the experts' directions alone.
    density : float
        Of `ties`.

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        For an unknown `inner`, or what it refuses: TSV-M fewer directions than tasks, as of shared factors.

    Examples
    --------
    Outside what the experts changed, Iso-C would invent a second direction; here it has one:

    >>> a, b = ({"x.weight": torch.tensor([n, 0.0]).diag()} for n in (1.0, 3.0))
    >>> core_space([TaskVector(x, x.get) for x in (a, b)], "iso_c")["x.weight"].diag()
    tensor([4., 0.])
    """
    methods = {"ties": partial(ties, density=density), "tsv_m": tsv_m, "iso_c": iso_c}
    require_known("inner method", inner, methods)
    return _in_space(task_vectors, methods[inner], both=True)


def _in_space(task_vectors, method, both):
    """Merge matrices in a basis of what all experts' changes span on the left, or on `both` sides."""
    into, back = {}, {}
    for name in names_of_matrices(task_vectors[0]):
        tensors = [vector[name].double() for vector in task_vectors]
        left, right = _span(torch.cat(tensors, dim=1)), [_span(torch.cat(tensors).T)] if both else []
        into[name], back[name] = (left.T, *right), (left, *(own.T for own in right))

    def moved(vector, sides):
        def compute(name):
            if name not in sides:
                return vector[name]
            left, *right = sides[name]
            moved = left @ vector[name].double()
            return (moved @ right[0] if right else moved).float()

        return TaskVector(vector, compute)

    return moved(method([moved(vector, into) for vector in task_vectors]), back)


def _span(matrix):
    """An orthonormal basis `(m, k)` of what a matrix's columns span, but for single precision's rounding."""
    u, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, values >= 1e-5 * values[0]]
