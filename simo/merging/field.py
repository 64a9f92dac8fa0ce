"""The wider field of merging: methods that the paper does not try, each from its published formula.

Like those of `simo.merging.methods` they are pure functions from the experts' task vectors to one merged
task vector, applied as θ_0 + α τ. Matrices are 2-D weights of linear layers; what is no matrix is averaged
where a method is about matrices only. `merge(name, task_vectors, METHODS)` calls them by name.
"""

import zlib

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, LayerNormAct2d
from torch import nn

from simo.datasets import check_batch
from simo.encoders import block_number
from simo.errors import SimoError
from simo.merging import methods
from simo.merging.methods import average, task_arithmetic
from simo.merging.task_vectors import TaskVector, is_matrix
from simo.training import autocast, progress


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
    _check("drop", drop, 0 <= drop < 1, "a fraction in [0, 1)")

    def merge(name):
        total = 0
        for number, vector in enumerate(task_vectors):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {number} {name}".encode()))
            kept = torch.rand(vector[name].shape, generator=generator, device="cpu") >= drop
            total = total + vector[name] * kept.to(vector[name].device) / (1 - drop)
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
    _check("(keep, outliers)", (keep, outliers), fits, "fractions in (0, 1] and [0, 1), together at most 1")

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
    if not blocks:
        raise SimoError(
            f"lines: expected names with numbers of blocks, such as blocks.2, found {[*total][:3]}"
        )

    def scale(name):
        block = block_number(name)
        return 1 + slope * (blocks.index(block) if block else 0) / max(1, len(blocks) - 1)

    return TaskVector(total, lambda name: total[name] * scale(name))


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

    def flatten(matrices):
        u, values, v = _svd(sum(matrices))
        return values.mean() * u @ v

    return _by_matrix(task_vectors, flatten)


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
    _check("common", common, 0 < common <= 1, "a fraction in (0, 1]")

    def merge(matrices):
        u, values, v = _svd(sum(matrices))
        own = round((len(values) - int(len(values) * common)) / len(matrices))  # directions of each task
        shared = len(values) - own * len(matrices)
        _check("common", common, shared >= 0, f"more, for {len(matrices)} tasks and {len(values)} directions")
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
        _check("rank of a matrix", rank, own > 0, f"one direction a task, {len(matrices)}")
        u, values, v = zip(*[_svd(matrix, own) for matrix in matrices], strict=True)
        return (_polar(torch.cat(u, dim=1)) * torch.cat(values)) @ _polar(torch.cat(v))

    return _by_matrix(task_vectors, merge)


def regmean(task_vectors, moments, shrink=0.95):
    """Each linear layer as close to every expert's outputs on its own inputs as can be (Jin et al., 2023).

    τ = (Σ G_t)⁻¹ Σ G_t τ_t with the experts' Gram matrices G_t of the layer's inputs. All other tensors are
    averaged.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    moments : sequence of dict
        One an expert, see `input_moments`.
    shrink : float
        Factor of the Gram matrices' off-diagonal entries, in [0, 1]; 1 needs more rows than inputs.

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        For a `shrink` out of range, or moments that are not one dict a task vector, all of the same layers.

    Examples
    --------
    >>> a, b = ({"x.weight": torch.tensor(w).diag()} for w in ([4.0], [8.0]))
    >>> seen = [{"x.weight": torch.tensor([[m]]).double()} for m in (1.0, 3.0)]
    >>> regmean([TaskVector(x, x.get) for x in (a, b)], seen)["x.weight"]  # (1 · 4 + 3 · 8) / (1 + 3)
    tensor([[7.]])
    """
    _check("shrink", shrink, 0 <= shrink <= 1, "a factor in [0, 1]")

    def merge(changes, grams):
        grams = [gram * shrink + gram.diagonal().diag() * (1 - shrink) for gram in grams]
        return _least_squares(changes, grams)

    return _by_moments(task_vectors, moments, merge, scales=False)


def lot(task_vectors, moments):
    """Layer-wise optimal task vectors in closed form: features of all experts kept best (Sun et al., 2025).

    A linear layer's τ is the pseudo-inverse (Σ G_t)⁺ Σ G_t τ_t; a norm's scale is the mean of τ_t weighted by
    each channel's mean square; shifts and all other tensors are averaged. Variant: so are LayerScale, which
    the paper does not treat, and the patch embedding, which is a linear layer of unfolded patches there.

    Parameters
    ----------
    task_vectors, moments
        See `regmean`.

    Returns
    -------
    TaskVector

    Raises
    ------
    SimoError
        For moments as in `regmean`.

    Examples
    --------
    >>> a, b = ({"x.weight": torch.tensor(w)} for w in ([4.0, 4.0], [8.0, 8.0]))
    >>> seen = [{"x.weight": torch.tensor(m)} for m in ([1.0, 1.0], [3.0, 1.0])]
    >>> lot([TaskVector(x, x.get) for x in (a, b)], seen)["x.weight"]  # scales of a norm
    tensor([7., 6.])
    """
    return _by_moments(task_vectors, moments, _least_squares, scales=True)


@torch.no_grad()
def input_moments(encoder, batches, device="cpu", precision="float32"):
    """Second moments of what an encoder's layers get to see, in float64.

    Parameters
    ----------
    encoder : Encoder
        An expert's; moved to the device and put into eval mode.
    batches : iterable of dict
        Of `image` `(B, 3, H, W)` in `[0, 1]`; no label is read.
    device, precision : str
        See `simo.training.pick_device`.

    Returns
    -------
    dict of str to Tensor
        By the name of a weight: of a linear layer the mean of x xᵀ over tokens `(inputs, inputs)`, of a layer
        norm that of the squares of its normalised input `(channels,)`. Layers whose weights a model uses
        without calling them as modules (EVA-02's, BEiT's and Swin V2's joined q, k and v) are not there.

    Raises
    ------
    SimoError
        If there is no image, or one out of range, or the encoder has no linear layers.
    """
    if not any(isinstance(module, nn.Linear) for module in encoder.modules()):
        raise SimoError(f"{type(encoder.backbone).__name__} has no linear layers: no moments to merge by")
    encoder.to(device).eval()
    sums, rows, channels_first = {}, {}, (LayerNorm2d, LayerNormAct2d)

    def watch(name):
        def hook(module, inputs, output):
            x = inputs[0].movedim(1, -1) if isinstance(module, channels_first) else inputs[0]
            x = x.flatten(0, -2).double()
            if isinstance(module, nn.LayerNorm):
                added = F.layer_norm(x, module.normalized_shape, eps=module.eps).square().sum(dim=0)
            else:
                added = x.T @ x
            sums[name] = sums.get(name, 0) + added
            rows[name] = rows.get(name, 0) + len(x)

        return hook

    handles = [
        module.register_forward_hook(watch(f"{name}.weight"))
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm)
    ]
    try:
        for batch in progress(batches, label="moments"):
            check_batch(batch)
            with autocast(device, precision):
                encoder(batch["image"].to(device, non_blocking=True))
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise SimoError("expected at least 1 image to compute moments from, found none")
    return {name: (value / rows[name]).cpu() for name, value in sums.items()}


def _by_moments(task_vectors, moments, merge, scales):
    """Merge linear layers, and perhaps norms' scales, by their inputs' moments, and average other tensors."""
    if len(moments) != len(task_vectors):
        raise SimoError(f"expected moments of {len(task_vectors)} experts, found {len(moments)}")
    mean = average(task_vectors)
    for each in moments:
        for name in sorted((each.keys() ^ moments[0].keys()) | (each.keys() - mean.keys())):
            raise SimoError(f"not all moments and task vectors have {name!r}: expected those of one encoder")

    def compute(name):
        found = [each[name] for each in moments if name in each]
        if not found or (found[0].ndim == 1 and not scales):
            return mean[name]
        changes = [vector[name].double() for vector in task_vectors]
        if found[0].ndim == 1:
            weights = torch.stack(found)  # (T, channels)
            return ((weights * torch.stack(changes)).sum(0) / weights.sum(0).clamp(min=1e-300)).float()
        return merge(changes, found).float()

    return TaskVector(mean, compute)


def _least_squares(changes, grams):
    """(Σ G_t)⁺ Σ G_t τ_tᵀ, transposed back to `(outputs, inputs)`.

    By eigenvalues, because `lstsq` gives another solution each time where an input never varies: its choice
    depends on where in memory a matrix lies.
    """
    weighted = sum(gram @ change.T for gram, change in zip(grams, changes, strict=True))
    return (torch.linalg.pinv(sum(grams), rtol=1e-10, hermitian=True) @ weighted).T


METHODS = methods.METHODS | {
    each.__name__: each for each in (dare, breadcrumbs, lines, iso_c, iso_cts, tsv_m, regmean, lot)
}
FROM_IMAGES = ("regmean", "lot")  # they need `input_moments` of every expert


def _by_matrix(task_vectors, merge):
    """Merge the weights of linear layers as matrices, in float64, and average all other tensors."""
    mean = average(task_vectors)

    def compute(name):
        tensors = [vector[name] for vector in task_vectors]
        if not is_matrix(name, tensors[0]):
            return mean[name]
        return merge([tensor.double() for tensor in tensors]).float()

    return TaskVector(mean, compute)


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


def _check(name, value, good, expected):
    if not good:
        raise SimoError(f"{name} is {value}: expected {expected}")
