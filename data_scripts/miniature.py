"""Write the miniature: rendered scenes in the layout of a prepared dataset.

Usage
-----
    python -m data_scripts.miniature nyuv2 --out DIR [--size 64 64] [--train 800] [--val 256] [--test 300]
    python -m data_scripts.miniature preview --out picture.png [--count 8]

A run that is interrupted continues where it stopped when the same command is given again; a folder that is
complete (it holds `prepared.json`) is left alone. Heavy imports are late, so that this answer is immediate.
"""

import argparse
import hashlib
import os
import re
import shutil
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from data_scripts import RENDERER
from simo.errors import SimoError
from simo.files import atomic_path, read_json, write_json

FIELDS = ("image", "label", "depth", "normal")
BYTES_PER_PIXEL = 12 + 8 + 4 + 12
SPLIT_SEED = 42  # the paper's, for its split of the official test images
_FOLDERS = ("train", "val", "pretraining", "preview")
_SEED_LIMIT = 2**29


def scene_seed(dataset_seed, folder, index):
    """Return the seed of a scene: a number that no other dataset seed, folder or index gives.

    The 63 bits are, from the top, 29 for the dataset's seed, 2 for the folder and 32 for the index.

    Parameters
    ----------
    dataset_seed : int
        In [0, 2**29).
    folder : str
        'train', 'val', 'pretraining' or 'preview'.
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
        raise SimoError(f"seed {dataset_seed} must be in [0, 2**29) and scene {index} in [0, 2**32)")
    return (dataset_seed * len(_FOLDERS) + _FOLDERS.index(folder)) * 2**32 + index


def write_nyuv2(out, size=(64, 64), train=800, val=256, test=300, seed=0, workers=None, replace=False):
    """Write rendered rooms in the prepared NYUv2 layout, or what an earlier run left to write.

    `out` receives `train/{image,label,depth,normal}/<i>.npy` and `val/...`, where, as in the community's
    release of NYUv2, `val` holds the official test images; `splits/{train,val,test}.txt` say which of them
    validate and which test. `request.json` is written first, `prepared.json` last.

    Parameters
    ----------
    out : str or Path
        The folder, new or begun by the same request.
    size : tuple of int
        Height and width.
    train, val, test : int
        Number of scenes.
    seed : int
        Seed of the dataset, in [0, 2**29).
    workers : int, optional
        Processes; by default one for each processor. The result does not depend on it.
    replace : bool
        Delete what another request of this command rendered into `out`, instead of refusing.

    Returns
    -------
    dict
        The contents of `prepared.json`.
    """
    out = Path(out)
    workers = workers or os.cpu_count() or 1
    counts = {"train": train, "val": val, "test": test}
    if min(train, val, test, workers) < 1 or min(size) < 8:
        raise SimoError(
            f"expected at least one scene a split, one worker and 8 x 8 pixels, found {counts}, "
            f"{workers} workers and {size[0]} x {size[1]} pixels"
        )
    request = {"dataset": "nyuv2", "source": "rendered", "image_size": list(size), "splits": counts}
    request |= {"seed": seed, "renderer": RENDERER}
    jobs = [("train", index) for index in range(train)] + [("val", index) for index in range(val + test)]
    scene_seed(seed, "train", len(jobs))  # refuses a seed out of range before anything is written
    _claim(out, request, replace)
    missing = _missing(out, jobs)
    prepared = out / "prepared.json"
    if not missing and prepared.exists():
        print(f"{out} is complete already: {len(jobs)} scenes")
        return read_json(prepared)
    prepared.unlink(missing_ok=True)
    _check_disk(out, len(missing), size)
    _write_splits(out, train, val, test)
    _write_scenes(out, missing, size, seed, workers, total=len(jobs))
    record = request | {"sha256": content_hash(out, jobs)}
    write_json(prepared, record)
    print(f"{out} is complete: {len(jobs)} scenes")
    return record


def content_hash(out, jobs):
    """Return the SHA-256 over the scenes' files, sorted by relative path, each path before its bytes."""
    digest = hashlib.sha256()
    for path in sorted(f"{folder}/{field}/{index}.npy" for folder, index in jobs for field in FIELDS):
        digest.update(path.encode() + b"\0")
        digest.update((out / path).read_bytes())
    return digest.hexdigest()


def _claim(out, request, replace):
    """Write `request.json` into a new folder; refuse, or empty, a folder that holds something else."""
    marker = out / "request.json"
    if replace and marker.exists() and read_json(marker) != request:
        shutil.rmtree(out)
    if out.exists() and not out.is_dir():
        raise SimoError(f"{out} is a file; give --out a folder")
    if marker.exists():
        found = read_json(marker)
        if found != request:
            differing = [key for key in request if found.get(key) != request[key]]
            what = "; ".join(f"{key} {found.get(key)} there, {request[key]} asked for" for key in differing)
            raise SimoError(
                f"{out} was begun by another request ({what}): give --out another folder, or delete this one"
            )
        for stray in out.glob("*/*/.*.npy"):  # half-written when an earlier run was killed
            if re.fullmatch(r"\.\d+\.\d+\.npy", stray.name):
                stray.unlink()
        return
    # A run killed while it wrote the marker leaves the marker's temporary file, which is nobody's.
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    foreign = [name for name in names if not name.startswith(".request.")]
    if foreign:
        raise SimoError(
            f"{out} holds {foreign[0]!r} and no request.json of this command: expected a new or empty "
            "folder; give --out another one, or delete this one"
        )
    write_json(marker, request)


def _missing(out, jobs):
    """Return the jobs of which at least one file is not there."""
    there = {}
    for folder in ("train", "val"):
        places = [out / folder / field for field in FIELDS]
        there[folder] = set.intersection(*(set(os.listdir(at)) if at.is_dir() else set() for at in places))
    return [(folder, index) for folder, index in jobs if f"{index}.npy" not in there[folder]]


def _check_disk(out, scenes, size):
    # 128 bytes of header a file, and half a block of 4 kB lost at the end of each.
    needed = scenes * (size[0] * size[1] * BYTES_PER_PIXEL + len(FIELDS) * (128 + 2048))
    free = shutil.disk_usage(out).free
    if needed > free:
        raise SimoError(
            f"{out}: {scenes} scenes of {size[0]} x {size[1]} need {needed / 1e6:.0f} MB, the disk has "
            f"{free / 1e6:.0f} MB free: free some space, ask for less, or choose another --out"
        )


def _write_splits(out, train, val, test):
    """Split the official test images as the paper does: the first `val` of a seeded permutation validate."""
    import torch

    order = torch.randperm(val + test, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    splits = {
        "train": [f"train/{index}" for index in range(train)],
        "val": [f"val/{index}" for index in sorted(order[:val])],
        "test": [f"val/{index}" for index in sorted(order[val:])],
    }
    for name, lines in splits.items():
        with atomic_path(out / "splits" / f"{name}.txt") as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_scenes(out, jobs, size, seed, workers, total):
    from tqdm import tqdm

    work = [(out, folder, index, size, seed) for folder, index in jobs]
    bar = tqdm(total=total, initial=total - len(jobs), desc="rendering rooms", unit="scene")
    with bar:
        if workers == 1 or len(work) < 2:
            for scene in work:
                _write_scene(scene)
                bar.update()
            return
        from data_scripts.rooms import render_room

        render_room(0, 8, 8)  # compiles the kernel into its cache once, for all workers
        workers = min(workers, len(work))
        try:
            # Spawned, not forked: a fork of a process that has used torch's threads may hang.
            with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker) as pool:
                for _ in pool.map(_write_scene, work, chunksize=4):
                    bar.update()
        except BrokenProcessPool as error:
            raise SimoError(
                f"a worker process died while writing {out}, perhaps for want of memory: "
                "give the same command again to continue, with fewer --workers"
            ) from error


def _start_worker():
    """Leave Ctrl-C to the parent and the processors to the other workers, and end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["NUMBA_NUM_THREADS"] = "1"
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent():
    """Without this, the workers of a parent that was killed would wait for work for ever."""
    parent_process().join()
    os._exit(1)


def _write_scene(scene):
    from data_scripts.rooms import render_room

    out, folder, index, size, seed = scene
    arrays = render_room(scene_seed(seed, folder, index), *size)
    for field in FIELDS:
        with atomic_path(out / folder / field / f"{index}.npy") as temporary:
            np.save(temporary, arrays[field])


def draw_preview(out, count=8, size=(64, 64), seed=0):
    """Draw scenes as columns of image, classes, inverse depth and normals.

    Parameters
    ----------
    out : str or Path
        The picture's file; its suffix chooses the format.
    count : int
        Number of scenes.
    size : tuple of int
        Height and width of each picture.
    seed : int
        Seed of the dataset.
    """
    from PIL import Image

    from data_scripts.rooms import CLASSES, render_room

    hues = np.arange(len(CLASSES)) * 5 % len(CLASSES) / len(CLASSES)
    palette = 0.55 + 0.4 * np.cos(2 * np.pi * (hues[:, None] + np.array([0.0, 1 / 3, 2 / 3])))
    palette *= np.where(np.arange(len(CLASSES)) % 2, 1.0, 0.7)[:, None]
    columns = []
    for index in range(count):
        scene = render_room(scene_seed(seed, "preview", index), *size)
        inverse = 1.0 / scene["depth"]
        rows = [
            scene["image"],
            palette[scene["label"]],
            np.repeat(inverse / inverse.max(), 3, axis=2),
            (scene["normal"] + 1.0) / 2.0,
        ]
        columns.append(np.concatenate(rows))
    sheet = Image.fromarray((np.concatenate(columns, axis=1) * 255).round().astype(np.uint8))
    enlarge = max(1, 128 // size[0])
    sheet = sheet.resize((sheet.width * enlarge, sheet.height * enlarge), Image.Resampling.NEAREST)
    try:
        with atomic_path(out) as temporary:
            sheet.save(temporary)
    except ValueError as error:
        raise SimoError(f"cannot draw {out}: {error}; a name that ends in .png always works") from error


def main(arguments=None):
    """Run the command line; return its exit status."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m data_scripts.miniature", description=about)
    commands = parser.add_subparsers(dest="command", required=True)
    nyuv2 = commands.add_parser("nyuv2", help="write rooms in the prepared NYUv2 layout")
    preview = commands.add_parser("preview", help="draw some rooms as one picture")
    for command in (nyuv2, preview):
        command.add_argument("--out", type=Path, required=True, help="folder, or picture, to write")
        command.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("H", "W"), help="pixels")
        command.add_argument("--seed", type=int, default=0, help="seed of the dataset")
    for name, count in (("train", 800), ("val", 256), ("test", 300)):
        nyuv2.add_argument(f"--{name}", type=int, default=count, help=f"scenes (default {count})")
    nyuv2.add_argument(
        "--replace", action="store_true", help="delete another request's rendering in --out first"
    )
    nyuv2.add_argument("--workers", type=int, help="processes (default: one a processor)")
    preview.add_argument("--count", type=int, default=8, help="scenes (default 8)")
    options = vars(parser.parse_args(arguments))
    options["size"] = tuple(options["size"])
    run = {"nyuv2": write_nyuv2, "preview": draw_preview}[options.pop("command")]
    try:
        run(**options)
    except SimoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: give the same command again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
