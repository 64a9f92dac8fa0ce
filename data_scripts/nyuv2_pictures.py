"""NYUv2 from folders of pictures, as a public copy of the official file has them.

That of github.com/markshih91/refinenet_pytorch holds every image of the official file as four pictures of
480 x 640, `<i>` being its official number less one, **all mirrored left to right**; here they are mirrored
back:

    nyu_images/<i>.jpg      colour
    nyu_depths/<i>.png      depth, gaps filled, 8 bit: metres are value * 9.9955 / 255, steps of 3.9 cm
    nyu_labels40/<i>.png    the 40 classes of Gupta et al. (CVPR 2013), counted from 0; 39 is "otherprop",
                            and also what is not labelled
    nyu_labels/<i>.png      the 894 classes modulo 256; 0 is not labelled

With `splits.mat` and `class13Mapping.mat` beside them, that gives the 13 classes of the official file: on
its 654 test images they were compared, and no pixel differs. The rest is worse than the official file:

- The scale of depth was not published but inferred: the least and the largest value would be .71 and 10 m.
- Depth is known to 3.9 cm. `dequantise` smooths it within its step.
- There is no `rawDepths`, so that nobody knows where depth was measured and where a gap was filled: every
  pixel has a depth, and normals are kept in the gaps, too.
- The images went through JPEG.

Crop, camera, resampling and normals are those of `data_scripts.nyuv2_official`.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numba import njit

from data_scripts.layouts import Broken, Image
from data_scripts.nyuv2_official import cut, official_numbers, thirteen_classes
from simo.errors import SimoError
from simo.files import decoding

PICTURES = {"nyu_images": "jpg", "nyu_depths": "png", "nyu_labels40": "png", "nyu_labels": "png"}
MAPPINGS = ("splits.mat", "class13Mapping.mat")
STEP = 9.9955 / 255  # metres that a value of depth stands for

_FULL = (480, 640)
_NEAR = 2  # steps between neighbours on one surface; more is a jump
_ROUNDS = 60
_OVER = 1.8  # relaxation: wide steps, of surfaces that face the camera, need it to be smooth after 60 rounds


def open_pictures(raw):
    """List the images of the folders of pictures.

    Parameters
    ----------
    raw : Path
        Folder with the four of `PICTURES` and the two files of `MAPPINGS`.

    Returns
    -------
    list of Image
        In the order of `nyuv2_official.open_mat`, so that a number means the same image. A name is the
        image's official number, counted from 1, and the file of its colour picture.

    Raises
    ------
    SimoError
        If a file is missing, or the mappings are unusable.
    """
    missing = [name for name in MAPPINGS if not (raw / name).is_file()]
    if not missing:
        thirteen_classes(raw)  # refuses an unusable mapping before anything is written
        numbers = official_numbers(raw / "splits.mat")
        there = {folder: {path.name for path in (raw / folder).glob("*")} for folder in PICTURES}
        missing = [
            f"{folder}/{number - 1}.{suffix}"
            for folder, suffix in PICTURES.items()
            for number in sorted(numbers["train"] + numbers["val"])
            if f"{number - 1}.{suffix}" not in there[folder]
        ]
    if missing:
        more = f" nor {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SimoError(
            f"{raw} holds no {missing[0]}{more}: expected a file in each of {', '.join(PICTURES)} for every "
            f"image of splits.mat, and {' and '.join(MAPPINGS)}. The pictures are at "
            "https://github.com/markshih91/refinenet_pytorch (nyu_labels in commit 7b76047), the others at "
            "https://github.com/ankurhanda/nyuv2-meta-data"
        )
    return [
        Image(folder, i, f"{number:04d} nyu_images/{number - 1}.jpg", (str(raw), number - 1))
        for folder, members in numbers.items()
        for i, number in enumerate(members)
    ]


def read_pictures(raw, number, size):
    """Arrays of one image, mirrored back, cut, resampled, with the 13 classes and normals.

    Parameters
    ----------
    raw : str
        Folder of the pictures.
    number : int
        `<i>` in their names.
    size : (int, int)
        Height and width of the arrays.

    Returns
    -------
    dict of str to ndarray
        As `nyuv2_official.read_labelled` gives them, but normals are known also where depth was not measured.

    Raises
    ------
    Broken
        If a picture cannot be read, has another size or type, or holds a class beyond the 40.
    """
    colour, depth, label40, label = (
        _picture(Path(raw) / folder / f"{number}.{suffix}", "RGB" if suffix == "jpg" else "L")[:, ::-1]
        for folder, suffix in PICTURES.items()
    )
    if label40.max() > 39:
        path = Path(raw) / "nyu_labels40" / f"{number}.png"
        raise Broken(f"{path}: expected classes from 0 to 39, found {label40.max()}: download it again")
    return cut(colour, classes(label40, label, _cached_table(Path(raw))), dequantise(depth), size)


def classes(label40, label, table):
    """The paper's 13 classes from the two label pictures.

    Parameters
    ----------
    label40, label : ndarray
        uint8 (H, W), as in `nyu_labels40` and `nyu_labels`.
    table : ndarray
        Numbers from 0 to 13 of the 40 classes, from `nyuv2_official.thirteen_classes`.

    Returns
    -------
    ndarray
        int8 (H, W): 0 to 12 as in NYUV2_CLASSES; -1 where a class has no counterpart, and where `label40` is
        39 while `label` is 0: not labelled.
    """
    return np.where((label40 == 39) & (label == 0), -1, table[label40] - 1).astype(np.int8)


def dequantise(values):
    """Depth in metres from its 8-bit values, smoothed within the quantisation step.

    What is sought is the map whose *inverse* depth is straightest, since that of a plane is affine: in
    rounds, each pixel moves towards the mean of its left and right, upper and lower neighbours' inverse
    depth (successive over-relaxation), and is then put back into the interval that its value stands for. A
    pair of opposite neighbours counts only if both are at most two steps away: nothing is smoothed across a
    jump, nor are surfaces bent where they end.

    Parameters
    ----------
    values : ndarray
        uint8 (H, W); 0 not measured.

    Returns
    -------
    ndarray
        float32 (H, W), at most half a step from `values * STEP`; 0 not measured.
    """
    values = values.astype(np.int64)
    known = values > 0
    inverse, low, high = (
        np.divide(1 / STEP, values + off, out=np.zeros(values.shape), where=known) for off in (0, 0.5, -0.5)
    )
    _straighten(values, inverse, low, high)
    return np.divide(1, inverse, out=np.zeros(values.shape), where=known).astype(np.float32)


@njit(cache=True)
def _straighten(values, inverse, low, high):
    height, width = values.shape
    for turn in range(_ROUNDS):
        for i in range(height):
            row = i if turn % 2 else height - 1 - i  # from both ends in turn, so that neither is favoured
            for j in range(width):
                column = j if turn % 2 else width - 1 - j
                here, total, count = values[row, column], 0.0, 0
                for down, right in ((0, 1), (1, 0)):
                    top, left, bottom, end = row - down, column - right, row + down, column + right
                    if top < 0 or left < 0 or bottom >= height or end >= width:
                        continue
                    if _near(here, values[top, left]) and _near(here, values[bottom, end]):
                        total += inverse[top, left] + inverse[bottom, end]
                        count += 2
                if count:
                    moved = inverse[row, column] + _OVER * (total / count - inverse[row, column])
                    inverse[row, column] = min(max(moved, low[row, column]), high[row, column])


@njit(cache=True)
def _near(a, b):
    return a > 0 and b > 0 and abs(a - b) <= _NEAR


def _picture(path, mode):
    """A picture of 480 x 640 and the type expected, as an array."""
    from PIL import Image as Pictures

    with decoding(path, kind=Broken), Pictures.open(path) as picture:
        found = f"{picture.height} x {picture.width} {picture.mode}"
        array = np.asarray(picture)
    if found != f"{_FULL[0]} x {_FULL[1]} {mode}":
        raise Broken(f"{path}: expected {_FULL[0]} x {_FULL[1]} {mode}, found {found}: download it again")
    return array


_cached_table = lru_cache(maxsize=1)(thirteen_classes)
