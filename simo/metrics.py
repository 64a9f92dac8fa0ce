"""Metrics of single tasks, pooled over a data set.

Pooled means that sums and counts of all valid pixels are accumulated and divided once at the end; the
average of batch averages, which the released code reports, depends on how images fall into batches.
"""

import torch
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from simo.errors import SimoError
from simo.tasks import IGNORED_CLASS, valid_pixels


def check_finite(prediction):
    """Refuse predictions that are NaN or infinite: a metric would hide or spread them."""
    if not torch.isfinite(prediction).all():
        count = (~torch.isfinite(prediction)).sum().item()
        raise SimoError(
            f"expected finite predictions, found {count} NaN or infinite values: the model diverged"
        )


class MeanIoU(MulticlassConfusionMatrix):
    """Mean intersection over union in per cent, over classes that occur in prediction or target.

    Update with scores `(B, C, H, W)` and classes `(B, H, W)`; pixels of class -1 do not count.
    """

    def __init__(self, channels):
        super().__init__(num_classes=channels, ignore_index=IGNORED_CLASS, validate_args=False)

    def update(self, prediction, target):
        """Add a batch."""
        check_finite(prediction)
        super().update(prediction, target)

    def compute(self):
        """Return the mIoU in `[0, 100]`; SimoError if no pixel was labelled."""
        matrix = self.confmat.double()
        hits = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - hits
        if union.sum() == 0:
            raise SimoError("mIoU of no labelled pixel at all: expected at least one class other than -1")
        present = union > 0
        return 100 * (hits[present] / union[present]).mean()


class PooledMean(Metric):
    """Mean over all valid pixels of an error map, accumulated in float64."""

    def __init__(self, channels):
        super().__init__()
        self.mean = MeanMetric(nan_strategy="error").set_dtype(torch.float64)

    def update(self, prediction, target):
        """Add a batch: prediction and target `(B, C, H, W)`, zero targets ignored."""
        check_finite(prediction)
        errors = self.error_map(prediction.double(), target.double())[valid_pixels(target)]
        if errors.numel():
            self.mean.update(errors)

    def compute(self):
        """Return the pooled mean; SimoError if no pixel was valid."""
        if self.mean.weight == 0:
            raise SimoError("error of no valid pixel at all: every target value is 0 (ignored)")
        return self.mean.compute()


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
    """A fresh accumulator for the task's metric; `update(prediction, target)`, then `compute()`."""
    return METRICS[task.metric](task.channels)
