"""Why merging breaks heads: how far merged features are from the experts', and how task vectors are built.

Features z of the merged encoder are compared with an expert's y of the same tokens, block by block, from the
Gram matrices of `simo.realignment.closedform`: how alike they are up to a rotation, and how much of y is left
to explain by z as it is, shifted, scaled, turned, or mapped by any matrix.
"""

import copy
from functools import partial

import torch

from simo.encoders import Features, block_number
from simo.errors import SimoError
from simo.merging.methods import average
from simo.merging.moments import regmean
from simo.merging.task_vectors import is_matrix
from simo.realignment.closedform import FEATURE_MAPS, centre, choose_ridge, squared_errors, stream_grams


def linear_cka(matrix, width):
    """Linear centred kernel alignment of z and u, in [0, 1] (Kornblith et al., 2019).

    Parameters
    ----------
    matrix : Tensor
        See `simo.realignment.closedform.gram`; of far more rows than features, or it is biased upwards.
    width : int
        Of z.
    """
    _, _, zz, uz, uu = centre(matrix, width)
    return (uz.square().sum() / (zz.norm() * uu.norm())).item()


def explained(fitted, held_out, tested, width):
    """Share of an expert's features that the merged encoder's explain, by what may be done to these.

    Parameters
    ----------
    fitted, held_out, tested : Tensor
        Gram matrices of z and equally wide y, of different images: to fit, to choose the ridge by, to score.
    width : int
        Of z.

    Returns
    -------
    dict of str to float
        1 − Σ ‖y − A z − c‖² / Σ ‖y − ȳ‖² on the tested images, ȳ the mean of those fitted: `nothing` for
        A = 1, c = 0, the keys of `FEATURE_MAPS`, and `ridge`. At most 1; below 0, ȳ would be nearer.
    """
    identity = torch.eye(width, dtype=fitted.dtype, device=fitted.device)
    maps = {"nothing": (identity, torch.zeros_like(identity[0]))}
    maps |= {name: fit(fitted + held_out, width) for name, fit in FEATURE_MAPS.items()}
    ((weight, bias, *_),) = choose_ridge(fitted, held_out, identity, [width])
    maps["ridge"] = weight, bias
    _, mean, *_ = centre(fitted + held_out, width)
    total = squared_errors(tested, torch.zeros_like(identity), mean).sum()
    return {name: (1 - squared_errors(tested, *each).sum() / total).item() for name, each in maps.items()}


def compare_features(encoder, experts, val, test, device="cpu", precision="float32"):
    """Compare an encoder's patch features with each expert's, after every block.

    Parameters
    ----------
    encoder : Encoder
        The merged one, or another of the same architecture; not changed.
    experts : dict of str to Encoder
        By task name.
    val, test : iterable of dict
        Batches of `image` `(B, 3, H, W)`: maps are fitted on `val`, all numbers are of `test`.
    device, precision : str
        See `simo.training.pick_device`.

    Returns
    -------
    list of dict
        One row a task and block: `task`, `block` (from 1), `cka`, and those of `explained`.
    """
    encoder, rows = _tap_all(encoder), []
    read = partial(Features.maps, dims=encoder.dims)
    for name, expert in experts.items():  # each by itself, so that the matrices stay small
        own = {name: _tap_all(expert)}
        fitted, tested = (
            stream_grams(encoder, own, batches, read, lambda task, number, y: y, device, precision)
            for batches in (val, test)
        )
        levels = zip(fitted, tested, encoder.dims, strict=True)
        for block, ((fit, held_out), parts, dim) in enumerate(levels, start=1):
            shares = explained(fit, held_out, sum(parts), dim)
            rows.append({"task": name, "block": block, "cka": linear_cka(sum(parts), dim), **shares})
    return rows


def spectrum(task_vector, shares):
    """How few directions hold a task vector: its matrices' energy in their strongest directions.

    Parameters
    ----------
    task_vector : TaskVector
    shares : sequence of float
        Shares of the directions, in (0, 1].

    Returns
    -------
    list of float
        For each, the share of Σ σ² in so many of the largest singular values, the mean over all matrices that
        moved.

    Raises
    ------
    SimoError
        If none did.
    """
    curves = []
    for name in task_vector:
        matrix = task_vector[name]
        if is_matrix(name, matrix) and matrix.any():
            energy = torch.linalg.svdvals(matrix.double()).square().cumsum(0)
            places = [max(1, round(share * len(energy))) - 1 for share in shares]
            curves.append(energy[places] / energy[-1])
    if not curves:
        raise SimoError("expected a task vector with a matrix that is not 0, found none")
    return torch.stack(curves).mean(dim=0).tolist()


def _tap_all(encoder):
    """A copy of an encoder that returns the outputs of all blocks, or of all levels of a pyramid."""
    copied = copy.deepcopy(encoder)
    copied.taps = list(range(len(copied.backbone.feature_info)))
    return copied


def _relative(found, other):
    """‖found − other‖ / ‖other‖; 0 where both are 0."""
    return ((found - other).norm() / other.norm().clamp(min=1e-30)).item()


def compare_moments(moments, task_vectors):
    """How far the experts' second moments are from their mean, and what merging by them changes.

    Parameters
    ----------
    moments : dict of str to dict
        By task name, see `simo.merging.moments.input_moments`.
    task_vectors : dict of str to TaskVector

    Returns
    -------
    list of dict
        One row a linear layer: `layer`; `block`, from 1, in order of depth, 0 for what is in none;
        `distances` by task, ‖G_t − G‖ / ‖G‖ with G the mean over tasks; `change`, ‖τ − τ̄‖ / ‖τ̄‖ of
        RegMean's τ beside the average τ̄. Equal moments have distances of 0, and, if they are of full rank, a
        change of 0: RegMean and LOT are the average then. RegMean shrinks by its default.
    """
    vectors, found = list(task_vectors.values()), list(moments.values())
    solved, mean = regmean(vectors, found), average(vectors)
    layers = [name for name, matrix in found[0].items() if matrix.ndim == 2]
    blocks = sorted({block_number(name) for name in layers} - {()})
    rows = []
    for name in layers:
        middle = sum(each[name] for each in found) / len(found)
        distances = {task: _relative(own[name], middle) for task, own in moments.items()}
        change = _relative(solved[name], mean[name])
        block = blocks.index(block_number(name)) + 1 if block_number(name) else 0
        rows.append({"layer": name, "block": block, "distances": distances, "change": change})
    return rows
