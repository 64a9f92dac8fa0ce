"""Reading prepared data sets, moving image and targets together, and batches that can be resumed.

Prepared layout, real or rendered: `<folder>/<field>/<i>.npy`, each `(H, W)` or `(H, W, C)`, where the fields
are `image` and the tasks' folders, and `splits/{train,val,test}.txt` with one `folder/i` a line: classes are
`(H, W)`, masks `(H, W, 1)`, images and values `(H, W, C)`. Unsigned integers are fixed-point fractions: a
uint8 stands for value / 255, a uint16 for value / 65535. Value 0 (in all channels) means no ground truth, but
not of tasks whose values are centred; where a field `mask_valid` exists, 0 there says so, for every task.

The folders keep the data sets' own order, and the splits say what they are used for: NYUv2's `val` holds
the official test images, of which the paper takes disjoint parts for val and test; Cityscapes' `train` is
parted into train and val, and its `val` is the test split; Taskonomy is split by building.
"""

import copy
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from simo.checkpoints import check_tensor
from simo.errors import SimoError, require, require_known
from simo.files import decoding, read_object
from simo.tasks import IGNORED_CLASS, tasks_of

SPLITS = ("train", "val", "test")


class PreparedDataset(Dataset):
    """One split of a prepared data set.

    `dataset[i]` is the image as it is stored. `dataset[i, key]` is a random augmentation of it that
    depends on nothing but `key`, so that an interrupted training can go on with the very same images.

    Parameters
    ----------
    root : str or Path
        The prepared folder.
    dataset : str
        A key of `simo.tasks.TASKS`.
    split : str
        `train`, `val` or `test`, or several joined by +.
    tasks : sequence of str, optional
        Whose targets to read; all of the data set's if not given.
    scales : sequence of float, optional
        Augmentation: the image is enlarged by one of these; none if not given. Only 1 where a task does not
        say what that does to its targets (`zoom`).
    crop : (int, int), optional
        Augmentation, with `scales` alone: height and width cut out after scaling; the images' if not given.

    Raises
    ------
    SimoError
        If the folder or split is missing, empty or half written, or for scales that a task does not bear,
        or a crop without scales.
    """

    def __init__(self, root, dataset, split, tasks=None, scales=None, crop=None):
        self.root, self.split = Path(root), split
        self.tasks = tasks_of(dataset, tasks)
        fixed = set(scales or ()) - {1} and [task.name for task in self.tasks if task.zoom is None]
        require("scales", scales, not fixed, f"[1.0]: of an enlarged image the targets of {fixed} are others")
        require("crop", crop, scales or not crop, "None without scales, since only augmented images are cut")
        self.names = [name for part in split.split("+") for name in read_split(self.root, part)]
        self.size = tuple(self._load("image", self.names[0]).shape[:2])
        self.scales, self.crop = scales, crop or self.size
        self.masked = self._path("mask_valid", self.names[0]).exists()

    def __len__(self):
        """Return the number of images in the split."""
        return len(self.names)

    def sample(self, count, seed):
        """Return the data set of `count` random images of the split; fewer are always among more."""
        require("count", count, 1 <= count <= len(self), f"1 to {len(self)} images of {self.split}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        part = copy.copy(self)
        part.names = [self.names[index] for index in order[:count]]
        return part

    def without(self, other):
        """Return the data set of those images that another does not have."""
        part, left_out = copy.copy(self), set(other.names)
        part.names = [name for name in self.names if name not in left_out]
        return part

    def __getitem__(self, index):
        """Read a sample.

        Parameters
        ----------
        index : int or (int, int)
            Position in the split, or position and augmentation key.

        Returns
        -------
        dict of str to Tensor
            `image` `(3, H, W)` float32 in `[0, 1]`, and by task name `(H, W)` int64 or `(C, H, W)` float32.
        """
        index, key = index if isinstance(index, tuple) else (index, None)
        sample = self._read(self.names[index])
        if key is not None and self.scales:
            sample = augment(sample, self.tasks, self.scales, self.crop, torch.Generator().manual_seed(key))
        return sample

    def _read(self, name):
        image = _as_values(self._load("image", name))
        path = self._path("image", name)
        if image.shape[0] != 3 or image.shape[1:] != self.size:
            found, wanted = (_sizes(shape) for shape in (image.movedim(0, -1).shape, (*self.size, 3)))
            raise SimoError(f"{path}: expected an image of {wanted} like the split's first, found {found}")
        if not (image.min() >= 0 and image.max() <= 1):  # also refuses NaN
            found = f"{image.min().item():.3g} to {image.max().item():.3g}"
            raise SimoError(f"{path}: expected values in [0, 1], found {found}")
        valid = torch.from_numpy(self._load("mask_valid", name) != 0) if self.masked else None
        return {"image": image} | {task.name: self._read_target(task, name, valid) for task in self.tasks}

    def _read_target(self, task, name, valid):
        array, path = self._load(task.folder, name), self._path(task.folder, name)
        if task.is_segmentation:
            if np.issubdtype(array.dtype, np.floating) and (array != array.round()).any():
                raise SimoError(f"{path}: expected whole numbers as classes, found fractions")
            target = torch.from_numpy(array).long()
        else:
            target = _as_values(array)
        if target.shape[-2:] != self.size:
            found, wanted = _sizes(target.shape[-2:]), _sizes(self.size)
            raise SimoError(f"{path}: expected a target of {wanted} like its image, found {found}")
        # a centred fraction of odd denominator is never exactly 0, which would mean no ground truth
        target = 2 * target - 1 if task.centred else target
        if valid is not None:
            target = target.masked_fill(~valid.view(self.size), IGNORED_CLASS if task.is_segmentation else 0)
        task.check_target(target, path)  # but not what the mask says is unknown
        return target

    def _path(self, modality, name):
        folder, number = name.split("/")
        return self.root / folder / modality / f"{number}.npy"

    def _load(self, modality, name):
        path = self._path(modality, name)
        advice = f"delete it if it is there, and prepare {self.root} again, which goes on where it ended"
        with decoding(path, advice):
            array = np.load(path, allow_pickle=False)
            if array.dtype.kind not in "biuf" or array.ndim not in (2, 3):
                raise ValueError(f"{array.ndim} dimensions of {array.dtype}; expected 2 or 3 of numbers")
            return array


def _sizes(shape):
    return "×".join(map(str, shape))


def _as_values(array):
    """An array `(H, W, C)` as a float tensor `(C, H, W)`, fixed-point fractions as what they stand for."""
    values = torch.from_numpy(array.astype(np.float32)).movedim(-1, 0)
    return values / np.iinfo(array.dtype).max if np.issubdtype(array.dtype, np.unsignedinteger) else values


def read_split(root, split):
    """Names `folder/index` of a split, from its text file; SimoError if there is none."""
    root, path = Path(root), Path(root) / "splits" / f"{split}.txt"
    if not root.is_dir():
        raise SimoError(f"data folder {root} does not exist: `make data` prepares it, or set DATA=/its/place")
    require_known("split", split, SPLITS)
    if not path.is_file():
        raise SimoError(f"{path} does not exist: {root} was not prepared to the end; continue: `make data`")
    with decoding(path, f"delete it, and prepare {root} again"):
        names = path.read_text(encoding="utf-8").split()
    require(f"the number of images in {path}", 0, names, "some")
    if wrong := [name for name in names if not re.fullmatch(r"\w+/\w+", name)]:
        raise SimoError(f"{path}: {wrong[0]!r} is no folder/number: delete it, and prepare {root} again")
    return names


def read_prepared(root):
    """What the preparation of a folder wrote last, in `prepared.json`; SimoError if it did not get there.

    Returns
    -------
    dict
        Among others `sha256`, the hash of the content; `source`, the raw format it was made from; and
        `fixture`, whether that was made-up test data.
    """
    path = Path(root) / "prepared.json"
    if not path.is_file():
        raise SimoError(f"{path} does not exist: {root} was not prepared to the end; continue: `make data`")
    return read_object(path)


def augment(sample, tasks, scales, crop, generator):
    """Enlarge, crop and flip image and targets together, as the paper does for NYUv2.

    What enlarging and mirroring do to a target's values is the task's `zoom` and `flips_x`. Images are
    resized bilinearly, targets by nearest neighbour (`nearest-exact`, which stays registered with the image).

    Parameters
    ----------
    sample : dict of str to Tensor
        `image` `(3, H, W)` and targets; not changed.
    tasks : sequence of Task
        The tasks whose targets the sample holds.
    scales : sequence of float
        One is drawn uniformly.
    crop : (int, int)
        Height and width of the result, drawn uniformly from where it fits.
    generator : torch.Generator
        The only source of randomness.

    Raises
    ------
    SimoError
        If the crop is larger than the scaled image.
    """

    def draw(n):
        return torch.randint(n, (), generator=generator).item()

    scale = scales[draw(len(scales))]
    height, width = (int(n * scale) for n in sample["image"].shape[-2:])
    fits = crop[0] <= height and crop[1] <= width
    require("crop", tuple(crop), fits, f"at most the scaled image's size, {height}×{width}")
    top, left = draw(height - crop[0] + 1), draw(width - crop[1] + 1)
    flip = draw(2) == 1

    def move(x, mode):
        channels = x if x.ndim == 3 else x.unsqueeze(0)
        if scale != 1:
            options = {"align_corners": False} if mode == "bilinear" else {}
            channels = F.interpolate(channels[None].float(), (height, width), mode=mode, **options)[0]
        channels = channels[:, top : top + crop[0], left : left + crop[1]]
        channels = channels.flip(-1) if flip else channels
        return (channels if x.ndim == 3 else channels[0]).to(x.dtype)

    moved = {"image": move(sample["image"], "bilinear")}
    for task in tasks:
        moved[task.name] = move(sample[task.name], "nearest-exact")
        if task.zoom:
            moved[task.name] = moved[task.name] * scale**task.zoom
        if task.flips_x and flip:
            moved[task.name] = moved[task.name] * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    return moved


class ShuffledBatches:
    """Indices of shuffled batches, a pure function of seed and step.

    Every epoch is a fresh permutation; batches run across its end, so that all have the same size.

    Parameters
    ----------
    length : int
        Number of images.
    batch_size : int
        Images a batch.
    start, stop : int
        First step, and the step after the last: a resumed training starts in the middle.
    seed : int
        Decides order and augmentation keys.
    """

    def __init__(self, length, batch_size, start, stop, seed):
        self.length, self.batch_size, self.start, self.stop, self.seed = length, batch_size, start, stop, seed

    def __len__(self):
        """Return the number of batches left."""
        return self.stop - self.start

    def __iter__(self):
        """Yield a list of `(index, key)` for each step."""
        orders = {}
        for step in range(self.start, self.stop):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                epoch, place = divmod(position, self.length)
                if epoch not in orders:
                    generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                    orders = {epoch: torch.randperm(self.length, generator=generator).tolist()}
                batch.append((orders[epoch][place], self.seed * 1_000_000_007 + position))
            yield batch


def check_batch(batch, tasks=()):
    """Refuse a batch that does not hold what it should, whoever's loader it comes from.

    Parameters
    ----------
    batch : dict of str to Tensor
        `image` `(B, 3, H, W)` float in `[0, 1]`, and by task name `(B, H, W)` int64 or `(B, C, H, W)` float.
    tasks : sequence of Task
        Whose targets must be there, as `simo.tasks` describes them.

    Raises
    ------
    SimoError
        For what is missing, or of another shape, type or range.
    """
    check_keys(batch, ["image", *(task.name for task in tasks)])
    image = batch["image"]
    fits = image.ndim == 4 and image.shape[1] == 3 and image.dtype == torch.float32 and image.numel()
    if not (fits and image.min() >= 0 and image.max() <= 1):  # also refuses NaN
        values = f" in [{image.min().item():.3g}, {image.max().item():.3g}]" if image.numel() else ""
        wanted = "images (B, 3, H, W) of float32 in [0, 1] (bytes are divided by 255)"
        raise SimoError(f"expected {wanted}, found {tuple(image.shape)} of {image.dtype}{values}")
    for task in tasks:
        target = batch[task.name]
        channels = () if task.is_segmentation else (task.channels,)
        expected = (len(image), *channels, *image.shape[-2:])
        # of smaller whole numbers, products that the metric computes would overflow
        typed = target.dtype == torch.int64 if task.is_segmentation else target.is_floating_point()
        if tuple(target.shape) != expected or not typed:
            wanted = f"targets {expected} of {'float32' if channels else 'int64'}"
            found = f"{tuple(target.shape)} of {target.dtype}"
            raise SimoError(f"task {task.name}: expected {wanted}, found {found}")
        task.check_target(target.movedim(1, 0), "batch")


def check_keys(batch, names):
    """Refuse a batch that is no mapping with a tensor of plain numbers for each name."""
    if not isinstance(batch, Mapping):
        found = f"a {type(batch).__name__}: give each tensor its name, of {list(names)}"
        raise SimoError(f"expected every batch to be a dict of tensors, found {found}")
    for name in names:
        if name not in batch:
            what = "" if name == "image" else "a target "
            raise SimoError(f"expected {what}{name!r} in every batch, found {sorted(map(str, batch))}")
        check_tensor(batch[name], f"{name!r} of a batch")


def training_batches(dataset, batch_size, start, stop, seed, workers=0):
    """A loader of shuffled, augmented batches for the steps `start` to `stop - 1`."""
    batches = ShuffledBatches(len(dataset), batch_size, start, stop, seed)
    options = {"num_workers": workers, "pin_memory": torch.cuda.is_available()}
    return DataLoader(dataset, batch_sampler=batches, **options)


def evaluation_batches(dataset, batch_size, workers=0):
    """A loader of the split in order, as stored; its workers stay for the next pass over it."""
    options = {"num_workers": workers, "pin_memory": torch.cuda.is_available()}
    return DataLoader(dataset, batch_size, persistent_workers=workers > 0, **options)
