"""Realignment without labels and without training: every head's first linear layer, solved anew.

A head reads the encoder's features z by a linear layer (for a linear head it is the head). The expert's
encoder has features y of the same image, of which the layer makes W y + b. Ridge regression finds the layer
on z that comes closest to that, on images without labels, pulled towards W. It is the same layer as if a
linear map from z to y had been fitted first and then been multiplied into W.

Sums are streamed in float64, as Gram matrices of the rows [z, u, 1]: memory does not grow with the images,
and the strength of the pull is chosen on held-out images without reading any image twice.
"""

import copy

import torch

from simo.encoders import Encoder, Features
from simo.errors import SimoError, require, require_known
from simo.training import autocast, images_of

STRENGTHS = tuple(10.0**power for power in range(-6, 3))  # relative to the mean variance of z
EVERY = 5  # one image of so many is held out to choose the strength by


class NotFinite(SimoError):
    """Features that hold NaN or infinity."""


def gram(z, u):
    """Gram matrix `(d + o + 1, ...)` of the rows [z, u, 1], float64, from `(n, d)` and `(n, o)`.

    Those of different images add up; a difference of two is that of the images that only one has.
    """
    rows = torch.cat([z.double(), u.double(), torch.ones_like(z[:, :1], dtype=torch.float64)], dim=1)
    return rows.T @ rows


def centre(matrix, width):
    """Means of z and u, and the centred sums of z zᵀ, u zᵀ and u uᵀ.

    Parameters
    ----------
    matrix : Tensor
        Gram matrix `(d + o + 1, ...)`, see `gram`.
    width : int
        d, of z.

    Returns
    -------
    (Tensor, Tensor, Tensor, Tensor, Tensor)
        `(d,)`, `(o,)`, `(d, d)`, `(o, d)` and `(o, o)`.
    """
    count, mean = matrix[-1, -1], matrix[-1, :-1] / matrix[-1, -1]
    centred = matrix[:-1, :-1] - count * mean.outer(mean)
    z, u = slice(None, width), slice(width, None)
    return mean[z], mean[u], centred[z, z], centred[u, z], centred[u, u]


def ridges(matrix, prior, strengths):
    """W and b that minimise Σ ‖u − W z − b‖² + λ ‖W − W₀‖², with λ = strength · tr(Σ z zᵀ) / d, centred.

    W = W₀ + (Σ u zᵀ − W₀ Σ z zᵀ) (Σ z zᵀ + λ)⁻¹; one eigendecomposition of Σ z zᵀ serves all strengths.

    Parameters
    ----------
    matrix : Tensor
        Gram matrix, see `gram`.
    prior : Tensor
        W₀ `(o, d)`, float64.
    strengths : iterable of float
        0 is least squares; infinity a shift of the mean alone.

    Yields
    ------
    (Tensor, Tensor)
        `(o, d)` and `(o,)`, float64, one pair a strength.

    Raises
    ------
    SimoError
        If z does not vary.
    """
    z, u, zz, uz, _ = centre(matrix, prior.shape[1])
    if not zz.trace() > 1e-12 * matrix.diagonal()[: len(z)].sum():  # never quite 0, for rounding
        raise SimoError(f"the encoder's {len(z)} features are the same everywhere: nothing can be fitted")
    sizes, basis = torch.linalg.eigh(zz)
    missing = (uz - prior @ zz) @ basis
    for strength in strengths:
        weight = prior + missing / (sizes + strength * sizes.mean()) @ basis.T
        yield weight, u - weight @ z


def squared_errors(matrix, weight, bias):
    """Σ (u − W z − b)² of each output `(o,)`, over the rows of a Gram matrix.

    Parameters
    ----------
    matrix : Tensor
        `(d + o + 1, ...)`, see `gram`.
    weight, bias : Tensor
        W `(o, d)` and b `(o,)`.
    """
    z, u = slice(None, weight.shape[1]), slice(weight.shape[1], -1)
    slopes = (weight * (2 * matrix[u, z] - weight @ matrix[z, z])).sum(dim=1)
    shifts = bias * (2 * (matrix[u, -1] - weight @ matrix[z, -1]) - matrix[-1, -1] * bias)
    return matrix.diagonal()[u] - slopes - shifts


def choose_ridge(fitted, held_out, prior, groups):
    """Ridge regression with the strength of least error on held-out images, solved again on all images.

    Parameters
    ----------
    fitted, held_out : Tensor
        Gram matrices `(d + o + 1, ...)` of different images: rows of one image resemble each other.
    prior : Tensor
        W₀ `(o, d)`.
    groups : list of int
        Numbers of outputs that share a strength, one a task; their sum is o.

    Returns
    -------
    list of (Tensor, Tensor, float, Tensor)
        W, b and the strength of each group, and its squared errors on held-out images, one for each
        of `STRENGTHS`, and the last for W₀ with the best shift.
    """
    tried = (*STRENGTHS, float("inf"))
    errors = torch.stack([squared_errors(held_out, *each) for each in ridges(fitted, prior, tried)])
    errors = [part.sum(dim=1) for part in errors.split(groups, dim=1)]
    chosen = [STRENGTHS[each[:-1].argmin().item()] for each in errors]
    layers = dict(zip(chosen, ridges(fitted + held_out, prior, chosen), strict=True))
    parts = [[part.split(groups)[task] for part in layers[own]] for task, own in enumerate(chosen)]
    return [(weight, bias, *other) for (weight, bias), *other in zip(parts, chosen, errors, strict=True)]


def procrustes(matrix, width):
    """A rotation or reflection A and a shift c from z to equally wide u: least squares among orthogonal A.

    Where rows are too few to say how to turn, as little as possible is turned.

    Parameters
    ----------
    matrix : Tensor
        Gram matrix `(2 d + 1, ...)`, see `gram`.
    width : int
        d.

    Returns
    -------
    (Tensor, Tensor)
        A `(d, d)` and c `(d,)`, float64.
    """
    z, u, _, uz, _ = centre(matrix, width)
    nudge = 1e-8 * torch.linalg.matrix_norm(uz, 2) * torch.eye(width, dtype=uz.dtype, device=uz.device)
    left, _, right = torch.linalg.svd(uz + nudge)
    return left @ right, u - left @ (right @ z)


def diagonal(matrix, width):
    """A scale and a shift for each feature, from z to equally wide u: least squares among diagonal A.

    Parameters and returned values are those of `procrustes`. A feature that does not vary is only shifted.
    """
    z, u, zz, uz, _ = centre(matrix, width)
    variance, square = zz.diagonal(), matrix.diagonal()[:width]
    scale = torch.where(variance > 1e-12 * square, uz.diagonal() / variance.clamp(min=1e-300), 1.0)
    return scale.diag(), u - scale * z


def shift(matrix, width):
    """The identity and a shift: z is given the mean of the equally wide u. Shapes as of `procrustes`."""
    z, u, *_ = centre(matrix, width)
    return torch.eye(width, dtype=matrix.dtype, device=matrix.device), u - z


FEATURE_MAPS = {"procrustes": procrustes, "diagonal": diagonal, "shift": shift}


def realign_closed_form(model, encoders, batches, device="cpu", precision="float32", kind="ridge"):
    """Solve the first layer of every head anew, for the merged encoder's features.

    Parameters
    ----------
    model : MultiTaskModel
        The merged encoder under the experts' heads, whose first layers say what to come close to. All heads
        read the same of the encoder (`inputs`). Not changed.
    encoders : dict of str to Encoder
        The experts', by the names of the model's heads. Moved to the device and put into eval mode.
    batches : iterable of dict
        Of `image` `(B, 3, H, W)` in `[0, 1]`; no label is read. Iterated once if `kind` is `ridge`, otherwise
        once for every expert: then it must be a loader or a list, which starts anew, and not a generator.
    device, precision : str
        See `simo.training.pick_device`. Sums are float64 whatever the encoders compute in.
    kind : str
        `ridge`, or a key of `FEATURE_MAPS`: a map of the features that is multiplied into the layer.

    Returns
    -------
    MultiTaskModel
        A realigned copy: the same encoder and the same architecture of heads, which cost nothing more.

    Raises
    ------
    SimoError
        For fewer than two images, images out of range, features that are not finite or, for `ridge`, do not
        vary, an encoder too many or too few, heads that read different things, or an unknown kind.

    Examples
    --------
    An encoder that is its own expert gets its own head back:

    >>> batches = [{"image": torch.stack([data[i]["image"] for i in range(8)])}]
    >>> realigned = realign_closed_form(model.eval(), {"depth": model.encoder}, batches)
    >>> before, after = (each(batches[0]["image"])["depth"] for each in (model, realigned))
    >>> torch.allclose(before, after, atol=1e-4)
    True
    """
    require_known("kind", kind, ("ridge", *FEATURE_MAPS))
    if kind == "ridge":
        return solve_heads(model, encoders, batches, device, precision)[0]
    realigned = copy.deepcopy(model).to(device).eval()
    layers, read = _first_layers(realigned, encoders, device)
    for name, expert in encoders.items():  # one at a time: whole features of all would fill the memory
        plan = batches, read, lambda name, number, y: y, device, precision
        solved, statistics = [], []
        for number, pair in enumerate(stream_grams(realigned.encoder, {name: expert}, *plan)):
            matrix, (weight, bias) = sum(pair), layers[name][number]
            turn, moved = FEATURE_MAPS[kind](matrix, weight.shape[1])
            solved.append((weight @ turn, bias + weight @ moved))
            statistics.append(_statistics(matrix, weight.shape[1]))
        realigned.heads[name].set_first_layers(solved, statistics)
    return realigned


def solve_heads(model, encoders, batches, device="cpu", precision="float32"):
    """Closed form, and what the merged features cannot say: the share of heads' inputs that it leaves.

    The residual is 1 − R² of the ridge on the images that it holds out, and by which its strength is chosen:
    0 if the head can receive exactly what its expert's encoder would give it, 1 if it learns no more than
    these images' own mean, and more where even that differs from the other images'; of a head to which its
    expert gives the same everywhere, 0. It needs no label and no
    head beyond its first layer, and so tells merged encoders apart before anything else is known of them.
    Beside it the distance: what is left if nothing is solved, and the head's outputs are only given the mean
    of the expert's.

    Parameters
    ----------
    model, encoders, batches, device, precision
        As for `realign_closed_form`; the batches are iterated once.

    Returns
    -------
    (MultiTaskModel, dict of str to float, dict of str to float)
        What `realign_closed_form` gives, and residual and distance by task name; for heads that read several
        maps, the mean over these.

    Raises
    ------
    SimoError
        As of `realign_closed_form`.
    """
    realigned = copy.deepcopy(model).to(device).eval()
    layers, read = _first_layers(realigned, encoders, device)
    pairs = stream_grams(realigned.encoder, encoders, batches, read, _output_of(layers), device, precision)
    solved, shares, statistics = {name: [] for name in encoders}, {name: [] for name in encoders}, []
    for number, (fitted, held_out) in enumerate(pairs):  # one an input of the heads
        weights = [own[number][0] for own in layers.values()]
        prior, groups = torch.cat(weights), [len(weight) for weight in weights]
        *_, spread = centre(held_out, prior.shape[1])
        least = 1e-12 * held_out.diagonal()[prior.shape[1] : -1]  # of rounding
        chosen = choose_ridge(fitted, held_out, prior, groups), (spread.diagonal() - least).split(groups)
        for name, (weight, bias, _, errors), total in zip(encoders, *chosen, strict=True):
            solved[name].append((weight, bias))
            left = torch.stack([errors[:-1].min(), errors[-1]]) / total.sum()
            shares[name].append(left if total.sum() > 0 else torch.zeros_like(left))  # a constant is no loss
        statistics.append(_statistics(fitted + held_out, prior.shape[1]))
    for name in encoders:
        realigned.heads[name].set_first_layers(solved[name], statistics)
    means = {name: sum(own) / len(own) for name, own in shares.items()}
    return realigned, *({name: mean[which].item() for name, mean in means.items()} for which in (0, 1))


def _first_layers(model, encoders, device):
    """First layers of all heads by name, and what all of them read of features, tried on made-up ones."""
    own, given = sorted(model.heads), sorted(map(str, encoders))
    require("the list of encoders", given, own == given, f"one for each head, {own}")
    heads, encoder = {name: model.heads[name] for name in encoders}, model.encoder
    for name, each in encoders.items():
        require(f"the encoder of {name}", type(each).__name__, isinstance(each, Encoder), "`expert.encoder`")
        able = all(hasattr(heads[name], what) for what in ("inputs", "first_layers", "set_first_layers"))
        require(f"the head of {name}", type(heads[name]).__name__, able, "one with `LinearHead`'s methods")
    with torch.no_grad():
        found = encoder(encoder.blank())
    patches, classes = (torch.arange(1.0, 1 + x.numel(), device=device).view_as(x) for x in found)
    first, *others = [head.inputs(Features(patches, -classes)) for head in heads.values()]
    if not all(len(first) == len(other) and all(map(torch.equal, first, other)) for other in others):
        raise SimoError(f"the heads {list(heads)} read different features: expected the same `inputs` of all")
    layers = {name: head.first_layers() for name, head in heads.items()}
    wanted = [(2, x.shape[1], torch.float64) for x in first]
    for name, own in layers.items():
        found = [(weight.ndim, weight.shape[-1], weight.dtype) for weight, _ in own]
        require(f"layers of the head of {name} (dimensions, d, type)", found, found == wanted, wanted)
    return layers, next(iter(heads.values())).inputs


def _output_of(layers):
    """What heads' first layers make of features: `target` of `stream_grams`."""
    return lambda name, number, y: y @ layers[name][number][0].T + layers[name][number][1]


def _statistics(matrix, width):
    """Mean and variance of z, from a Gram matrix."""
    mean, square = matrix[-1, :width] / matrix[-1, -1], matrix.diagonal()[:width] / matrix[-1, -1]
    return mean, square - mean.square()


@torch.no_grad()
def stream_grams(encoder, experts, batches, read, target, device="cpu", precision="float32"):
    """Stream images through the merged encoder and all experts'.

    Parameters
    ----------
    encoder : Encoder
        The merged one.
    experts : dict of str to Encoder
        By task name. All are moved to the device and put into eval mode.
    batches, device, precision
        See `realign_closed_form`.
    read : callable
        From `Features` to a list of maps `(B, d, h, w)`.
    target : callable
        From a task's name, a map's number and the expert's rows y `(n, d)` of it to u `(n, o)`.

    Returns
    -------
    list of (Tensor, Tensor)
        For each map, Gram matrices `(d + o + 1, ...)` of the images to fit and of those held out, one of
        `EVERY`; u are all tasks' side by side.

    Raises
    ------
    SimoError
        For fewer than two images, images out of range, or features that are not finite.
    """
    encoders = {name: each.to(device).eval() for name, each in experts.items()}
    encoder.to(device).eval()
    sums, seen = {}, 0
    for image in images_of(batches, device, "Gram matrices"):
        with autocast(device, precision):
            merged = read(encoder(image))
            found = {name: read(each(image)) for name, each in encoders.items()}
        held_out = (torch.arange(len(image)) + seen) % EVERY == 1  # never the first: two images suffice
        seen += len(image)
        for part in (False, True):
            chosen = held_out == part
            for number, maps in enumerate(merged):
                u = [target(name, number, _rows(found[name][number][chosen])) for name in experts]
                key = number, part
                sums[key] = sums.get(key, 0) + gram(_rows(maps[chosen]), torch.cat(u, dim=1))
    require("the number of images", seen, seen >= 2, "at least 2, of which some are held out")
    if not all(matrix.isfinite().all() for matrix in sums.values()):
        raise NotFinite(f"features of {sorted(experts)} or the merged encoder are NaN or infinite")
    return [(sums[number, False], sums[number, True]) for number in range(len(merged))]


def _rows(maps):
    """Maps `(B, d, h, w)` as rows `(B·h·w, d)`, float64."""
    return maps.flatten(2).mT.flatten(0, 1).double()
