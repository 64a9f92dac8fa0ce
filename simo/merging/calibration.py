"""Merging anew on what the merged encoder itself computes, block after block, from images without labels.

RegMean++ (Nguyen et al., 2026) and FeatCal (Gu et al., 2026) solve the layers of one block at a time, in
forward order, for the features that the blocks before it, solved already, give; ProDistill (Xu et al., 2025)
trains such a block. All were read as abstract and code. There, images of each task differ; here all experts
see the same ones.

Images are read and computed anew for every block, as far as that block, so that no features are kept: time
grows with the square of the depth, where the official codes keep the features of few images.
"""

import copy
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from simo.adapters import called_blocks
from simo.errors import require
from simo.merging.methods import average, task_arithmetic
from simo.merging.moments import check_layers, collect_moments, regmean, watch_layers
from simo.merging.task_vectors import TaskVector
from simo.realignment.closedform import gram
from simo.training import OwnLoss, autocast, fit, images_of


@torch.no_grad()
def regmean_plus_plus(
    encoder, base, task_vectors, experts, batches, shrink=0.95, device="cpu", precision="float32"
):
    """RegMean with the moments of what experts' layers see of the merged encoder's features.

    Each expert's block is run on what comes out of the merged blocks before it; by the moments of its linear
    layers' inputs the block is merged, see `simo.merging.moments.regmean`. All other tensors are averaged.

    Parameters
    ----------
    encoder : Encoder
        Of the same architecture, whatever its weights. Not changed.
    base : mapping of str to Tensor
        θ_0.
    task_vectors : sequence of TaskVector
    experts : sequence of Encoder
        In the same order. Moved to the device and put into eval mode.
    batches : iterable of dict
        Of `image` `(B, 3, H, W)` in `[0, 1]`; no label is read. Iterated once a block: a loader or a list.
    shrink : float
        See `regmean`.
    device, precision : str
        See `simo.training.pick_device`.

    Returns
    -------
    Encoder
        The merged one, with α = 1.

    Raises
    ------
    SimoError
        For a `shrink` out of range, no image or one out of range, task vectors of another architecture, or
        an encoder without linear layers.
    """
    check_layers(encoder)
    merged, changes = copy.deepcopy(encoder).to(device).eval(), dict(average(task_vectors))
    TaskVector(changes, changes.get).load_into(merged, base, 1.0)
    for block in called_blocks(merged):
        own = [expert.to(device).eval().get_submodule(block) for expert in experts]
        with ExitStack() as stack, autocast(device, precision):
            moments = [stack.enter_context(collect_moments(each, f"{block}.")) for each in own]
            for image in images_of(batches, device, block):
                inputs, options, _ = _reach(merged, block, image)
                for each in own:
                    each(*inputs, **options)
        solved = regmean(task_vectors, moments, shrink)
        changes |= {name: solved[name] for name in solved if name.startswith(f"{block}.")}
        TaskVector(changes, changes.get).load_into(merged, base, 1.0)
    return merged


@torch.no_grad()
def featcal(
    encoder, base, experts, batches, pull=0.05, stretch=2.0, blend=0.3, device="cpu", precision="float32"
):
    """Calibrate a merged encoder's layers so that its features come close to every expert's.

    Each linear layer is solved for the experts' outputs, see `calibrate_linear`, on features between theirs
    and its own; each layer norm see `calibrate_norm`. Other tensors stay as they are merged. Variant: the
    official code gives patch tokens of the last block a hundredth of the class token's weight, for
    classifiers; here all tokens count alike.

    Parameters
    ----------
    encoder : Encoder
        The merged one. Not changed.
    base, experts, batches, device, precision
        See `regmean_plus_plus`.
    pull : float
        λ, towards the anchor θ_0 + stretch · (θ − θ_0), θ being merged; 0 or more.
    stretch, blend : float
        See above, and the share of the experts' own features in those that they are asked about. Defaults
        are those of the paper's text, as the official code names them.

    Returns
    -------
    Encoder
        A calibrated copy.

    Raises
    ------
    SimoError
        For no image or one out of range, an encoder without linear layers, or values out of range.
    """
    values, good = (pull, stretch, blend), 0 <= pull < math.inf and math.isfinite(stretch) and 0 <= blend <= 1
    require("(pull, stretch, blend)", values, good, "0 or more, a number, a share in [0, 1], finite")
    check_layers(encoder)
    merged, *experts = (each.to(device).eval() for each in (copy.deepcopy(encoder), *experts))
    states = [expert.state_dict() for expert in experts]
    for block in called_blocks(merged):
        sums = {}
        for image in images_of(batches, device, block):
            with autocast(device, precision):
                student, *teachers = (_layer_inputs(each, block, image) for each in (merged, *experts))
            for name, x in student.items():
                u = x[:, :0]  # of a norm nothing is asked that its experts' parameters do not say
                if isinstance(merged.get_submodule(name), nn.Linear):
                    weights = [state[f"{name}.weight"].double() for state in states]
                    pairs = zip(teachers, weights, strict=True)
                    u = sum(torch.lerp(x, own[name], blend) @ w.T for own, w in pairs) / len(states)
                sums[name] = sums.get(name, 0) + gram(x, u)
        for name, matrix in sums.items():
            layer, mean, anchor = merged.get_submodule(name), {}, {}
            for part, own in layer.named_parameters(recurse=False):
                mean[part] = sum(state[f"{name}.{part}"].double() for state in states) / len(states)
                anchor[part] = torch.lerp(base[f"{name}.{part}"].to(own).double(), own.double(), stretch)
            solve = calibrate_linear if isinstance(layer, nn.Linear) else calibrate_norm
            for part, value in solve(matrix, mean, anchor, pull, len(states)).items():
                getattr(layer, part).copy_(value)
    return merged


def prodistill(
    encoder, base, task_vectors, experts, dataset, optimisation, learning_rate=0.01, start=0.3, resume=None
):
    """Learn how much of each task vector every entry takes, block after block (ProDistill; Xu et al., 2025).

    A merged block, on what comes out of the merged blocks before it, is trained to give what each expert's
    block does on its own. All other tensors are those of task arithmetic with α = `start`. Variant: steps are
    a budget and follow its schedule; there, 100 epochs of 64 images a task at a constant rate.

    Parameters
    ----------
    encoder : Encoder
        Of the same architecture, whatever its weights. Not changed.
    base, task_vectors, experts
        See `regmean_plus_plus`.
    dataset : PreparedDataset
        Images; labels are not used.
    optimisation : Optimisation
        The budget of each block. Weight decay and clipping are not used.
    learning_rate : float
        Peak.
    start : float
        Every coefficient at first.
    resume : str or Path, optional
        Folder for the states of unfinished training.

    Returns
    -------
    Encoder
        The merged one.
    """
    settings = replace(optimisation, weight_decay=0.0, clip=math.inf, compile=False)  # passes are cut short
    merged, *experts = (each.to(settings.device).eval() for each in (copy.deepcopy(encoder), *experts))
    task_arithmetic(task_vectors).load_into(merged, base, start)
    for block in called_blocks(merged):
        part = merged.get_submodule(block)
        own = {name: f"{block}.{name}" for name, _ in part.named_parameters()}
        # (T, ...), as the amounts of them
        changes = [torch.stack([v[name] for v in task_vectors]).to(settings.device) for name in own.values()]
        amounts = nn.ParameterList(torch.full_like(each, start) for each in changes)

        def state(own=own, changes=changes, amounts=amounts):
            sums = [(much * each).sum(dim=0) for much, each in zip(amounts, changes, strict=True)]
            return {short: base[name].to(x) + x for (short, name), x in zip(own.items(), sums, strict=True)}

        def predict(batch, block=block, part=part, state=state):
            with torch.no_grad():
                called, *others = (_reach(each, block, batch["image"]) for each in (merged, *experts))
            found = _tokens(functional_call(part, state(), *called[:2])).float()
            errors = [F.mse_loss(found, wanted.float(), reduction="sum") for *_, wanted in others]
            return {"block": sum(errors) / len(found)}

        plan = (amounts, predict, [(list(amounts), learning_rate)], dataset, [OwnLoss("block")], settings)
        file = resume and Path(resume) / f"{block}.safetensors"
        fit(*plan, label=f"{block} of ProDistill", resume=file, beside=[merged, *experts])
        part.load_state_dict(part.state_dict() | state())
    return merged


def calibrate_linear(matrix, mean, anchor, pull, count):
    """A linear layer of least Σ_t ‖W x − W_t x_t‖² / ‖x xᵀ‖ + λ ‖W − W_a‖² in the mean, and then its bias.

    As all experts see the same images, their sum over tasks is `count` times that for their mean output.

    Parameters
    ----------
    matrix : Tensor
        Gram matrix of the rows [x, u, 1], see `simo.realignment.closedform.gram`: inputs x of the merged
        layer and u, the experts' mean outputs without their biases.
    mean, anchor : dict of str to Tensor
        `weight` and, if the layer has one, `bias`: the experts' mean, and what λ pulls towards.
    pull : float
        λ.
    count : int
        Of experts.

    Returns
    -------
    dict of str to Tensor
        `weight` and `bias`, float64.
    """
    width, moments = anchor["weight"].shape[1], matrix / matrix[-1, -1]
    z, y = slice(None, width), slice(width, -1)
    xx, ux, x, u = moments[z, z], moments[y, z], moments[-1, z], moments[-1, y]
    scale = count / torch.linalg.matrix_norm(xx).clamp(min=1e-8)
    ridge = (pull + 1e-8) * torch.eye(width, dtype=xx.dtype, device=xx.device)
    weight = torch.linalg.solve(scale * xx + ridge, (scale * ux + pull * anchor["weight"]).T).T
    if "bias" not in anchor:
        return {"weight": weight}
    missing = mean["bias"] + u - weight @ x
    return {"weight": weight, "bias": (scale * missing + pull * anchor["bias"]) / (scale + pull)}


def calibrate_norm(matrix, mean, anchor, pull, count):
    """Scale γ and shift β of least Σ_t ‖γ z + β − γ_t z − β_t‖² + λ ‖(γ, β) − (γ, β)_a‖² in the mean.

    Parameters and returned values are those of `calibrate_linear`; x are the merged layer's normalised
    inputs z, and there is no u. A norm without scale or shift stays as it is.
    """
    if anchor.keys() != {"weight", "bias"}:
        return {}
    square, z = (matrix.diagonal() / matrix[-1, -1])[:-1], matrix[-1, :-1] / matrix[-1, -1]
    a, b, c = count * square + pull, count * z, count + pull
    first = count * (square * mean["weight"] + z * mean["bias"]) + pull * anchor["weight"]
    second = count * (z * mean["weight"] + mean["bias"]) + pull * anchor["bias"]
    determinant = (a * c - b.square()).clamp(min=1e-8)
    weight, bias = (c * first - b * second) / determinant, (a * second - b * first) / determinant
    return {"weight": weight, "bias": bias}


class _Reached(Exception):
    """Carries what a block was called with, and returned, out of a pass that need go no further."""


def _reach(encoder, block, image):
    """Run images through an encoder as far as a block: its arguments, named ones, and what it returned."""

    def stop(module, inputs, options, output):
        raise _Reached(inputs, options, _tokens(output))

    handle = encoder.get_submodule(block).register_forward_hook(stop, with_kwargs=True)
    try:
        encoder(image)
    except _Reached as reached:
        return reached.args
    finally:
        handle.remove()


def _tokens(output):
    """What a block returns: MViT's gives the size of the grid beside the tokens."""
    return output[0] if isinstance(output, tuple) else output


def _layer_inputs(encoder, block, image):
    """Inputs of the layers of a block by name, see `watch_layers`."""
    found = {}
    with watch_layers(encoder.get_submodule(block), lambda name, _, x: found.update({f"{block}.{name}": x})):
        _reach(encoder, block, image)
    return found
