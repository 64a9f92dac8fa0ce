"""The yardstick under every table: what a prediction reaches that looks at no image."""

import torch
import torch.nn.functional as F
from torch import nn

from simo.errors import SimoError
from simo.tasks import valid_pixels
from simo.training import progress


class Constant(nn.Module):
    """A model that looks at nothing: for each task the best constant, learned from a split.

    The most frequent class for segmentation, the median of each channel for absolute errors, the mean
    direction for angles. A table in which this does not fail badly says little about merging.

    Parameters
    ----------
    dataset : PreparedDataset
        The training split, read without augmentation.
    limit : int
        Values of a task that are kept at most; beyond it, images and pixels are sampled evenly.
    """

    def __init__(self, dataset, limit=4_000_000):
        super().__init__()
        self.tasks = dataset.tasks
        chosen = range(0, len(dataset), -(-len(dataset) // 2000))
        each = max(1, limit // len(chosen))
        found = {task.name: [] for task in self.tasks}
        for index in progress(chosen, label="constants"):
            sample = dataset[index]
            for task in self.tasks:
                target = sample[task.name]
                valid = valid_pixels(target[None])[0]
                values = target[..., valid].reshape(
                    -1 if task.is_segmentation else task.channels, valid.sum()
                )
                found[task.name].append(values[:, :: -(-values.shape[1] // each) or 1])
        for task in self.tasks:
            values = torch.cat(found[task.name], dim=1)  # (C, pixels), classes (1, pixels)
            self.register_buffer(task.name, _best_constant(task, values).view(1, -1, 1, 1))

    def forward(self, image):
        """Predict `(B, C, H, W)` by task name, whatever `image` `(B, 3, H, W)` shows."""
        shape = (len(image), -1, *image.shape[-2:])
        return {task.name: getattr(self, task.name).expand(shape) for task in self.tasks}


def _best_constant(task, values):
    """Prediction `(C,)` from all values `(C, pixels)` of a task."""
    if values.numel() == 0:
        raise SimoError(f"task {task.name}: no pixel of the training split has ground truth")
    if task.is_segmentation:
        return F.one_hot(values.flatten().mode().values, task.channels).float()
    return values.mean(dim=1) if task.metric == "mDist" else values.median(dim=1).values
