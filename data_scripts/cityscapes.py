"""Cityscapes: from the official packages to the prepared layout.

Usage
-----
    python -m data_scripts.cityscapes --raw DIR --out DIR [--workers N]
    python -m data_scripts.cityscapes --check --out DIR

`--raw` holds the four packages of `PACKAGES`, each as the zip file it was downloaded as, which is not
extracted, or as the folder that extracting it gives. Images are in the order of their names, by split, city
and file. The official 500 validation images test; of the 2975 for training, 2380 train and 595 validate.

What becomes of a frame of 2048 x 1024, at 256 x 128:

* `image` (uint8): the mean of each block of 8 x 8 pixels, which neither aliases nor moves anything.
* `label_19` (int8): the 19 evaluated classes in their official order; all other ids are -1.
* `part_seg` (int8): see `part_classes`.
* `depth` (float32): disparity, see `scaled_disparity`.

The last three take the source pixel at each target pixel's centre (of the four that touch it, the lower
right), because classes and disparities of different objects have no mean.
"""

import io
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_scripts.archives import open_zip
from data_scripts.commands import main
from data_scripts.layouts import Broken, Field, Image, Layout, RawData
from data_scripts.preparing import committed_splits, fixture_parts, is_fixture
from simo.errors import SimoError
from simo.files import decoding, is_litter

SIZE = (128, 256)
LAYOUT = Layout(
    dataset="cityscapes",
    size=SIZE,
    fields=(
        Field("image", "uint8", 3, 0, 255),
        Field("label_19", "int8", None, -1, 18, classes=19),
        Field("part_seg", "int8", None, 0, 9, classes=10),
        Field("depth", "float32", 1, 0, 1),
    ),
    counts={"train": 2380, "val": 595, "test": 500},
)
OFFICIAL = {"train": 2975, "val": 500}


@dataclass(frozen=True)
class Package:
    """One official download.

    Attributes
    ----------
    archive : str
        Its file.
    size : str
        How large that is, for the reader.
    pattern : str
        Regular expression of the files that are used; its groups are split and name.
    modes : tuple of str
        Pillow's modes of the decoded file.
    """

    archive: str
    size: str
    pattern: str
    modes: tuple


def _files(package, suffix):
    return rf"(?:^|/){package}/(train|val)/[^/]+/([^/]+_\d{{6}}_\d{{6}})_{suffix}$"


PACKAGES = {
    "leftImg8bit": Package(
        "leftImg8bit_trainvaltest.zip", "11 GB", _files("leftImg8bit", r"leftImg8bit\.png"), ("RGB",)
    ),
    "gtFine": Package("gtFine_trainvaltest.zip", "241 MB", _files("gtFine", r"gtFine_labelIds\.png"), ("L",)),
    "gtFinePanopticParts": Package(
        "gtFinePanopticParts_trainval.zip",
        "about 474 MB",
        _files("gtFinePanopticParts[^/]*", r"gtFinePanopticParts\.tif"),
        ("I",),
    ),
    "disparity": Package(
        "disparity_trainvaltest.zip",
        "3.5 GB",
        _files("disparity", r"disparity\.png"),
        ("I;16", "I"),
    ),
}

HOW_TO_GET = """Cityscapes is not fetched by this script, because its terms must be accepted in person:
  1. register (free) at https://www.cityscapes-dataset.com/register/ ; the licence allows non-commercial
     research and teaching, and forbids redistribution;
  2. take these files from https://www.cityscapes-dataset.com/downloads/ :
{files}
  3. put them into one folder, zipped as they are (or extracted), and give it as --raw."""

TRAIN_IDS = {
    7: 0,  # road
    8: 1,  # sidewalk
    11: 2,  # building
    12: 3,  # wall
    13: 4,  # fence
    17: 5,  # pole
    19: 6,  # traffic light
    20: 7,  # traffic sign
    21: 8,  # vegetation
    22: 9,  # terrain
    23: 10,  # sky
    24: 11,  # person
    25: 12,  # rider
    26: 13,  # car
    27: 14,  # truck
    28: 15,  # bus
    31: 16,  # train
    32: 17,  # motorcycle
    33: 18,  # bicycle
}
LAST_ID = 33
HUMANS, VEHICLES = (24, 25), (26, 27, 28)


def open_raw(raw):
    """Locate all files of a raw folder.

    Parameters
    ----------
    raw : Path
        Folder with the four packages, zipped or extracted.

    Returns
    -------
    RawData

    Raises
    ------
    SimoError
        If a package or a file is missing, with what to do.
    """
    how = HOW_TO_GET.format(
        files="\n".join(f"       {package.archive} ({package.size})" for package in PACKAGES.values())
    )
    if not raw.is_dir():
        raise SimoError(f"the raw folder {raw} does not exist.\n{how}")
    extracted = _walk(raw)
    found = {name: _locate(raw, package, extracted) for name, package in PACKAGES.items()}
    for name, package in PACKAGES.items():
        if not found[name]:
            raise SimoError(
                f"{raw} holds neither {package.archive} nor an extracted folder {name} with its files.\n{how}"
            )
    frames = sorted({frame for places in found.values() for frame in places})  # by split, city, file
    missing = [
        f"{split}/{name} in {package}"
        for split, name in frames
        for package in PACKAGES
        if (split, name) not in found[package]
    ]
    counts = {split: sum(1 for frame in frames if frame[0] == split) for split in OFFICIAL}
    fixture = is_fixture(raw)
    if missing or (counts != OFFICIAL and not fixture):
        listed = "".join(f"\n  missing: {place}" for place in missing[:10])
        raise SimoError(
            f"{raw} is incomplete: expected {OFFICIAL} frames of {len(PACKAGES)} files each, found {counts} "
            f"with {len(missing)} files missing{listed}\nDownload or extract the package again."
        )
    images, seen = [], dict.fromkeys(OFFICIAL, 0)
    for split, name in frames:
        source = tuple(found[package][split, name] for package in PACKAGES)
        images.append(Image(split, seen[split], name, source))
        seen[split] += 1
    splits = _fixture_splits(counts) if fixture else committed_splits("cityscapes")
    return RawData(LAYOUT, "official packages", images, splits, convert, fixture=fixture)


def _walk(raw):
    """Relative paths of all files below a folder, in a fixed order."""
    paths = []
    for parent, folders, names in os.walk(raw, followlinks=True):
        folders.sort()
        paths += [(Path(parent) / name).relative_to(raw).as_posix() for name in sorted(names)]
    return [path for path in paths if not is_litter(path)]


def _locate(raw, package, extracted):
    """Return (split, name) to (archive or None, path) of a package's files; the zip file goes first."""
    places = {}
    archive = raw / package.archive
    if archive.is_file():
        for member in open_zip(str(archive)).names:
            if match := re.search(package.pattern, member):
                places[match.groups()] = (str(archive), member)
    for path in extracted:
        if match := re.search(package.pattern, path):
            first = places.setdefault(match.groups(), (None, str(raw / path)))
            if first[0] is None and first[1] != str(raw / path):
                raise SimoError(f"{raw / path} is there twice, also as {first[1]}: remove one of them")
    return places


def _fixture_splits(counts):
    first, rest = fixture_parts(counts["train"], LAYOUT.counts["train"] / OFFICIAL["train"])
    splits = {"train": [f"train/{i}" for i in first], "val": [f"train/{i}" for i in rest]}
    return splits | {"test": [f"val/{i}" for i in range(counts["val"])]}


def convert(image):
    """Decode the four files of a frame, each once, and bring them to `SIZE`.

    Returns
    -------
    dict of str to ndarray
        One array for each field of `LAYOUT`.

    Raises
    ------
    Broken
        If a file cannot be decoded, has another type or size than it should, or an unknown id.
    """
    decoded = [
        _decode(place, package) for place, package in zip(image.source, PACKAGES.values(), strict=True)
    ]
    sizes = [picture.size for picture in decoded]
    if len(set(sizes)) > 1:
        found = ", ".join(
            f"{name} {width} x {height}" for name, (width, height) in zip(PACKAGES, sizes, strict=True)
        )
        raise Broken(f"frame {image.name}: its files differ in size ({found}); extract or download it again")
    picture, labels, uids, disparity = decoded
    from PIL.Image import Resampling

    try:  # reducing_gap makes whole factors one pass, faster and rounded once
        return {
            "image": np.asarray(picture.resize(SIZE[::-1], Resampling.BOX, reducing_gap=1.0)),
            "label_19": train_classes(_at_centres(labels)),
            "part_seg": part_classes(_at_centres(uids)),
            "depth": scaled_disparity(_at_centres(disparity), picture.width)[..., None],
        }
    except Broken as error:
        raise Broken(f"frame {image.name}: {error}") from error


def _decode(place, package):
    """Decode a file `(archive or None, path)`."""
    from PIL import Image as Pillow

    archive, path = place
    where = f"{path} in {archive}" if archive else path
    with decoding(where, "extract or download it again", Broken):
        picture = Pillow.open(io.BytesIO(open_zip(archive).read(path)) if archive else path)
        picture.load()
    if picture.mode not in package.modes:
        raise Broken(f"{where}: expected pixels of type {' or '.join(package.modes)}, found {picture.mode}")
    return picture


def _at_centres(picture):
    """Pixels of a picture at the centres of a grid of `SIZE`."""
    array = np.asarray(picture)
    rows, columns = (_centres(n, size) for n, size in zip(array.shape, SIZE, strict=True))
    return array[rows[:, None], columns]


@lru_cache
def _centres(source, target):
    """Index of the source pixel at the centre of each of `target` pixels; the next one on a boundary."""
    return (2 * np.arange(target) + 1) * source // (2 * target)


def train_classes(ids):
    """Label ids, `(H, W)`, to the 19 evaluated classes, int8, other ids to -1.

    Numbers and order are those of the Cityscapes scripts (`labels.py`, column trainId).

    Raises
    ------
    Broken
        For an id that Cityscapes does not have.
    """
    table = np.full(LAST_ID + 1, -1, dtype=np.int8)
    table[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
    if ids.max() > LAST_ID:
        raise Broken(f"unknown label id {ids.max()}: expected 0 to {LAST_ID}")
    return table[ids]


def part_classes(uids):
    """Panoptic-parts uids, `(H, W)` int32, to 10 part classes, int8.

    A uid is, in decimal digits, the class (sid) alone, sid and three digits of the instance, or these and
    two digits of the part. People and riders have parts 1 torso, 2 head, 3 arms, 4 legs; cars, trucks and
    buses have, 1 to 5 in the file, 5 windows, 6 wheels, 7 lights, 8 licence plate, 9 chassis. All else is 0,
    background: other classes, and people and vehicles whose parts are not annotated. Nothing is ignored.
    Part 5 of people, an artefact in about ten files of which the data set's notes warn, counts as not
    annotated. (Source: Panoptic Parts, label format and notes on version 2.0 of Cityscapes Panoptic Parts.)

    Raises
    ------
    Broken
        For a uid that the format does not have.
    """
    with_part = uids > 99_999
    sids = np.where(with_part, uids // 100_000, np.where(uids > 99, uids // 1000, uids))
    parts = np.where(with_part, uids % 100, 0)
    human, vehicle = np.isin(sids, HUMANS), np.isin(sids, VEHICLES)
    unknown = (uids < 0) | ((uids > 99) & (uids < 1000)) | (sids > LAST_ID)
    unknown |= (parts > 5) | ((parts > 0) & ~human & ~vehicle)
    if unknown.any():
        raise Broken(f"unknown panoptic-parts uid {uids[unknown][0]}")
    classes = np.where(human & (parts < 5), parts, 0) + np.where(vehicle & (parts > 0), parts + 4, 0)
    return classes.astype(np.int8)


def scaled_disparity(stored, width):
    """Disparity as the tasks use it, from the stored 16-bit numbers.

    A stored p > 0 means (p - 1) / 256 pixels, 0 that there is none (Cityscapes scripts, README). The result
    is the disparity in pixels of an image 2048 wide, divided by 256, so (p - 1) / 65536 for official files.
    This scale is inferred: errors of about 0.01, as in the paper, come out with it, and no source states it.
    (auto-lambda has (p - 1) / 1024, pixels at a width of 512, and errors of about 0.8.) Where p is 1, the
    result is 0 and thus no ground truth.

    Parameters
    ----------
    stored : ndarray
        `(H, W)`, 0 to 65535.
    width : int
        Width in pixels of the image that the disparity was measured in.

    Returns
    -------
    ndarray
        `(H, W)` float32, 0 where there is no ground truth.
    """
    values = np.maximum(stored.astype(np.float32) - 1, 0)
    return values * np.float32(2048 / width / 65536)


if __name__ == "__main__":
    sys.exit(main(LAYOUT, open_raw, __doc__))
