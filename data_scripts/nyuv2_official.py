"""NYUv2 from its official labelled file: 13 classes, and normals computed from depth.

`nyu_depth_v2_labeled.mat` is a MATLAB 7.3 file, that is HDF5, in which every array is transposed: `images`
(1449, 3, 640, 480) uint8, `depths` and `rawDepths` (1449, 640, 480) float32 metres, `labels` (1449, 640, 480)
uint16, 0 not labelled, else a number in the list `names` of 894 classes. Their way to the paper's 13 classes
is `classMapping40.mat` (Gupta et al., CVPR 2013) and then `class13Mapping.mat` (Couprie et al., ICLR 2013).

How the community's arrays were made from this file was never published. Here:

- A frame of the picture without data, and three more rows at top and bottom, are cut off (`CROP`), which
  leaves 420 x 560 pixels of the shape of 288 x 384, so that pixels stay square (at `--size` of 3 : 4).
- Images are resampled with antialiasing; labels, depth and normals take the pixel nearest to the centre of
  the new one, since a mean over an edge belongs to neither side.
- `depth` is `depths`, whose gaps the authors filled.
- Normals are computed at full resolution by `data_scripts.normals`, and are kept where depth was measured
  (`rawDepths` is not 0). Those that the community used are an estimate of the same kind by others.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

from data_scripts.layouts import Broken, Image
from simo.errors import SimoError
from simo.files import decoding

MAT_FILES = ("nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat", "class13Mapping.mat")

# The toolbox of the data set keeps rows 45 to 470 and columns 41 to 600, counted from 1.
CROP = (slice(47, 467), slice(40, 600))

# The colour camera in the toolbox's camera_params.m; depths are registered to its picture.
FOCAL = (518.857901, 519.469611)
CENTRE = (325.582449, 253.736166)


def open_mat(raw):
    """List the images of the official file.

    Parameters
    ----------
    raw : Path
        Folder with the four files of `MAT_FILES`.

    Returns
    -------
    list of Image
        Training images, then test images (folder `val`), each in the order of the file. A name is the
        image's number, counted from 1 as everywhere, and the file of its colour picture.

    Raises
    ------
    SimoError
        If a file is missing, cannot be read, or does not fit the others.
    """
    missing = [name for name in MAT_FILES if not (raw / name).is_file()]
    if missing:
        raise SimoError(
            f"{raw} holds no {missing[0]}: of the official data {', '.join(MAT_FILES)} are needed. "
            "The first is at https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html, splits.mat at "
            "http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat, and the mappings are at "
            "https://github.com/ankurhanda/nyuv2-meta-data"
        )
    class_table(raw)  # refuses unusable mappings before anything is written
    data = _labelled(str(raw))
    with decoding(f"the names in {raw / MAT_FILES[0]}"):
        names = [_text(data, reference) for reference in data["rawRgbFilenames"][()].ravel()]
    numbers = official_numbers(raw / "splits.mat", len(data["images"]))
    return [
        Image(folder, i, f"{number:04d} {names[number - 1]}", (str(raw), number - 1))
        for folder, members in numbers.items()
        for i, number in enumerate(members)
    ]


def official_numbers(path, count=None):
    """Official numbers of the training images and, as `val`, of the test images.

    Parameters
    ----------
    path : Path
        The file `splits.mat`.
    count : int, optional
        Number of images there are; as many as it lists if not given.

    Returns
    -------
    dict of str to list of int
        Folder to numbers, counted from 1, ascending.

    Raises
    ------
    SimoError
        If the file cannot be read, names an image twice, or one that is not there.
    """
    splits, seen = _loadmat(path), set()
    lists = {
        key: sorted(int(number) for number in _variable(splits, key, path).ravel())
        for key in ("trainNdxs", "testNdxs")
    }
    count = sum(map(len, lists.values())) if count is None else count
    for key, numbers in lists.items():
        unique = set(numbers)
        if (
            not numbers
            or numbers[0] < 1
            or numbers[-1] > count
            or seen & unique
            or len(unique) < len(numbers)
        ):
            raise SimoError(
                f"{path}: expected {key} to be numbers from 1 to {count} of their own, found "
                f"{numbers[:3]}...: take the official file"
            )
        seen |= unique
    return dict(zip(("train", "val"), lists.values(), strict=True))


def class_table(raw):
    """Table from a label of the official file to the paper's class.

    Parameters
    ----------
    raw : Path
        Folder with the official file and the mappings.

    Returns
    -------
    ndarray
        int8 (895,): entry 0 and classes without a counterpart are -1, others 0 to 12 as in NYUV2_CLASSES.

    Raises
    ------
    SimoError
        If the mappings do not fit each other or the official file.
    """
    path40, to_13 = raw / "classMapping40.mat", thirteen_classes(raw)
    to_40 = _variable(_loadmat(path40), "mapClass", path40).ravel().astype(int)
    names = _labelled(str(raw))["names"].size
    if len(to_40) != names or not (to_40.min() >= 0 and to_40.max() <= len(to_13)):
        raise SimoError(
            f"{path40}: expected {names} numbers from 0 to {len(to_13)}, found {len(to_40)} from "
            f"{to_40.min()} to {to_40.max()}: take the file of github.com/ankurhanda/nyuv2-meta-data"
        )
    return (np.append(0, to_13)[np.append(0, to_40)] - 1).astype(np.int8)


def thirteen_classes(raw):
    """Numbers of the paper's classes that the 40 classes belong to, from `class13Mapping.mat`.

    Parameters
    ----------
    raw : Path
        Folder with the file.

    Returns
    -------
    ndarray
        int64 (40,): 1 to 13, in the order of NYUV2_CLASSES; 0 without a counterpart.

    Raises
    ------
    SimoError
        If the file holds anything else.
    """
    path = raw / "class13Mapping.mat"
    # A struct whose first field holds the numbers and whose second holds the names.
    table = (
        np.asarray(_variable(_loadmat(path), "classMapping13", path).ravel()[0][0]).ravel().astype(np.int64)
    )
    if len(table) != 40 or table.min() < 0 or table.max() > 13:
        raise SimoError(
            f"{path}: expected 40 numbers from 0 to 13, found {len(table)} from {table.min()} to "
            f"{table.max()}: take the file of github.com/ankurhanda/nyuv2-meta-data"
        )
    return table


def read_labelled(raw, number, size):
    """Arrays of one image, cut, resampled, labelled with the 13 classes, with normals.

    Parameters
    ----------
    raw : str
        Folder with the four files.
    number : int
        Position in the file, from 0.
    size : (int, int)
        Height and width of the arrays.

    Returns
    -------
    dict of str to ndarray
        `image` (H, W, 3) float32 in [0, 1]; `label` (H, W) int8, -1 not labelled; `depth` (H, W) float32
        metres; `normal` (H, W, 3) float32, x right, y up, z towards the viewer, 0 unknown.

    Raises
    ------
    Broken
        If the file is damaged there, or holds a label without a name.
    """
    data, table = _labelled(raw), _cached_table(Path(raw))
    with decoding(f"image {number + 1} of {MAT_FILES[0]}", kind=Broken):
        colour, label, depth, measured = (
            data[name][number].T for name in ("images", "labels", "depths", "rawDepths")
        )
    if label.max() >= len(table):
        raise Broken(
            f"{MAT_FILES[0]}, image {number + 1}: expected labels up to {len(table) - 1}, found {label.max()}"
        )
    return cut(colour, table[label], depth, size, measured > 0)


def cut(colour, label, depth, size, measured=None):
    """Cut and resample one image at full resolution, and compute its normals there.

    Parameters
    ----------
    colour : ndarray
        uint8 (480, 640, 3).
    label : ndarray
        int8 (480, 640).
    depth : ndarray
        float32 (480, 640), metres; 0 unknown.
    size : (int, int)
        Height and width of the arrays that are wanted.
    measured : ndarray, optional
        bool (480, 640): where normals are known; wherever depth is, if not given.

    Returns
    -------
    dict of str to ndarray
        `image`, `label`, `depth` and `normal` as `read_labelled` gives them.
    """
    from data_scripts.normals import normals_from_depth

    rows, columns = nearest(CROP[0], size[0]), nearest(CROP[1], size[1])
    at = np.ix_(rows, columns)
    normal = normals_from_depth(depth, FOCAL, CENTRE, rows, columns)
    if measured is not None:
        normal[~measured[at]] = 0
    image = shrink(colour[CROP].astype(np.float32) / 255, size)
    return {"image": image, "label": label[at], "depth": depth[at], "normal": normal}


def nearest(kept, count):
    """Original positions of `count` pixels that share the slice `kept`: each nearest to the centre."""
    scale = (kept.stop - kept.start) / count
    return kept.start + np.floor((np.arange(count) + 0.5) * scale).astype(np.int64)


def shrink(image, size):
    """Resample a float32 (h, w, 3) image in [0, 1] to `size` by a triangular window, that is, antialiased."""
    from PIL import Image as Pictures

    channels = [Pictures.fromarray(np.ascontiguousarray(image[..., channel])) for channel in range(3)]
    resized = [channel.resize(size[::-1], Pictures.Resampling.BILINEAR) for channel in channels]
    return np.clip(np.stack([np.asarray(channel) for channel in resized], axis=-1), 0, 1)


@lru_cache(maxsize=1)
def _labelled(raw):
    """The official file, opened once a process."""
    import h5py

    path = Path(raw) / MAT_FILES[0]
    shapes = {"images": (3, 640, 480), "labels": (640, 480), "depths": (640, 480), "rawDepths": (640, 480)}
    with decoding(f"{path}, a MATLAB 7.3 file,"):
        data = h5py.File(path, "r", rdcc_nbytes=64 << 20)
        there = {name: data[name].shape for name in shapes if name in data}
    for name, shape in shapes.items():
        found, shape = there.get(name), (*there.get("images", ())[:1], *shape)
        if found != shape or not shape[0]:
            raise SimoError(f"{path}: expected {name} of shape {shape}, found {found}: download it again")
    return data


_cached_table = lru_cache(maxsize=1)(class_table)


def _text(data, reference):
    """A MATLAB string behind a reference: UTF-16 code units in a column."""
    return "".join(map(chr, data[reference][()].ravel()))


def _loadmat(path):
    from scipy.io import loadmat

    with decoding(f"{path}, a MATLAB 5 file,"):
        return loadmat(path)


def _variable(variables, name, path):
    if name not in variables:
        known = sorted(key for key in variables if not key.startswith("__"))
        raise SimoError(f"{path}: expected a variable {name!r}, found {known}: take the official file")
    return variables[name]
