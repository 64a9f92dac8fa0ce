"""Why merging breaks heads: how far merged features are from the experts', and task vectors apart.

Features z of the merged encoder are compared with an expert's y of the same tokens, block by block, from the
Gram matrices of `simo.closedform`: how alike they are up to a rotation, and how much of y is left to explain
by z as it is, shifted, scaled, turned, or mapped by any matrix.
"""

import copy

import torch

from simo.closedform import FEATURE_MAPS, centre, choose_ridge, ridge, squared_errors, stream_grams


def linear_cka(matrix, width):
    """Linear centred kernel alignment of z and u, in [0, 1] (Kornblith et al., 2019).

    Parameters
    ----------
    matrix : Tensor
        Gram matrix, see `simo.closedform.gram`; of far more rows than features, or it is biased upwards.
    width : int
        Of z.
    """
    _, _, zz, uz, uu = centre(matrix, width)
    return (uz.square().sum() / (zz.norm() * uu.norm())).item()


def explained(fitted, held_out, width):
    """Share of an expert's features that the merged encoder's explain, by what may be done to these.

    Parameters
    ----------
    fitted, held_out : Tensor
        Gram matrices of z and equally wide y, of different images.
    width : int
        Of z.

    Returns
    -------
    dict of str to float
        1 − Σ ‖y − A z − c‖² / Σ ‖y − ȳ‖² on the held-out images: `nothing` for A = 1, c = 0, the keys of
        `FEATURE_MAPS`, and `ridge`, whose strength is chosen there, too. At most 1; below 0, the mean of y
        would be nearer.
    """
    identity = torch.eye(width, dtype=fitted.dtype, device=fitted.device)
    maps = {"nothing": (identity, torch.zeros_like(identity[0]))}
    maps |= {name: fit(fitted, width) for name, fit in FEATURE_MAPS.items()}
    ((*_, strength),) = choose_ridge(fitted, held_out, identity, [width])
    maps["ridge"] = ridge(fitted, identity, strength)
    total = centre(held_out, width)[-1].trace()
    return {name: (1 - squared_errors(held_out, *each).sum() / total).item() for name, each in maps.items()}


def compare_features(encoder, experts, batches, device="cpu", precision="float32"):
    """Compare an encoder's patch features with each expert's, after every block.

    Parameters
    ----------
    encoder : Encoder
        The merged one, or another of the same architecture; not changed.
    experts : dict of str to Encoder
        By task name.
    batches, device, precision
        See `simo.closedform.realign_closed_form`.

    Returns
    -------
    list of dict
        One row a task and block: `task`, `block` (from 1), `cka`, and those of `explained`.
    """
    encoder, rows = _tap_all(encoder), []
    for name, expert in experts.items():  # each by itself, so that the matrices stay small
        found = stream_grams(
            encoder,
            {name: _tap_all(expert)},
            batches,
            lambda features: list(features.patches.unbind(1)),
            lambda task, number, y: y,
            device,
            precision,
        )
        for block, (fitted, held_out) in enumerate(found, start=1):
            shares = explained(fitted, held_out, encoder.dim)
            rows.append(
                {"task": name, "block": block, "cka": linear_cka(fitted + held_out, encoder.dim), **shares}
            )
    return rows


def cosines(task_vectors):
    """Cosines between whole task vectors.

    Parameters
    ----------
    task_vectors : dict of str to TaskVector
        By task name.

    Returns
    -------
    dict of str to dict of str to float
        By two tasks.
    """
    names = list(task_vectors)
    products = torch.zeros(len(names), len(names), dtype=torch.float64)
    for tensor in task_vectors[names[0]]:
        rows = torch.stack([task_vectors[name][tensor].double().flatten() for name in names])
        products += rows @ rows.T
    scale = products.diagonal().clamp(min=1e-300).sqrt()
    values = (products / scale.outer(scale)).tolist()
    return {name: dict(zip(names, row, strict=True)) for name, row in zip(names, values, strict=True)}


def relative_length(task_vector, base):
    """‖τ‖ / ‖θ_0‖: how far an expert has moved from the pretrained encoder."""
    lengths = [
        sum(state[name].double().square().sum() for name in task_vector) for state in (task_vector, base)
    ]
    return (lengths[0] / lengths[1]).sqrt().item()


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
        For each, the share of Σ σ² in so many of the largest singular values, the mean over all matrices.
    """
    curves = []
    for name in task_vector:
        matrix = task_vector[name]
        if matrix.ndim == 2:
            energy = torch.linalg.svdvals(matrix.double()).square().cumsum(0)
            places = [max(1, round(share * len(energy))) - 1 for share in shares]
            curves.append(energy[places] / energy[-1].clamp(min=1e-300))
    return torch.stack(curves).mean(dim=0).tolist()


def _tap_all(encoder):
    """A copy of an encoder that returns the outputs of all blocks."""
    copied = copy.deepcopy(encoder)
    copied.taps = list(range(len(copied.backbone.blocks)))
    return copied
