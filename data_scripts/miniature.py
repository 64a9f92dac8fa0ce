"""Write the miniature: rendered scenes in the prepared layout of a data set.

Usage
-----
    python -m data_scripts.miniature nyuv2 --out DIR [--size 64 64] [--train 800] [--val 256] [--test 300]

NYUv2 and Taskonomy are rendered rooms, Cityscapes rendered streets; fields, types, folders and splits are
those of the real data sets' scripts beside this one. A run that is interrupted continues where it stopped
when the same command is given again.
"""

import argparse
import shutil
import sys
from dataclasses import replace as changed
from functools import partial
from pathlib import Path

import numpy as np

from data_scripts import cityscapes, nyuv2, taskonomy
from data_scripts.commands import exit_status
from data_scripts.cues import as_taskonomy, fraction
from data_scripts.layouts import Image, RawData
from data_scripts.preparing import Unlike, prepare, random_parts
from data_scripts.render import RENDERER, render_room, render_street
from simo.errors import SimoError

LAYOUTS = {
    layout.dataset: changed(layout, fields=tuple(f for f in layout.fields if not f.optional))
    for layout in (nyuv2.LAYOUT, cityscapes.LAYOUT, taskonomy.LAYOUT)
}
SIZES = {"nyuv2": (64, 64), "cityscapes": (48, 96), "taskonomy": (64, 64)}
COUNTS = {"train": 800, "val": 256, "test": 300}
_FOLDERS = ("train", "val", "pretraining", "preview", "test")  # a scene's seed counts them
_SEED_LIMIT = 2**28


def scene_seed(dataset_seed, folder, index):
    """Return the seed of a scene: a number that no other dataset seed, folder or index gives.

    The 63 bits are, from the top, 28 for the dataset's seed, 3 for the folder and 32 for the index.

    Parameters
    ----------
    dataset_seed : int
        In [0, 2**28).
    folder : str
        'train', 'val', 'test', 'pretraining' or 'preview'.
    index : int
        In [0, 2**32).

    Returns
    -------
    int
        In [0, 2**63).
    """
    if folder not in _FOLDERS:
        raise SimoError(f"no scenes belong to folder {folder!r}: expected one of {', '.join(_FOLDERS)}")
    if not 0 <= dataset_seed < _SEED_LIMIT or not 0 <= index < 2**32:
        raise SimoError(f"seed {dataset_seed} must be in [0, 2**28) and scene {index} in [0, 2**32)")
    return (dataset_seed * 8 + _FOLDERS.index(folder)) * 2**32 + index


def plan(dataset, train, val, test):
    """Folders and splits as the real data set has them, for other numbers of images.

    NYUv2's folder `val` is parted into val and test, Cityscapes' `train` into train and val; Taskonomy has a
    folder for each split.

    Returns
    -------
    (dict of str to int, dict of str to list of str)
        Images of each folder; `folder/i` of each split.
    """
    counts = {"train": train, "val": val, "test": test}
    if dataset == "nyuv2":
        folders = {"train": train, "val": val + test}
        parts = dict(zip(("val", "test"), random_parts(val + test, val), strict=True))
        members = {"train": ("train", range(train)), **{name: ("val", part) for name, part in parts.items()}}
    elif dataset == "cityscapes":
        folders = {"train": train + val, "val": test}
        parts = dict(zip(("train", "val"), random_parts(train + val, train), strict=True))
        members = {name: ("train", part) for name, part in parts.items()} | {"test": ("val", range(test))}
    else:
        folders = counts
        members = {name: (name, range(count)) for name, count in counts.items()}
    return folders, {name: [f"{folder}/{i}" for i in part] for name, (folder, part) in members.items()}


def convert(dataset, size, image):
    """Render one scene as the arrays of a data set.

    Parameters
    ----------
    dataset : str
        A key of `LAYOUTS`.
    size : (int, int)
        Height and width.
    image : Image
        Its `source` is the scene's seed.

    Returns
    -------
    dict of str to ndarray
        By field name, as the data set's `LAYOUT` describes.
    """
    if dataset == "cityscapes":
        scene = render_street(image.source, *size)
        return {
            "image": fraction(scene["image"], np.uint8),
            "label_19": scene["label"].astype(np.int8),
            "part_seg": scene["part"].astype(np.int8),
            "depth": scene["disparity"],
        }

    scene = render_room(image.source, *size)
    if dataset == "nyuv2":
        return scene | {"label": scene["label"].astype(np.int8)}
    return as_taskonomy(scene)


def write(dataset, out, size=None, train=800, val=256, test=300, seed=0, workers=None, replace=False):
    """Render a data set, or what an earlier run left to render.

    Parameters
    ----------
    dataset : str
        A key of `LAYOUTS`.
    out : str or Path
        The folder, new or begun by the same request; see `data_scripts.preparing` for what it receives.
    size : (int, int), optional
        Height and width; by default the data set's in `SIZES`.
    train, val, test : int
        Number of scenes.
    seed : int
        Seed of the data set, in [0, 2**28).
    workers : int, optional
        Processes; by default one for each processor. The result does not depend on it.
    replace : bool
        Delete what another request for this data set, or other code, rendered into `out`.

    Returns
    -------
    dict
        The contents of `prepared.json`.
    """
    out, size = Path(out), tuple(size or SIZES[dataset])
    counts = {"train": train, "val": val, "test": test}
    if min(*counts.values(), workers or 1) < 1 or min(size) < 8:
        raise SimoError(
            f"expected at least one scene a split, one worker and 8 x 8 pixels, found {counts}, "
            f"{workers} workers and {size[0]} x {size[1]} pixels"
        )
    folders, splits = plan(dataset, **counts)
    seeds = {(folder, i): scene_seed(seed, folder, i) for folder, n in folders.items() for i in range(n)}
    images = [Image(folder, i, f"scene-{number}", number) for (folder, i), number in seeds.items()]
    layout = changed(LAYOUTS[dataset], size=size, counts=counts)
    options = {**counts, "seed": seed, "renderer": RENDERER}
    raw = RawData(layout, "rendered", images, splits, partial(convert, dataset, size), options)
    preview = Image("preview", 0, "", 0)  # compiles the kernel into its cache once, for all workers
    if not (out / "prepared.json").exists():
        raw.convert(preview)
    try:
        return prepare(raw, out, workers)
    except Unlike:
        if not replace:
            raise
        shutil.rmtree(out)
        raw.convert(preview)
        return prepare(raw, out, workers)


def main(arguments=None):
    """Run the command line; return its exit status."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m data_scripts.miniature", description=about)
    parser.add_argument("dataset", choices=LAYOUTS)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set")
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"scenes (default {count})")
    parser.add_argument(
        "--replace", action="store_true", help="delete what another request for this data set rendered"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one a processor)")
    return exit_status(write, **vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
