"""Time preparing Cityscapes against decoding its files alone.

Usage
-----
    python -m benchmarks.prepare_cityscapes [--frames 1000] [--workers N] [--zipped] [--folder DIR]

Writes made-up frames at the official size and in the official formats, about 2.7 MB each, decodes their four
files with Pillow and nothing else, then prepares them, both with the same number of processes; prints both
times and the ratio, which should be at most 1.5. Both times the files are likely in the page cache.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from data_scripts.archives import open_zip
from data_scripts.cityscapes import PACKAGES, open_raw
from data_scripts.fixtures import draw_street, encode_street, mark_fixture, write_zip
from data_scripts.preparing import in_parallel, prepare
from simo.files import atomic_path

SIZE = (1024, 2048)
DISTINCT = 4  # frames that are drawn; the others are copies of their files
TARGET = 1.5


def write_frames(raw, frames, zipped):
    """Write `frames` frames, a sixth of them (at least one) for validation, as official packages."""
    random = np.random.default_rng(0)
    drawn = [encode_street(draw_street(random, SIZE)) for _ in range(DISTINCT)]
    members = {package: {} for package in PACKAGES}
    for index, frame in enumerate(islice(cycle(drawn), frames)):
        stem = "val/lindau/lindau" if index < max(1, frames // 6) else "train/aachen/aachen"
        for package, (suffix, content) in frame.items():
            members[package][f"{package}/{stem}_{index:06d}_000019{suffix}"] = content
    for package, files in members.items():
        if zipped:
            write_zip(raw / PACKAGES[package].archive, files)
            continue
        for name, content in files.items():
            with atomic_path(raw / name) as temporary:
                temporary.write_bytes(content)


def decode(image):
    """Decode the four files of a frame into arrays, and do nothing with them."""
    from PIL import Image

    for archive, path in image.source:
        with Image.open(io.BytesIO(open_zip(archive).read(path)) if archive else path) as picture:
            np.asarray(picture)


def measure(folder, frames, workers, zipped):
    """Write, decode and prepare; return elapsed seconds and processor seconds of the last two."""
    raw = mark_fixture(folder / "raw")  # made-up frames, and not the official number of them
    write_frames(raw, frames, zipped)
    opened = open_raw(raw)

    def decode_all():
        for _ in in_parallel(decode, opened.images, workers):
            continue

    return timed(decode_all), timed(lambda: prepare(opened, folder / "prepared", workers))


def timed(function):
    """Return elapsed seconds, and processor seconds of this process and its children that ended."""
    start, before = time.perf_counter(), os.times()
    function()
    return time.perf_counter() - start, sum(os.times()[:4]) - sum(before[:4])


def main(arguments=None):
    """Run the command line; the exit status is 1 if the ratio is above the target."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=1000, help="frames to prepare (default 1000)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--zipped", action="store_true", help="leave the packages zipped")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args(arguments)
    if options.frames < 3:
        parser.error("--frames must be at least 3")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        decoding, preparing = measure(Path(folder), options.frames, options.workers, options.zipped)
    packages = "zip files" if options.zipped else "folders"
    print(f"{options.frames} frames, {options.workers} workers, {packages}")
    for name, (elapsed, busy) in {"decoding alone": decoding, "preparing": preparing}.items():
        print(f"  {name:15} {elapsed:6.1f} s, {busy:6.1f} processor s, {busy / elapsed:.2f} cores")
    ratio, busy_ratio = (after / before for before, after in zip(decoding, preparing, strict=True))
    print(f"  ratio           {ratio:6.2f} (target {TARGET}), of processor time {busy_ratio:.2f}")
    return int(ratio > TARGET)


if __name__ == "__main__":
    sys.exit(main())
