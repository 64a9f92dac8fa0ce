"""Metrics of single tasks, pooled over a data set.

Pooled means that sums and counts of all valid pixels are accumulated and divided once at the end; the
average of batch averages, which the released code reports, depends on how images fall into batches.
"""

from collections.abc import Callable

import torch

from simo.errors import SimoError, require, require_known
from simo.tasks import valid_pixels


def check_finite(prediction):
    """Refuse predictions that are NaN or infinite: a metric would hide or spread them."""
    if not torch.isfinite(prediction).all():
        count = (~torch.isfinite(prediction)).sum().item()
        raise SimoError(f"expected finite predictions, found {count} NaN or infinite: the model diverged")


class MeanIoU:
    """Mean intersection over union in per cent, over classes that occur in prediction or target.

    Update with scores `(B, C, H, W)` and classes `(B, H, W)`; pixels of class -1 do not count.

    Parameters
    ----------
    channels : int
        C, the number of classes.
    """

    of_classes = higher_is_better = True

    def __init__(self, channels):
        self.matrix = torch.zeros(channels, channels, dtype=torch.long)  # (true, predicted), pixels

    def update(self, prediction, target):
        """Add a batch."""
        check_finite(prediction)
        valid, channels = valid_pixels(target), len(self.matrix)
        pairs = target[valid] * channels + prediction.argmax(1)[valid]
        self.matrix += torch.bincount(pairs, minlength=channels**2).view(channels, channels).cpu()

    def compute(self):
        """Return the mIoU in `[0, 100]`; SimoError if no pixel was labelled."""
        matrix = self.matrix.double()
        hits = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - hits
        require("the number of labelled pixels", 0, union.sum() > 0, "some, of classes other than -1")
        present = union > 0
        return 100 * (hits[present] / union[present]).mean()


class PooledMean:
    """Mean over all valid pixels of an error map, accumulated in float64.

    Parameters
    ----------
    channels : int
        Of the prediction; the error map has none.
    """

    of_classes = higher_is_better = False
    error_map: Callable  # from prediction and target to the errors `(B, H, W)`

    def __init__(self, channels):
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0

    def update(self, prediction, target):
        """Add a batch: prediction and target `(B, C, H, W)`, zero targets ignored."""
        check_finite(prediction)
        errors = self.error_map(prediction.double(), target.double())[valid_pixels(target)]
        self.total += errors.sum().cpu()
        self.count += errors.numel()

    def compute(self):
        """Return the pooled mean; SimoError if no pixel was valid."""
        require("the number of valid pixels", 0, self.count > 0, "some whose target is not 0 (ignored)")
        return self.total / self.count


class AbsoluteError(PooledMean):
    """The paper's aErr: absolute error, averaged over channels and valid pixels."""

    @staticmethod
    def error_map(prediction, target):
        """`(B, H, W)` mean absolute difference of the channels."""
        return (prediction - target).abs().mean(dim=1)


class AngularError(PooledMean):
    """The paper's mDist: angle between predicted and true normal in degrees, both normalised first."""

    @staticmethod
    def error_map(prediction, target):
        """`(B, H, W)` angles in `[0, 180]`; a zero prediction counts as 90 degrees off."""
        lengths = (prediction.square().sum(dim=1) * target.square().sum(dim=1)).sqrt()
        cosines = (prediction * target).sum(dim=1) / lengths.clamp(min=1e-12)
        return torch.rad2deg(torch.acos(cosines.clamp(-1, 1)))


METRICS = {"mIoU": MeanIoU, "aErr": AbsoluteError, "mDist": AngularError}


def create_metric(task):
    """A fresh accumulator for the task's metric; `update(prediction, target)`, then `compute()`.

    Raises
    ------
    SimoError
        For an unknown metric, one of classes for values or the other way round, or of the other direction.
    """
    require_known("metric", task.metric, METRICS, f"task {task.name}: ")
    if getattr(METRICS[task.metric], "of_classes", task.is_segmentation) != task.is_segmentation:
        kind = "classes" if task.is_segmentation else "values"
        raise SimoError(f"task {task.name}: {task.metric} does not measure {kind}, which {task.loss} is for")
    better = getattr(METRICS[task.metric], "higher_is_better", task.higher_is_better)
    found = f"task {task.name}: higher_is_better", task.higher_is_better
    require(*found, better == task.higher_is_better, f"{better}, as {task.metric} is")
    return METRICS[task.metric](task.channels)
