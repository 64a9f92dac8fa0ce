"""Prepare NYUv2 from the community's arrays, their Hugging Face copy, the official file, or pictures of it.

Usage
-----
    python -m data_scripts.nyuv2 --raw DIR --out DIR [--workers N] [--download] [--source S]
        [--size H W]
    python -m data_scripts.nyuv2 --check --out DIR

`--raw` holds one of four sources; which one is found out.

npy
    The folder that the repositories of auto-lambda and MTAN release: `train|val/{image,label,depth,normal}/
    <i>.npy`, 288 x 384. Numbers are kept.
parquet
    The copy `tanganke/nyuv2` on the Hugging Face Hub; `--download` fetches it. Rows are numbered in the order
    of the shards; whether that is the order of the arrays above is not known.
mat
    The official `nyu_depth_v2_labeled.mat` with its `splits.mat` and the mapping to 13 classes, see
    `data_scripts.nyuv2_official`. Images are numbered in the order of the official list.
pictures
    A public copy of the official file as JPEG and PNG, with depth in steps of 3.9 cm, see
    `data_scripts.nyuv2_pictures`. Numbered like `mat`, which is better where it can be had.

The first two are the same arrays, but how they were made was never published, and their normals are another
estimate than ours from the others: compare numbers only between models of the same source, which
`prepared.json` names. Normals are copied in the frame in which they come (only x, which is mirrored with the
image, matters to training); ours is x right, y up, z towards the viewer.

`--size` is the height and width of all arrays, 288 x 384 if not given: images are resampled with
antialiasing, labels, depth and normals take the nearest pixel. It can only make them smaller than the source.
`prepared.json` names it, and a folder that was begun at another size is refused.

In all four, folder `val` is the official test set of 654 images, which the paper parts into 400 for
validation and 254 for test by a permutation with seed 42.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from data_scripts.commands import main
from data_scripts.layouts import Broken, Field, Image, Layout, RawData
from data_scripts.nyuv2_official import CROP, MAT_FILES, nearest, open_mat, read_labelled, shrink
from data_scripts.nyuv2_parquet import (
    DOWNLOAD_BYTES,
    REPOSITORY,
    REVISION,
    download,
    list_rows,
    read_row,
    shards,
)
from data_scripts.nyuv2_pictures import open_pictures, read_pictures
from data_scripts.preparing import committed_splits, fixture_parts, is_fixture
from simo.errors import SimoError, require
from simo.files import decoding, listed, read_object
from simo.tasks import NYUV2_CLASSES

LAYOUT = Layout(
    "nyuv2",
    (288, 384),
    (
        Field("image", "float32", 3, 0, 1),
        Field("label", "int8", None, -1, len(NYUV2_CLASSES) - 1, len(NYUV2_CLASSES)),
        Field("depth", "float32", 1, 0, 20),  # twice the sensor's range; millimetres would show
        Field("normal", "float32", 3, -1, 1),
    ),
    {"train": 795, "val": 400, "test": 254},
)
COUNTS = {"train": 795, "val": 654}  # of the folders

INSTRUCTIONS = f"""Put one of these into --raw:
(a) npy: the folder with train/ and val/ that https://github.com/lorenmt/auto-lambda links to (Dropbox
    sh/86nssgwm6hm3vkb, about 9 GB), extracted. No registration; research use, as of the original data.
(b) parquet: the 14 shards of https://huggingface.co/datasets/{REPOSITORY}, revision {REVISION[:7]},
    {DOWNLOAD_BYTES / 1e9:.2f} GB. No registration; research use, as of the original data.
    `python -m data_scripts.nyuv2 --download --raw DIR --out DIR` fetches them.
(c) mat: nyu_depth_v2_labeled.mat (about 2.8 GB) from
    https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html, splits.mat from
    http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat, and classMapping40.mat and
    class13Mapping.mat (a few kB) from https://github.com/ankurhanda/nyuv2-meta-data. No registration; the
    terms of use are those of that page; cite Silberman et al., ECCV 2012.
(d) pictures: nyu_images/, nyu_depths/ and nyu_labels40/ of https://github.com/markshih91/refinenet_pytorch
    (commit 109cc25), nyu_labels/ of its older commit 7b76047, and splits.mat and class13Mapping.mat of
    https://github.com/ankurhanda/nyuv2-meta-data. That repository names no licence; the data set's own page
    asks for research use and citation (Silberman et al., ECCV 2012). (c) is better, take it if you can:
    here depth is known to 3.9 cm only, and where it was measured is not known.
--size H W makes the arrays of any of them smaller than 288 x 384."""


# Finding the source


def open_nyuv2(raw, fetch=False, source=None, size=None):
    """Locate the raw data of NYUv2.

    Parameters
    ----------
    raw : str or Path
        The folder.
    fetch : bool
        Fetch the Hugging Face copy into it first.
    source : str, optional
        A key of `SOURCES`; needed only where the folder holds more than one.
    size : (int, int), optional
        Height and width of the arrays; 288 x 384 if not given.

    Returns
    -------
    RawData

    Raises
    ------
    SimoError
        If no source, several, or an incomplete one is there, with where to get what is missing; if the size
        is larger than the source's.
    """
    raw, layout = Path(raw), replace(LAYOUT, size=tuple(size or LAYOUT.size))
    if fetch:
        download(raw)
    found = _sources(raw)
    if source is None and len(found) > 1:
        raise SimoError(f"{raw} holds several sources of NYUv2 ({', '.join(found)}): choose one by --source")
    source = source or (found[0] if found else None)
    if source not in found:
        what = "none of the sources of NYUv2" if source is None else f"no source {source!r} of NYUv2"
        raise SimoError(f"{raw} holds {what}.\n{INSTRUCTIONS}")
    open_source, convert, largest = SOURCES[source]
    if not all(8 <= asked <= there for asked, there in zip(layout.size, largest, strict=True)):
        raise SimoError(
            f"--size: expected from 8 x 8 to {largest[0]} x {largest[1]} pixels, which {source} has, found "
            f"{layout.size[0]} x {layout.size[1]}"
        )
    images, options = open_source(raw), {}
    if source == "parquet":
        known = raw / "revision.json"
        options = {"revision": read_object(known).get("revision") if known.is_file() else None}
    fixture = is_fixture(raw)
    counts = {folder: sum(image.folder == folder for image in images) for folder in COUNTS}
    if not fixture and counts != COUNTS:
        raise SimoError(f"{raw}: expected {COUNTS} images ({source}), found {counts}.\n{INSTRUCTIONS}")
    splits = _fixture_splits(**counts) if fixture else committed_splits("nyuv2")
    return RawData(layout, source, images, splits, partial(convert, size=layout.size), options, fixture)


def _sources(raw):
    """Names of the sources of which at least a part is in the folder."""
    found = {
        "npy": (raw / "train" / "image").is_dir() or (raw / "val" / "image").is_dir(),
        "parquet": bool(shards(raw, "train") or shards(raw, "val")),
        "mat": (raw / MAT_FILES[0]).is_file(),
        "pictures": (raw / "nyu_images").is_dir(),
    }
    return [name for name, there in found.items() if there]


def _fixture_splits(train, val):
    """The rule of the paper at the size of a fixture: the same shares, at least one image each."""
    require("the number of made-up images in train", train, train >= 1, "at least 1")
    parts = fixture_parts(val, LAYOUT.counts["val"] / COUNTS["val"])
    return {"train": [f"train/{i}" for i in range(train)]} | {
        name: [f"val/{i}" for i in part] for name, part in zip(("val", "test"), parts, strict=True)
    }


def tidy(name, image, label, depth, normal):
    """Bring the arrays of one image to the types of the prepared layout.

    Parameters
    ----------
    name : str
        The image's name, for messages.
    image : ndarray
        (H, W, 3), values in [0, 1].
    label : ndarray
        (H, W) whole numbers of any type: 0 to 12, -1 not labelled.
    depth : ndarray
        (H, W) or (H, W, 1), metres; 0 not measured.
    normal : ndarray
        (H, W, 3); vectors of any length become unit vectors, zero vectors stay.

    Returns
    -------
    dict of str to ndarray
        The fields of `LAYOUT`.

    Raises
    ------
    Broken
        If a label is not a whole number in the range of int8, or an array is none of numbers or of its form.
    """
    with decoding(name, kind=Broken):
        whole = label.astype(np.int8)
        if not np.array_equal(whole, label):
            raise Broken(f"{name}: expected whole numbers from -1 to 12 as labels, found others")
        normal = normal.astype(np.float64)
        length = np.linalg.norm(normal, axis=-1, keepdims=True)
        normal = np.divide(normal, length, out=np.zeros_like(normal), where=length > 1e-6)
        return {
            "image": image.astype(np.float32),
            "label": whole,
            "depth": depth.astype(np.float32).reshape(*depth.shape[:2], 1),
            "normal": normal.astype(np.float32),
        }


def resized(name, arrays, size):
    """Resample the arrays of one image, of 288 x 384, as `nyuv2_official.cut` does.

    Parameters
    ----------
    name : str
        The image's name, for messages.
    arrays : dict of str to ndarray
        From `tidy`.
    size : (int, int)
        Height and width; at 288 x 384 the arrays are returned as they are.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    Broken
        If an array has another size than 288 x 384.
    """
    for field in LAYOUT.fields:
        problem = field.problem(arrays[field.name], LAYOUT.size)
        if problem:
            raise Broken(f"{name}: {field.name}: {problem}")
    if size == LAYOUT.size:
        return arrays
    at = np.ix_(*(nearest(slice(0, full), count) for full, count in zip(LAYOUT.size, size, strict=True)))
    return {key: shrink(array, size) if key == "image" else array[at] for key, array in arrays.items()}


# (a) the community's arrays


def _open_npy(raw):
    images = []
    for folder in COUNTS:
        numbers = {
            field.name: {path.stem for path in listed(raw / folder / field.name, "*.npy")}
            for field in LAYOUT.fields
        }
        everywhere = {str(i) for i in range(len(numbers["image"]))}
        for name, found in numbers.items():
            lacking = sorted(everywhere - found, key=int) or sorted(found - everywhere)
            if lacking:
                raise SimoError(
                    f"{raw / folder / name}: expected 0.npy to {len(everywhere) - 1}.npy like the images, "
                    f"but {lacking[0]}.npy is {'missing' if lacking[0] in everywhere else 'there too'}.\n"
                    f"{INSTRUCTIONS}"
                )
        images += [Image(folder, i, f"{folder}/{i}.npy", str(raw)) for i in range(len(everywhere))]
    return images


def convert_npy(image, size):
    """Arrays of an image of the community's folder; `Broken` if a file cannot be read."""
    arrays = {}
    for field in LAYOUT.fields:
        path = Path(image.source) / image.folder / field.name / f"{image.index}.npy"
        with decoding(path, kind=Broken):
            arrays[field.name] = np.load(path, allow_pickle=False)
    return resized(image.name, tidy(image.name, **arrays), size)


# (b), (c) and (d)


def _open_parquet(raw):
    return [
        Image(folder, i, f"{Path(path).name}:{row}", (path, row))
        for folder in COUNTS
        for i, (path, row) in enumerate(list_rows(raw, folder))
    ]


def convert_parquet(image, size):
    """Arrays of a row of the Hugging Face copy; `Broken` if it cannot be read."""
    return resized(image.name, tidy(image.name, **read_row(*image.source)), size)


def convert_mat(image, size):
    """Arrays of an image of the official file; `Broken` if it cannot be read."""
    return tidy(image.name, **read_labelled(*image.source, size))


def convert_pictures(image, size):
    """Arrays of an image from four pictures; `Broken` if one cannot be read."""
    return tidy(image.name, **read_pictures(*image.source, size))


_CUT = tuple(kept.stop - kept.start for kept in CROP)

SOURCES = {  # how it is opened and converted, and its own size
    "npy": (_open_npy, convert_npy, LAYOUT.size),
    "parquet": (_open_parquet, convert_parquet, LAYOUT.size),
    "mat": (open_mat, convert_mat, _CUT),
    "pictures": (open_pictures, convert_pictures, _CUT),
}


def _add_options(parser):
    parser.add_argument(
        "--download", dest="fetch", action="store_true", help="fetch the Hugging Face copy (2.97 GB) first"
    )
    parser.add_argument("--source", choices=SOURCES, help="if --raw holds several")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width of the arrays (default 288 384)",
    )


if __name__ == "__main__":
    sys.exit(main(LAYOUT, open_nyuv2, __doc__, add_options=_add_options))
