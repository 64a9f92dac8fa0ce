"""Prepare Taskonomy's five tasks on NYUv2's photographs: not Taskonomy's pictures, but its targets of these.

Usage
-----
    python -m data_scripts.five_tasks --raw DIR --out DIR [--workers N]
    python -m data_scripts.five_tasks --check --out DIR

`--raw` is NYUv2 as `data_scripts.nyuv2` prepared it: images, order, size and splits are its. So are depth and
normals, on Taskonomy's scales; texture edges and 2D keypoints are computed from the picture by the
definitions of `data_scripts.cues`, and the autoencoder's target is the picture.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_scripts import nyuv2, taskonomy
from data_scripts.commands import main
from data_scripts.cues import as_taskonomy
from data_scripts.layouts import Broken, Image, RawData
from simo.datasets import SPLITS, read_prepared, read_split
from simo.errors import SimoError
from simo.files import decoding

FIELDS = ("image", "depth", "normal")  # what is read of NYUv2
LAYOUT = replace(
    taskonomy.LAYOUT,
    size=nyuv2.LAYOUT.size,
    fields=tuple(field for field in taskonomy.LAYOUT.fields if field.name != taskonomy.SEMANTIC),
    counts=nyuv2.LAYOUT.counts,
    may_drop=False,
)


def open_five(raw):
    """Locate the arrays of the prepared NYUv2.

    Parameters
    ----------
    raw : str or Path
        Its folder.

    Returns
    -------
    RawData

    Raises
    ------
    SimoError
        If it is not prepared to the end, or is another data set.
    """
    raw, made = Path(raw), read_prepared(raw)
    if made.get("dataset") != "nyuv2":
        raise SimoError(
            f"{raw} holds {made.get('dataset')!r}: expected nyuv2, as data_scripts.nyuv2 prepares it"
        )
    splits = {split: read_split(raw, split) for split in SPLITS}
    names = sorted((name.split("/") for name in sum(splits.values(), [])), key=lambda n: (n[0], int(n[1])))
    images = [Image(folder, int(i), f"{folder}/{i}", str(raw)) for folder, i in names]
    counts = {split: len(members) for split, members in splits.items()}
    layout = replace(LAYOUT, size=tuple(made["image_size"]), counts=counts)
    source = f"{made['source']} of NYUv2"
    return RawData(layout, source, images, splits, convert, {"from": made["sha256"]}, made["fixture"])


def convert(image):
    """Arrays of an image, from those of the prepared NYUv2; `Broken` if one cannot be read."""
    scene = {}
    for name in FIELDS:
        path = Path(image.source) / image.folder / name / f"{image.index}.npy"
        with decoding(path, "prepare NYUv2 again", Broken):
            scene[name] = np.load(path, allow_pickle=False)
    with decoding(image.name, "prepare NYUv2 again", Broken):
        return as_taskonomy(scene)


if __name__ == "__main__":
    sys.exit(main(LAYOUT, open_five, __doc__))
