"""What one dense prediction task is: its channels, loss, metric, and which pixels do not count.

A target is a map: class indices `(B, H, W)` int64 for segmentation, values `(B, C, H, W)` float otherwise.
A prediction is always `(B, C, H, W)` float. Pixels without ground truth carry an ignored value and
take part in neither loss nor metric: -1 for classes, 0 (in all channels) for values.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from simo.errors import SimoError, require, require_known

IGNORED_CLASS = -1
# what stands beside tasks' names: attributes of the module that holds heads, and other keys of batches,
# features, histories and scans
RESERVED = {*dir(nn.ModuleDict()), "image", "patches", "classes", "step", "learning_rate", "alpha", "score"}


def names_of(tasks):
    """Names of tasks; SimoError if one is no `Task`, or has the name of another."""
    if not isinstance(tasks, list | tuple) or not all(isinstance(task, Task) for task in tasks):
        raise SimoError(f"expected a list of Task, such as tasks_of('nyuv2') gives, found {tasks!r:.60}")
    names = [task.name for task in tasks]
    require("the list of tasks", names, len(names) == len(set(names)), "a new name for each")
    return names


def cross_entropy(prediction, target):
    """Mean cross-entropy over labelled pixels; 0 (with a gradient of 0) if no pixel is labelled.

    The released code divides by all pixels instead, labelled or not, so that its loss depends on how
    much of an image is labelled.
    """
    total = F.cross_entropy(prediction, target, ignore_index=IGNORED_CLASS, reduction="sum")
    return total / (target != IGNORED_CLASS).sum().clamp(min=1)


def l1(prediction, target):
    """Mean absolute error over the channels of valid pixels."""
    mask = valid_pixels(target).unsqueeze(1)
    error = (prediction - target).abs() * mask
    return error.sum() / (mask.sum() * target.shape[1]).clamp(min=1)


def cosine(prediction, target):
    """Mean of `1 - cos(prediction, target)` over valid pixels: the paper's dot-product loss.

    The paper does not say whether the prediction is normalised; here it is, so that its length
    cannot lower the loss.
    """
    mask = valid_pixels(target)
    similarity = F.cosine_similarity(prediction, target, dim=1, eps=1e-6)
    return ((1 - similarity) * mask).sum() / mask.sum().clamp(min=1)


LOSSES = {"cross_entropy": cross_entropy, "l1": l1, "cosine": cosine}


def valid_pixels(target):
    """Which pixels have ground truth.

    Parameters
    ----------
    target : Tensor
        `(B, H, W)` int64 classes, or `(B, C, H, W)` float values.

    Returns
    -------
    Tensor
        `(B, H, W)` bool: class not -1, or any channel not 0.
    """
    return target != IGNORED_CLASS if target.ndim == 3 else (target != 0).any(dim=1)


@dataclass(frozen=True)
class Task:
    """One dense prediction task.

    Attributes
    ----------
    name : str
        The field's name for it, also the key in batches, heads and records, and an output in ONNX: letters,
        digits and underscores.
    folder : str
        The folder of its targets in the prepared data set.
    channels : int
        Channels of the prediction: classes, or values a pixel.
    loss : str
        A key of `LOSSES`.
    metric : str
        A key of `simo.metrics.METRICS`.
    unit : str
        Unit of the metric, for tables and axes.
    higher_is_better : bool
        Direction of the metric.
    non_negative : bool
        Whether predictions are clamped at 0 by the head (depth).
    centred : bool
        Whether targets, stored in [0, 1], are mapped to [-1, 1] when they are read (Taskonomy).
    zoom : int or None
        A target's values are multiplied by `s ** zoom` when the image is enlarged by s: an enlarged
        image looks taken from nearer, so depth falls (-1) and disparity grows (1). None where no such rule
        gives the enlarged image's target, as of a detector's responses: then no image is enlarged.
    flips_x : bool
        Whether channel 0 changes its sign when the image is mirrored (normals).
    classes : tuple of str
        Names of the classes of a segmentation.

    Raises
    ------
    SimoError
        For a name that cannot be a key everywhere, an unknown loss, or other numbers of channels than fit.
    """

    name: str
    folder: str
    channels: int
    loss: str
    metric: str
    unit: str
    higher_is_better: bool = False
    non_negative: bool = False
    centred: bool = False
    zoom: int | None = 0
    flips_x: bool = False
    classes: tuple = ()

    def __post_init__(self):
        """Refuse what would fail, or pass in silence, only later."""
        name, channels = self.name, self.channels
        if not (isinstance(name, str) and re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name)):
            raise SimoError(f"task {name!r}: expected a name of letters, digits and _, such as part_2")
        require("task", repr(name), name not in RESERVED, f"a name that is not taken, such as my_{name}")
        where, whole = f"task {name}: ", type(channels) is int and channels > 0
        require_known("loss", self.loss, LOSSES, where)
        require(f"{where}channels", repr(channels), whole, "a whole number above 0")
        require(f"{where}classes", self.classes, len(self.classes or ()) in (0, channels), "a name a channel")
        least = 2 if self.loss in ("cross_entropy", "cosine") else 1  # one class, or direction, says nothing
        require(f"{where}channels", channels, channels >= least, f"{least} or more with {self.loss}")
        require(f"{where}channels", channels, channels == 3 or not self.flips_x, "3 with flips_x")

    @property
    def is_segmentation(self):
        """Whether targets are class indices."""
        return self.loss == "cross_entropy"

    def compute_loss(self, prediction, target):
        """Training loss of this task, a scalar; see `LOSSES`.

        Raises
        ------
        SimoError
            If prediction and target do not fit each other or the task.
        """
        self.check_prediction(prediction, target)
        return LOSSES[self.loss](prediction.float(), target)

    def check_prediction(self, prediction, target):
        """Refuse a prediction that is not `(B, channels, H, W)`, or a target not like it: both broadcast."""
        values = (target.shape[0], self.channels, *target.shape[-2:])
        classes = (*values[:1], *values[2:]) if self.is_segmentation else values
        for what, found, expected in (("prediction", prediction, values), ("target", target, classes)):
            own = tuple(found.shape)
            require(f"task {self.name}: the shape of the {what}", own, own == expected, expected)

    def check_target(self, target, source):
        """Refuse a target that would silently spoil training.

        Parameters
        ----------
        target : Tensor
            `(H, W)` classes or `(C, H, W)` values.
        source : str or Path
            Where it came from, for the message.

        Raises
        ------
        SimoError
            For a class outside `[-1, channels)`, a value that is not finite, or below 0 where heads are
            clamped, or a wrong channel count.
        """
        own, last = f"{source}: task {self.name} expects", self.channels - 1
        if self.is_segmentation:
            low, high = target.min().item(), target.max().item()
            if low < IGNORED_CLASS or high > last:
                raise SimoError(f"{own} classes -1 (ignored) to {last}, found {low} to {high}")
        elif target.shape[0] != self.channels:
            raise SimoError(f"{own} {self.channels} channels, found {target.shape[0]}")
        elif count := (~torch.isfinite(target)).sum().item():
            found = f"found {count} NaN or infinite ones; mark pixels without truth as 0"
            raise SimoError(f"{own} finite values, {found}")
        elif self.non_negative and (low := target.min().item()) < 0:
            raise SimoError(f"{own} values of 0 (no truth) or more, found {low:.3g}")


NYUV2_CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv",
    "wall", "window",
)  # fmt: skip

CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_PARTS = (
    "background", "torso", "head", "arms", "legs", "windows", "wheels", "lights", "licence plate", "chassis",
)  # fmt: skip

# Taskonomy's normals are trained and scored by absolute error, as all its tasks are in the paper's Table 3:
# under the paper's dot-product loss a prediction's length is free, and an absolute error would mean nothing.
TASKS = {
    "nyuv2": (
        Task("segmentation", "label", 13, "cross_entropy", "mIoU", "%", True, classes=NYUV2_CLASSES),
        Task("depth", "depth", 1, "l1", "aErr", "m", non_negative=True, zoom=-1),
        Task("normals", "normal", 3, "cosine", "mDist", "°", flips_x=True),
    ),
    "cityscapes": (
        Task("segmentation", "label_19", 19, "cross_entropy", "mIoU", "%", True, classes=CITYSCAPES_CLASSES),
        Task("parts", "part_seg", 10, "cross_entropy", "mIoU", "%", True, classes=CITYSCAPES_PARTS),
        Task("disparity", "depth", 1, "l1", "aErr", "", non_negative=True, zoom=1),
    ),
    "taskonomy": (
        Task("autoencoder", "image", 3, "l1", "aErr", "", centred=True),
        Task("depth", "depth_zbuffer", 1, "l1", "aErr", "", non_negative=True, zoom=None),
        Task("normals", "normal", 3, "l1", "aErr", "", centred=True, flips_x=True),
        Task("edges", "edge_texture", 1, "l1", "aErr", "", centred=True, zoom=None),
        Task("keypoints", "keypoints2d", 1, "l1", "aErr", "", centred=True, zoom=None),
    ),
}
# not in the paper's tables, but in its released code
ADDITIONAL_TASKS = {
    "taskonomy": (Task("semantics", "segment_semantic", 18, "cross_entropy", "mIoU", "%", True),),
}


def tasks_of(dataset, names=None):
    """The tasks of a data set, all or those named, in the paper's order.

    Parameters
    ----------
    dataset : str
        A key of `TASKS`.
    names : sequence of str, optional
        Which tasks, additional ones among them; all of the paper's if not given.

    Returns
    -------
    tuple of Task

    Raises
    ------
    SimoError
        For an unknown data set or task.
    """
    require_known("data set", dataset, TASKS)
    known = {task.name: task for task in TASKS[dataset] + ADDITIONAL_TASKS.get(dataset, ())}
    for name in names or ():
        require_known("task", name, known, f"{dataset}: ")
    return TASKS[dataset] if names is None else tuple(t for name, t in known.items() if name in names)
