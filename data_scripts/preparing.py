"""From raw data to the prepared layout: what the scripts of all data sets share.

The script of a data set describes its raw data as a `RawData` and its result as a `Layout`, both of
`layouts.py`; `data_scripts.commands.main` is its command line. A prepared folder holds

    request.json                       what was asked for, written first
    train|val|test/<field>/<i>.npy     one array a file; which folders exist depends on the data set
    splits/{train,val,test}.txt        one `folder/i` a line, ascending
    ids.txt                            `folder/i<TAB>original name` of every image that is there
    dropped.txt                        `original name<TAB>reason` of every image that was left out
    prepared.json                      what is there, with its content hash, written last

Images are uint8 or float in [0, 1]. Unsigned integers are fixed-point fractions: value / 255 for uint8,
value / 65535 for uint16. Class maps are int8, -1 ignored. In value maps a pixel whose channels are all 0
has no ground truth, unless the data set has a field `mask_valid`.

A run that is interrupted continues where it stopped when the same command is given again.
"""

import hashlib
import os
import shutil
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from data_scripts.layouts import Broken
from simo.errors import SimoError
from simo.files import atomic_path, decoding, is_litter, read_object, write_json

SPLIT_SEED = 42  # the paper's
SPLITS = ("train", "val", "test")
SAMPLE = 8  # so many images of a begun folder at most are made again, and compared


class Unlike(SimoError):
    """A prepared folder that today's code, raw data or request would make differently."""


def is_fixture(raw):
    """Whether a raw folder holds made-up test data, which a file FIXTURE.txt says."""
    return (Path(raw) / "FIXTURE.txt").is_file()


def random_parts(count, first):
    """Split `range(count)` as the paper does: the first `first` of torch's permutation with seed 42.

    Returns
    -------
    (list of int, list of int)
        The first and the rest, each ascending.
    """
    import torch

    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    return sorted(order[:first]), sorted(order[first:])


def fixture_parts(count, share):
    """`random_parts` of made-up data: the first `share` of them, at least one on each side.

    Parameters
    ----------
    count : int
        Number of images, at least 2.
    share : float
        Share of the first part in the official data.

    Raises
    ------
    SimoError
        If there are not enough images.
    """
    if count < 2:
        raise SimoError(f"made-up data need at least 2 images to split, found {count}: write more of them")
    return random_parts(count, min(max(round(count * share), 1), count - 1))


def committed_splits(dataset):
    """The splits of the official data, from `data_scripts/splits/<dataset>/`: split to its `folder/i`."""
    folder = Path(__file__).parent / "splits" / dataset
    return {name: (folder / f"{name}.txt").read_text(encoding="utf-8").split() for name in SPLITS}


def prepare(raw, out, workers=None):
    """Convert raw data to the prepared layout, or what an earlier run left to convert.

    Parameters
    ----------
    raw : RawData
        What to convert.
    out : str or Path
        The folder, new or begun by the same request.
    workers : int, optional
        Processes; by default one for each processor. The result does not depend on it.

    Returns
    -------
    dict
        The contents of `prepared.json`.

    Raises
    ------
    SimoError
        If `out` holds something else, the disk is too small, or a file is broken and may not be dropped.
        `Unlike` if today's code, raw data or request would make something else of what is there.
    """
    out, layout = Path(out), raw.layout
    workers = workers or os.cpu_count() or 1
    ids = "".join(f"{image.id}\t{image.name}\n" for image in raw.images)
    request = {"dataset": layout.dataset, "source": raw.source, "fixture": raw.fixture}
    request |= {"image_size": list(layout.size), "fields": [f.name for f in layout.fields]}
    request |= {"options": raw.options}
    request |= {"images": len(raw.images), "ids_sha256": hashlib.sha256(ids.encode()).hexdigest()}
    _claim(out, request)
    missing = _missing(out, raw)
    _check_alike(out, raw, missing)
    prepared = out / "prepared.json"
    if prepared.exists():
        dropped = {line.split("\t")[0] for line in lines_of(out / "dropped.txt")}
        if all(image.name in dropped for image in missing):
            print(f"{out} is complete already: {len(raw.images) - len(missing)} images")
            return read_object(prepared)
        prepared.unlink()
    _check_disk(out, len(missing), layout)
    dropped = _write_images(out, raw, missing, workers)
    _write_lists(out, raw, dropped)
    record = {key: request[key] for key in ("dataset", "source", "fixture", "image_size")}
    record["splits"] = {name: len(lines_of(out / "splits" / f"{name}.txt")) for name in raw.splits}
    record["fields"] = {
        f.name: {"dtype": f.dtype, "shape": list(f.shape(layout.size))} for f in layout.fields
    }
    record |= {"dropped": len(dropped), "sha256": content_hash(out)}
    write_json(prepared, record)
    print(f"{out} is complete: {len(raw.images) - len(dropped)} images, {len(dropped)} dropped")
    return record


def content_hash(out):
    """SHA-256 over splits and arrays, sorted by relative path, each path before its bytes."""
    digest = hashlib.sha256()
    for path in prepared_files(out):
        digest.update(path.encode() + b"\0")
        digest.update((Path(out) / path).read_bytes())
    return digest.hexdigest()


def prepared_files(out):
    """Relative paths of all files in the folders for arrays and splits, sorted."""
    found = []
    for folder in (*SPLITS, "splits"):
        for parent, _, names in os.walk(Path(out) / folder):
            found += [(Path(parent) / name).relative_to(out).as_posix() for name in names]
    return sorted(path for path in found if not is_litter(path))


def _claim(out, request):
    """Write `request.json` into a new folder; refuse a folder that holds something else."""
    marker = out / "request.json"
    if out.exists() and not out.is_dir():
        raise SimoError(f"{out} is a file; give --out a folder")
    if marker.exists():
        found = read_object(marker)
        if found != request:
            differing = [key for key in request | found if found.get(key) != request.get(key)]
            texts = [f"{key} {found.get(key)} there, {request.get(key)} asked for" for key in differing]
            what = "; ".join(texts)
            raise (SimoError if {"dataset", "source"} & {*differing} else Unlike)(
                f"{out} was begun by another request ({what}): give --out another folder, or delete this one"
            )
        return
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    foreign = [name for name in names if not is_litter(name)]
    if foreign:
        raise SimoError(
            f"{out} holds {foreign[0]!r} and no request.json of this command: expected a new or empty "
            "folder; give --out another one, or delete this one"
        )
    write_json(marker, request)


def _missing(out, raw):
    """Return the images of which at least one file is not there."""
    there = {}
    for folder in {image.folder for image in raw.images}:
        places = [out / folder / f.name for f in raw.layout.fields]
        there[folder] = set.intersection(*(set(os.listdir(at)) if at.is_dir() else set() for at in places))
    return [image for image in raw.images if f"{image.index}.npy" not in there[image.folder]]


def _check_alike(out, raw, missing):
    """Refuse what other code, or other raw data, made: a sample of what is there is made again."""
    absent = {image.id for image in missing}
    there = [image for image in raw.images if image.id not in absent]
    for image in there[:: -(-len(there) // SAMPLE) or 1]:
        try:
            arrays = raw.convert(image)
        except Broken:  # since then: the data that were made of it stay
            continue
        for name, array in ((f.name, arrays[f.name]) for f in raw.layout.fields):
            path = out / image.folder / name / f"{image.index}.npy"
            with decoding(path, "delete it, and give the same command again"):
                found = np.load(path)
            if not np.array_equal(found, array, equal_nan=found.dtype.kind == "f"):
                raise Unlike(
                    f"{path} is not what is made of {image.name} today: the code or the raw data have "
                    f"changed since. Give --out another folder, or delete {out}, to prepare all of it again"
                )


def _check_disk(out, images, layout):
    # 128 bytes of header a file, and half a block of 4 kB lost at the end of each.
    sizes = [np.dtype(f.dtype).itemsize * np.prod(f.shape(layout.size)) + 128 + 2048 for f in layout.fields]
    needed, free = images * int(sum(sizes)), shutil.disk_usage(out).free
    if needed > free:
        raise SimoError(
            f"{out}: {images} images need {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB free: "
            "free some space, or choose another --out"
        )


def _write_images(out, raw, images, workers):
    """Convert `images`; return the reasons, by name, for those that were dropped."""
    from tqdm import tqdm

    write = partial(_write_image, out, raw.layout, raw.convert)
    dropped = {}
    bar = tqdm(total=len(raw.images), initial=len(raw.images) - len(images), desc="preparing", unit="image")
    with bar:
        for image, reason in zip(images, in_parallel(write, images, workers), strict=True):
            if reason:
                dropped[image.name] = reason
            bar.update()
    return dropped


def in_parallel(function, work, workers):
    """Yield what `function` returns for each item of `work`, in order, from several processes."""
    if workers == 1 or len(work) < 2:
        yield from map(function, work)
        return
    try:
        # Spawned, not forked: a fork of a process that has used torch's threads may hang.
        context = get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(work)), context, initializer=start_worker) as pool:
            yield from pool.map(function, work, chunksize=max(1, min(4, len(work) // workers)))
    except BrokenProcessPool as error:
        raise SimoError(
            "a worker process died, perhaps for want of memory: "
            "give the same command again to continue, with fewer --workers"
        ) from error


def start_worker():
    """Begin a worker: leave Ctrl-C to the parent, the processors to the others, end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["NUMBA_NUM_THREADS"] = "1"
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent():
    """Without this, the workers of a parent that was killed would wait for work for ever."""
    parent_process().join()
    os._exit(1)


def _write_image(out, layout, convert, image):
    """Write the arrays of one image; return why it was dropped, or None."""
    try:
        arrays = convert(image)
        for f in layout.fields:
            problem = f.problem(arrays[f.name], layout.size)
            if problem:
                raise Broken(f"{image.name}: {f.name}: {problem}")
    except Broken as error:
        if not layout.may_drop:
            raise
        return " ".join(str(error).split())  # one line without tabs
    for f in layout.fields:
        with atomic_path(out / image.folder / f.name / f"{image.index}.npy") as temporary:
            np.save(temporary, arrays[f.name])
    return None


def _write_lists(out, raw, dropped):
    kept = [image for image in raw.images if image.name not in dropped]
    ids = {image.id for image in kept}
    lists = {"ids": [f"{image.id}\t{image.name}" for image in kept]}
    lists["dropped"] = [f"{name}\t{reason}" for name, reason in dropped.items()]
    lists |= {f"splits/{name}": [id for id in members if id in ids] for name, members in raw.splits.items()}
    for name, lines in lists.items():
        with atomic_path(out / f"{name}.txt") as temporary:
            temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def lines_of(path):
    """Lines of a text file; none if it does not exist."""
    with decoding(path, "delete it"):
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
