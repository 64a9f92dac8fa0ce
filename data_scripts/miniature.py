"""Write the miniature: rendered scenes in the prepared layout of a data set.

Usage
-----
    python -m data_scripts.miniature nyuv2 --out DIR [--size 64 64] [--train 800] [--val 256] [--test 300]
    python -m data_scripts.miniature preview cityscapes --out picture.png [--count 8]

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
from simo.files import atomic_path, read_json, reason

LAYOUTS = {
    layout.dataset: changed(layout, fields=tuple(f for f in layout.fields if not f.optional))
    for layout in (nyuv2.LAYOUT, cityscapes.LAYOUT, taskonomy.LAYOUT)
}
SIZES = {"nyuv2": (64, 64), "cityscapes": (48, 96), "taskonomy": (64, 64)}
COUNTS = {"train": 800, "val": 256, "test": 300}
_FOLDERS = ("train", "val", "pretraining", "preview", "test")
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
        Delete what another request of this command, or other code, rendered into `out`, instead of refusing.

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
    marker = out / "request.json"
    if replace and marker.exists():
        found = read_json(marker)
        if found["source"] == "rendered" and (found["image_size"], found["options"]) != ([*size], options):
            shutil.rmtree(out)
    if not (out / "prepared.json").exists():
        raw.convert(Image("preview", 0, "", 0))  # compiles the kernel into its cache once, for all workers
    try:
        return prepare(raw, out, workers)
    except Unlike:
        if not replace:
            raise
        shutil.rmtree(out)
        return prepare(raw, out, workers)


def draw_preview(dataset, out, count=8, size=None, seed=0):
    """Draw scenes as columns: the image, then each of the data set's fields.

    Parameters
    ----------
    dataset : str
        A key of `LAYOUTS`.
    out : str or Path
        The picture's file; its suffix chooses the format.
    count : int
        Number of scenes.
    size : tuple of int, optional
        Height and width of each picture.
    seed : int
        Seed of the data set.
    """
    from PIL import Image as Picture

    size = tuple(size or SIZES[dataset])
    columns = []
    for index in range(count):
        arrays = convert(dataset, size, Image("preview", index, "", scene_seed(seed, "preview", index)))
        columns.append(np.concatenate([_coloured(f, arrays[f.name]) for f in LAYOUTS[dataset].fields]))
    sheet = Picture.fromarray((np.concatenate(columns, axis=1) * 255).round().astype(np.uint8))
    enlarge = max(1, 128 // size[0])
    sheet = sheet.resize((sheet.width * enlarge, sheet.height * enlarge), Picture.Resampling.NEAREST)
    try:
        with atomic_path(out) as temporary:
            sheet.save(temporary)
    except ValueError as error:
        raise SimoError(
            f"cannot draw {out}: {reason(error)}; a name that ends in .png always works"
        ) from error


def _coloured(field, array):
    """An array as a picture (H, W, 3) in [0, 1]: classes by hue, single values in grey."""
    if field.channels is None:
        hues = (array[..., None] * 0.381966 + np.array([0.0, 1 / 3, 2 / 3])) * 2 * np.pi
        return (0.55 + 0.4 * np.cos(hues)) * np.where(array % 2, 1.0, 0.7)[..., None]
    values = array / np.iinfo(array.dtype).max if array.dtype.kind == "u" else array
    if field.channels == 1:
        return np.repeat(values / values.max(), 3, axis=2)
    return (values + 1) / 2 if values.min() < 0 else values


def main(arguments=None):
    """Run the command line; return its exit status."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m data_scripts.miniature", description=about)
    commands = parser.add_subparsers(dest="command", required=True)
    datasets = {name: commands.add_parser(name, help=f"render {name}") for name in LAYOUTS}
    preview = commands.add_parser("preview", help="draw some scenes as one picture")
    preview.add_argument("dataset", choices=LAYOUTS)
    preview.add_argument("--count", type=int, default=8, help="scenes (default 8)")
    for command in (*datasets.values(), preview):
        command.add_argument("--out", type=Path, required=True, help="folder, or picture, to write")
        command.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels")
        command.add_argument("--seed", type=int, default=0, help="seed of the data set")
    for command in datasets.values():
        for name, count in COUNTS.items():
            command.add_argument(f"--{name}", type=int, default=count, help=f"scenes (default {count})")
        command.add_argument("--replace", action="store_true", help="delete what another request rendered")
        command.add_argument("--workers", type=int, help="processes (default: one a processor)")
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    if command == "preview":
        return exit_status(draw_preview, **options)
    return exit_status(write, command, **options)


if __name__ == "__main__":
    sys.exit(main())
