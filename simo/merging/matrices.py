"""Merging linear layers' weights as matrices: by singular vectors, or by inputs that are read off them.

Each from its published formula, and called by name through `simo.merging.field.METHODS`. Matrices are
computed in float64; what is no matrix of a linear layer is averaged, or summed where a method says so.
"""

import re

import torch

from simo.errors import require
from simo.merging.methods import average, task_arithmetic
from simo.merging.moments import by_moments, solve
from simo.merging.task_vectors import TaskVector, is_matrix


def iso_c(task_vectors):
    """The summed matrices with all singular values equal to their mean (Iso-C; Marczak et al., 2025).

    Parameters
    ----------
    task_vectors : sequence of TaskVector

    Returns
    -------
    TaskVector

    Examples
    --------
    >>> a, b = ({"x.weight": torch.tensor(w).diag()} for w in ([3.0, 0.0], [0.0, 1.0]))
    >>> iso_c([TaskVector(x, x.get) for x in (a, b)])["x.weight"].diag()  # 3 and 1 become 2
    tensor([2., 2.])
    """
    return _by_matrix(task_vectors, lambda matrices: _isotropic(sum(matrices)))


def iso_cts(task_vectors, common=0.8):
    """Iso-C with some directions taken from each task's own matrix (Iso-CTS; Marczak et al., 2025).

    The `common` share of the sum's directions is kept. The rest are the strongest directions of every task's
    matrix outside the common left space. All are orthogonalised, and get the mean singular value.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    common : float
        In (0, 1]; 1 is Iso-C.

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        For a `common` out of range, or, when the tensor is computed, so small that the tasks' own directions
        would be more than there are.

    Examples
    --------
    >>> a, b = ({"x.weight": torch.tensor(w).diag()} for w in ([4.0, 0.0, 1.0, 0.0], [0.0, 3.0, 0.0, 2.0]))
    >>> merged = iso_cts([TaskVector(x, x.get) for x in (a, b)], common=0.5)
    >>> merged["x.weight"].diag()  # the mean of 4 and 3, in common, and each one's own 1 and 2
    tensor([2.5000, 2.5000, 2.5000, 2.5000])
    """
    require("common", common, 0 < common <= 1, "a fraction in (0, 1]")

    def merge(matrices):
        u, values, v = _svd(sum(matrices))
        own = round((len(values) - int(len(values) * common)) / len(matrices))  # directions of each task
        shared = len(values) - own * len(matrices)
        expected = f"more, for {len(matrices)} tasks and {len(values)} directions"
        require("common", common, shared >= 0, expected)
        left, middle, right = [u[:, :shared]], [values[:shared]], [v[:shared]]
        for matrix in matrices:
            outside = matrix - u[:, :shared] @ (u[:, :shared].T @ matrix)
            a, s, b = _svd(outside, own)
            left, middle, right = [*left, a], [*middle, s], [*right, b]
        return torch.cat(middle).mean() * _polar(torch.cat(left, dim=1)) @ _polar(torch.cat(right))

    return _by_matrix(task_vectors, merge)


def tsv_m(task_vectors):
    """Every task's strongest directions side by side, made orthogonal (TSV-M; Gargiulo et al., 2025).

    Of T tasks' matrices of rank r, each gives its first r / T singular triplets.

    Parameters
    ----------
    task_vectors : sequence of TaskVector

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        If a matrix has fewer directions than there are tasks, when it is computed.

    Examples
    --------
    >>> a, b = ({"x.weight": torch.tensor(w).diag()} for w in ([3.0, 1.0], [1.0, 2.0]))
    >>> tsv_m([TaskVector(x, x.get) for x in (a, b)])["x.weight"].diag()  # the stronger direction of each
    tensor([3., 2.])
    """

    def merge(matrices):
        rank = min(matrices[0].shape)
        own = rank // len(matrices)
        require("rank of a matrix", rank, own > 0, f"one direction a task, {len(matrices)}")
        u, values, v = zip(*[_svd(matrix, own) for matrix in matrices], strict=True)
        return (_polar(torch.cat(u, dim=1)) * torch.cat(values)) @ _polar(torch.cat(v))

    return _by_matrix(task_vectors, merge)


def svc(task_vectors, floor=1.0):
    """Task arithmetic, directions that several tasks share made smaller (SVC; Li et al., 2026).

    Along a left singular vector u of Σ τ_t, uᵀ Σ τ_t is so many times what a task's own uᵀ τ_t says, for
    which `floor` counts if it is larger; the singular value is divided by the mean over tasks. What is no
    matrix is summed. Read as abstract and code, the second of its two versions (the first floors the mean,
    and leaves directions as they are where a task is opposed); there Σ τ_t comes multiplied by .3, and
    `floor` is called α.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    floor : float
        Above 0; below 1, it lets directions grow.

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        For a `floor` out of range.

    Examples
    --------
    >>> x = {"x.weight": torch.tensor([3.0, 1.0]).diag()}
    >>> svc([TaskVector(x, x.get), TaskVector(x, x.get)])["x.weight"].diag()  # both say the same: once
    tensor([3., 1.])
    """
    require("floor", floor, floor > 0, "a number above 0")

    def merge(matrices):
        whole = sum(matrices)
        u, values, v = torch.linalg.svd(whole, full_matrices=False)
        parts = u.T @ torch.stack(matrices)  # (T, r, inputs)
        sizes = parts.square().sum(dim=2).clamp(min=1e-300).maximum(1e-12 * values.square())  # or rounding
        shares = (parts * (u.T @ whole)).sum(dim=2) / sizes
        return u * (values / shares.clamp(min=floor).mean(dim=0)) @ v

    return _by_matrix(task_vectors, merge, task_arithmetic)


def esm(task_vectors, moments, power=2.0):
    """Every task's directions that move a layer's outputs most, made orthogonal (ESM; Li et al., 2026).

    Of T tasks' matrices with r outputs, each gives the first r / T principal directions of what τ_t does to
    its expert's inputs, weighted by their eigenvalues to the power of .15. Tasks with long τ_t, inputs on
    which several act, and layers that change more than others of their kind count for more. Read as abstract
    and code, that of the extended version; there, attention's output layer is merged without images, as by
    `tsv_m`.

    Parameters
    ----------
    task_vectors, moments
        See `simo.merging.moments.regmean`.
    power : float
        To which ratios to the mean are raised that say what counts for more; 0 switches this off, but for
        the directions' weights.

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        For moments as in `regmean`; if a layer has fewer outputs than there are tasks.

    Examples
    --------
    >>> a, b = ({"x.weight": torch.tensor(w).diag()} for w in ([3.0, 1.0], [1.0, 3.0]))
    >>> seen = [{"x.weight": torch.tensor(m).double().diag()} for m in ([1.0, 1.0], [1.0, 1.0])]
    >>> esm([TaskVector(x, x.get) for x in (a, b)], seen)["x.weight"].diag()  # twice the stronger of each
    tensor([6., 6.])
    """

    def merge(changes, grams):
        own = len(changes[0]) // len(changes)
        require("outputs of a layer", len(changes[0]), own > 0, f"at least one a task, {len(changes)}")
        left, right, lengths = [], [], _to_mean(torch.stack([change.norm() for change in changes]))
        for change, gram, much in zip(changes, grams, lengths**power, strict=True):
            values, u = torch.linalg.eigh(change @ gram @ change.T)
            values, u = values.flip(0)[:own], u.flip(1)[:, :own]
            values = values.where(values > 1e-10 * values[0], 0.0)  # of rounding, where inputs are fewer
            left.append(u * _to_mean(_to_mean(values) ** 0.15))
            right.append(left[-1].T @ change * much)
        right = torch.cat(right)
        right = right * _to_mean(right.norm(dim=0)) ** power
        return 2 * _isotropic(torch.cat(left, dim=1)) @ _isotropic(right)

    merged = by_moments(task_vectors, moments, merge, scales=False).compute()
    norms = {name: merged[name].double().norm() for name, found in moments[0].items() if found.ndim == 2}
    kinds = {name: re.sub(r"\.\d+\.", ".", name) for name in norms}

    def scale(name):
        alike = [norms[other] for other in norms if kinds[other] == kinds[name]]
        return float(norms[name] * len(alike) / sum(alike).clamp(min=1e-300)) ** power

    return TaskVector(merged, lambda name: merged[name] * (scale(name) if name in norms else 1.0))


def wudi(task_vectors):
    """Each matrix where it disturbs the experts least, in their own row spaces (WUDI; Cheng et al., 2025).

    Of least Σ ‖(τ − τ_t) τ_tᵀ‖² / ‖τ_t‖²: rows of a τ_t stand for the inputs that its task has. Variant: the
    minimum itself; the official code takes 300 steps of Adam towards it from Σ τ_t, leaves what is no matrix
    of a block as it was pretrained, and has no α. Read as abstract and code.

    Parameters
    ----------
    task_vectors : sequence of TaskVector

    Returns
    -------
    TaskVector

    Examples
    --------
    >>> a, b = ({"x.weight": torch.tensor(w).diag()} for w in ([3.0, 0.0], [0.0, 2.0]))
    >>> wudi([TaskVector(x, x.get) for x in (a, b)])["x.weight"].diag()  # their rows do not meet
    tensor([3., 2.])
    """

    def merge(matrices):
        return solve(matrices, [each.T @ each / each.square().sum().clamp(min=1e-300) for each in matrices])

    return _by_matrix(task_vectors, merge)


def ace(task_vectors, ridge=0.01, uneven=0.3, strongest=0.3):
    """Each matrix solved for inputs whose covariance is read off the task vectors (ACE; Xu et al., 2026).

    Like `wudi`, but with rows centred, covariances τ_tᵀ τ_t as they are, a ridge, and their sum's mean row
    added to each of its rows, of which the example has 13, to 18 + 8. Where the logarithms of ‖τ_t‖² have a
    variance of more than `uneven` times their squared mean, each covariance is divided by its trace, and the
    strongest directions of the result and what it leaves over are added, all with one singular value. Read
    as abstract and code, in which τ_t loses the mean of its rows, too: one expert alone is not itself.
    Variant: in what is left over, covariances are all without the ridge; in the code it makes the result
    explode where an expert has hardly changed a layer.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    ridge : float
        Added to each covariance's diagonal; above 0, and in units of τ_t squared where it is not divided.
    uneven : float
        See above.
    strongest : float
        Share of the directions, in (0, 1].

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        For a `ridge` or `strongest` out of range.

    Examples
    --------
    >>> a, b = ({"x.weight": torch.tensor([[w, 0.0], [-w, 0.0]])} for w in (3.0, 2.0))
    >>> ace([TaskVector(x, x.get) for x in (a, b)], ridge=1e-9)["x.weight"]  # (3 · 18 + 2 · 8) / (26 + 13)
    tensor([[ 1.7949,  0.0000],
            [-1.7949,  0.0000]])
    """
    require("ridge", ridge, ridge > 0, "a number above 0")
    require("strongest", strongest, 0 < strongest <= 1, "a fraction in (0, 1]")

    def merge(matrices):
        centred = torch.stack([matrix - matrix.mean(dim=0) for matrix in matrices])  # (T, outputs, inputs)
        sizes = torch.stack([matrix.square().sum() for matrix in matrices])
        logs = sizes.clamp(min=1e-12).log()
        apart = len(matrices) > 1 and bool(logs.var() > uneven * logs.mean().square())
        traces = centred.square().sum(dim=(1, 2), keepdim=True)
        # of an expert that changed nothing, the covariance is 0 whatever divides it, but the ridge is not
        scales = traces.where(traces > 0, traces.max().clamp(min=1e-12)) if apart else torch.ones_like(traces)
        raw = centred.mT @ centred / scales
        grams = raw + ridge / scales * torch.eye(raw.shape[1], dtype=raw.dtype, device=raw.device)
        shared = grams.sum(dim=0) + raw.sum(dim=0).mean(dim=0) / (sizes.mean() if apart else 1.0)
        merged = torch.linalg.solve(shared.T, (centred @ grams).sum(dim=0).T).T
        if not apart:
            return merged
        over = (torch.stack(matrices) @ (raw - raw.mean(dim=0))).sum(dim=0)
        return merged + _isotropic(merged + over, max(1, int(min(merged.shape) * strongest)))

    return _by_matrix(task_vectors, merge)


def _by_matrix(task_vectors, merge, rest=average):
    """Merge the weights of linear layers as matrices, in float64, and all other tensors by `rest`."""
    others, matrices = rest(task_vectors), names_of_matrices(task_vectors[0])

    def compute(name):
        if name not in matrices:
            return others[name]
        return merge([vector[name].double() for vector in task_vectors]).float()

    return TaskVector(others, compute)


def names_of_matrices(task_vector):
    """Names of the weights of linear layers."""
    names = [name for name, tensor in task_vector.items() if is_matrix(name, tensor)]
    # of convolutions, say, any method would be another one under its name
    require("the number of weights of linear layers", 0, names, "an encoder that has some")
    return names


def _to_mean(values):
    """Values relative to their mean; 0 where all are 0."""
    return values / values.mean().clamp(min=1e-300)


def _isotropic(matrix, count=None):
    """The matrix of the first `count` singular vectors, or all, with the mean of their singular values."""
    u, values, v = _svd(matrix, count)
    return values.mean() * u @ v


def _polar(matrix):
    """The nearest matrix with orthonormal columns, or rows if it is wide."""
    u, _, v = _svd(matrix)
    return u @ v


def _svd(matrix, count=None):
    """The first `count` singular triplets, or all: u `(m, count)`, values `(count,)` and v `(count, n)`.

    By the eigenvalues of the shorter side's Gram matrix, in about half the time, where these squares leave
    enough of float64's digits; otherwise by the decomposition itself.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    squares, right = torch.linalg.eigh(tall.T @ tall)
    squares, right = squares.flip(0)[:count], right.flip(1)[:, :count]
    if not (squares > 1e-9 * squares[:1]).all():  # NaN is not, either
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :count], values[:count], v[:count]
    values = squares.sqrt()
    left = tall @ right / values
    return (left, values, right.T) if tall is matrix else (right, values, left.T)
