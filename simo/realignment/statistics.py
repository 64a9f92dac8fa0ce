"""Batch norm statistics of a merged encoder, estimated anew from images without labels."""

import copy

import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from simo.encoders import Encoder
from simo.errors import require
from simo.training import autocast, images_of


@torch.no_grad()
def reestimate_statistics(encoder, batches, device="cpu", precision="float32"):
    """Replace batch norms' running statistics by those of the encoder's own activations, in place.

    Averaged weights see activations of smaller variance than the averaged statistics say, so that features
    collapse from layer to layer; statistics of the merged encoder undo that (REPAIR; Jordan et al., 2023).
    While they are estimated, every layer is normalised by the batch at hand, and what is kept is the mean of
    the batches' statistics: large batches are better, and one of all images is exact but for
    n / (n − 1), n being the places that a layer sees.

    Parameters
    ----------
    encoder : Encoder
        Its weights, device and mode stay as they are.
    batches : iterable of dict
        Of `image` `(B, 3, H, W)` in `[0, 1]`; no label is read.
    device, precision : str
        See `simo.training.pick_device`.

    Raises
    ------
    SimoError
        If the encoder has no batch norm with statistics, or there is no image, or one out of range. Nothing
        has changed then.

    Examples
    --------
    >>> encoder = create_encoder("test_efficientnet", {}, [3, 4, 5])
    >>> bright = [{"image": torch.ones(2, 3, 64, 64)}]
    >>> reestimate_statistics(encoder, bright)
    >>> encoder.backbone.bn1.running_mean.abs().sum() > 0  # 0 before
    tensor(True)
    """
    require("encoder", type(encoder).__name__, isinstance(encoder, Encoder), "an Encoder: `model.encoder`")
    copied = copy.deepcopy(encoder).to(device).eval()
    norms, new = ([each for each in model.modules() if _tracks(each)] for model in (encoder, copied))
    require("the list of batch norms", [], norms, "some: the encoder has no statistics to estimate")
    for norm in new:
        norm.reset_running_stats()
        norm.train().momentum = None  # the mean of all batches
    for image in images_of(batches, device, "statistics"):
        with autocast(device, precision):
            copied(image)
    seen = [pair for pair in zip(norms, new, strict=True) if pair[1].num_batches_tracked]
    for norm, other in seen:  # a layer that no feature depends on keeps what it has
        norm.load_state_dict(other.state_dict())


def _tracks(module):
    return isinstance(module, BatchNorm) and module.track_running_stats
