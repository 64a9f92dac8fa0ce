"""Merging by what the experts' linear layers get to see: the second moments of their inputs.

For each linear layer, the change that keeps its outputs closest to every expert's, in closed form. Images are
read, labels are not.
"""

from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, LayerNormAct2d
from torch import nn

from simo.encoders import Encoder
from simo.errors import SimoError, require
from simo.merging.methods import average
from simo.merging.task_vectors import TaskVector
from simo.training import autocast, images_of


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
    require("shrink", shrink, 0 <= shrink <= 1, "a factor in [0, 1]")

    def merge(changes, grams):
        grams = [gram * shrink + gram.diagonal().diag() * (1 - shrink) for gram in grams]
        return solve(changes, grams)

    return by_moments(task_vectors, moments, merge, scales=False)


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
    return by_moments(task_vectors, moments, solve, scales=True)


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
    check_layers(encoder)
    encoder.to(device).eval()
    with collect_moments(encoder) as found:
        for image in images_of(batches, device, "moments"):
            with autocast(device, precision):
                encoder(image)
    return found


def check_layers(encoder):
    """Raise a SimoError if it is no encoder, or one without linear layers."""
    require("encoder", type(encoder).__name__, isinstance(encoder, Encoder), "an Encoder: `model.encoder`")
    if not any(isinstance(module, nn.Linear) for module in encoder.modules()):
        raise SimoError(f"{type(encoder.backbone).__name__} has no linear layers: no moments to merge by")


@contextmanager
def collect_moments(module, prefix=""):
    """Within it a module is called; the dict that it yields is filled in the end, see `input_moments`.

    Parameters
    ----------
    module : nn.Module
        An encoder, or a part of one.
    prefix : str
        Of the module's name in the encoder, with a dot, for the names in the dict.
    """
    sums, rows, found = {}, {}, {}

    def note(name, layer, x):
        added = x.square().sum(dim=0) if isinstance(layer, nn.LayerNorm) else x.T @ x
        sums[name] = sums.get(name, 0) + added
        rows[name] = rows.get(name, 0) + len(x)

    with watch_layers(module, note):
        yield found
    found |= {f"{prefix}{name}.weight": (value / rows[name]).cpu() for name, value in sums.items()}


@contextmanager
def watch_layers(module, note):
    """Within it, every call of a module's linear layers and layer norms is told to `note(name, layer, x)`.

    x are the rows `(n, channels)`, float64, that the layer's weight multiplies: a norm's are normalised.
    """

    def hook(name, layer, inputs):
        x = inputs[0].movedim(1, -1) if isinstance(layer, LayerNorm2d | LayerNormAct2d) else inputs[0]
        x = x.flatten(0, -2).double()
        norm = isinstance(layer, nn.LayerNorm)
        note(name, layer, F.layer_norm(x, layer.normalized_shape, eps=layer.eps) if norm else x)

    layers = [each for each in module.named_modules() if isinstance(each[1], nn.Linear | nn.LayerNorm)]
    handles = [layer.register_forward_pre_hook(partial(hook, name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def solve(changes, grams):
    """The smallest τ `(outputs, inputs)` of least Σ tr (τ − τ_t) G_t (τ − τ_t)ᵀ: Σ τ_t G_t (Σ G_t)⁺.

    By eigenvalues, because `lstsq` gives another solution each time where an input never varies: its choice
    depends on where in memory a matrix lies.
    """
    weighted = sum(gram @ change.T for gram, change in zip(grams, changes, strict=True))
    return (torch.linalg.pinv(sum(grams), rtol=1e-10, hermitian=True) @ weighted).T


def by_moments(task_vectors, moments, merge, scales):
    """Merge linear layers, and perhaps norms' scales, by their inputs' moments, and average other tensors.

    `merge` takes the layer's changes and Gram matrices, each a list of one an expert, in float64.
    """
    found = len(moments) if isinstance(moments, list | tuple) else f"a {type(moments).__name__}"
    require("the list of moments", f"of {found}", found == len(task_vectors), f"one of {len(task_vectors)}")
    mean = average(task_vectors)
    require("the number of layers with moments", 0, any(moments), "some: else this would be another method")
    for each in moments:
        for name in sorted((each.keys() ^ moments[0].keys()) | (each.keys() - mean.keys())):
            raise SimoError(f"not all moments and task vectors have {name!r}: expected those of one encoder")

    def compute(name):
        found = [each[name].double() for each in moments if name in each]
        if not found or (found[0].ndim == 1 and not scales):
            return mean[name]
        changes = [vector[name].double() for vector in task_vectors]
        found = [each.to(changes[0].device) for each in found]  # moments are kept on the CPU
        if found[0].ndim == 1:
            weights = torch.stack(found)  # (T, channels)
            return ((weights * torch.stack(changes)).sum(0) / weights.sum(0).clamp(min=1e-300)).float()
        return merge(changes, found).float()

    return TaskVector(mean, compute)
