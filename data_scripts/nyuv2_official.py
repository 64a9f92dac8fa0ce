"""NYUv2 from its official labelled file: 13 classes, and normals computed from depth.

`nyu_depth_v2_labeled.mat` is a MATLAB 7.3 file, that is HDF5, in which every array is transposed: `images`
(1449, 3, 640, 480) uint8, `depths` and `rawDepths` (1449, 640, 480) float32 metres, `labels` (1449, 640, 480)
uint16, 0 not labelled, else a number in the list `names` of 894 classes. Their way to the paper's 13 classes
is `classMapping40.mat` (Gupta et al., CVPR 2013) and then `class13Mapping.mat` (Couprie et al., ICLR 2013).

How the community's arrays were made from this file was never published. Here:

- A frame of the picture without data, and three more rows at top and bottom, are cut off (`CROP`), which
  leaves 420 x 560 pixels of the shape of 288 x 384, so that pixels stay square.
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

MAT_FILES = ("nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat", "class13Mapping.mat")
SIZE = (288, 384)

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
    data, splits = _labelled(str(raw)), _loadmat(raw / "splits.mat")
    names = [_text(data, reference) for reference in data["rawRgbFilenames"][()].ravel()]
    images, count, seen = [], len(data["images"]), set()
    for folder, key in (("train", "trainNdxs"), ("val", "testNdxs")):
        numbers = sorted(int(number) for number in _variable(splits, key, raw / "splits.mat").ravel())
        if not numbers or numbers[0] < 1 or numbers[-1] > count or seen.intersection(numbers):
            raise SimoError(
                f"{raw / 'splits.mat'}: expected {key} to be numbers from 1 to {count} of their own, found "
                f"{numbers[:3]}...: take the official file"
            )
        seen.update(numbers)
        images += [
            Image(folder, i, f"{number:04d} {names[number - 1]}", (str(raw), number - 1))
            for i, number in enumerate(numbers)
        ]
    return images


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
    path40, path13 = raw / "classMapping40.mat", raw / "class13Mapping.mat"
    to_40 = _variable(_loadmat(path40), "mapClass", path40).ravel().astype(int)
    # A struct whose first field holds the numbers and whose second holds the names.
    to_13 = (
        np.asarray(_variable(_loadmat(path13), "classMapping13", path13).ravel()[0][0]).ravel().astype(int)
    )
    names = _labelled(str(raw))["names"].size
    if len(to_40) != names or not (to_40.min() >= 0 and to_40.max() <= len(to_13)):
        raise SimoError(
            f"{path40}: expected {names} numbers from 0 to {len(to_13)}, found {len(to_40)} from "
            f"{to_40.min()} to {to_40.max()}: take the file of github.com/ankurhanda/nyuv2-meta-data"
        )
    if not (to_13.min() >= 0 and to_13.max() <= 13):
        raise SimoError(f"{path13}: expected numbers from 0 to 13, found {to_13.min()} to {to_13.max()}")
    return (np.append(0, to_13)[np.append(0, to_40)] - 1).astype(np.int8)


def read_labelled(raw, number):
    """Arrays of one image, cut, resampled, labelled with the 13 classes, with normals.

    Parameters
    ----------
    raw : str
        Folder with the four files.
    number : int
        Position in the file, from 0.

    Returns
    -------
    dict of str to ndarray
        `image` (288, 384, 3) float32 in [0, 1]; `label` (288, 384) int8, -1 not labelled; `depth` (288, 384)
        float32 metres; `normal` (288, 384, 3) float32, x right, y up, z towards the viewer, 0 unknown.

    Raises
    ------
    Broken
        If the file is damaged there, or holds a label without a name.
    """
    from data_scripts.normals import normals_from_depth

    data, table = _labelled(raw), _cached_table(raw)
    try:
        colour, label, depth, measured = (
            data[name][number].T for name in ("images", "labels", "depths", "rawDepths")
        )
    except OSError as error:
        raise Broken(f"{MAT_FILES[0]}, image {number + 1}: {error}: download the file again") from error
    if label.max() >= len(table):
        raise Broken(
            f"{MAT_FILES[0]}, image {number + 1}: expected labels up to {len(table) - 1}, found {label.max()}"
        )
    rows, columns = nearest(CROP[0], SIZE[0]), nearest(CROP[1], SIZE[1])
    at = np.ix_(rows, columns)
    normal = normals_from_depth(depth, FOCAL, CENTRE, rows, columns)
    normal[measured[at] == 0] = 0
    return {"image": shrink(colour[CROP]), "label": table[label[at]], "depth": depth[at], "normal": normal}


def nearest(kept, count):
    """Original positions of `count` pixels that share the slice `kept`: each nearest to the centre."""
    scale = (kept.stop - kept.start) / count
    return kept.start + np.floor((np.arange(count) + 0.5) * scale).astype(np.int64)


def shrink(colour):
    """Resample a uint8 (h, w, 3) picture to `SIZE` by a triangular window; float32 in [0, 1]."""
    from PIL import Image as Pictures

    picture = Pictures.fromarray(np.ascontiguousarray(colour))
    resized = picture.resize(SIZE[::-1], Pictures.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32) / 255


@lru_cache(maxsize=1)
def _labelled(raw):
    """The official file, opened once a process."""
    import h5py

    path = Path(raw) / MAT_FILES[0]
    try:
        data = h5py.File(path, "r", rdcc_nbytes=64 << 20)
    except OSError as error:
        raise SimoError(f"{path} is no complete MATLAB 7.3 file ({error}): download it again") from error
    shapes = {"images": (3, 640, 480), "labels": (640, 480), "depths": (640, 480), "rawDepths": (640, 480)}
    shapes = {name: (len(data.get("images", ())), *shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        found = data[name].shape if name in data else None
        if found != shape or not shape[0]:
            raise SimoError(f"{path}: expected {name} of shape {shape}, found {found}: download it again")
    return data


@lru_cache(maxsize=1)
def _cached_table(raw):
    return class_table(Path(raw))


def _text(data, reference):
    """A MATLAB string behind a reference: UTF-16 code units in a column."""
    return "".join(map(chr, data[reference][()].ravel()))


def _loadmat(path):
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(path)
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError) as error:
        raise SimoError(f"{path} is no MATLAB 5 file ({error}): download it again") from error


def _variable(variables, name, path):
    if name not in variables:
        known = sorted(key for key in variables if not key.startswith("__"))
        raise SimoError(f"{path}: expected a variable {name!r}, found {known}: take the official file")
    return variables[name]
