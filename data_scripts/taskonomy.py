"""Prepare the paper's part of Taskonomy from the folders that omnitools downloads.

Usage
-----
    python -m data_scripts.taskonomy --raw DIR --out DIR [--workers N]
    python -m data_scripts.taskonomy --check --out DIR

`--raw` holds `<domain>/taskonomy/<building>/point_<p>_view_<v>_domain_<domain>.png`, as omnitools leaves
them, or the same without the level `taskonomy/`. The files of domain `segment_semantic` end in
`_domain_segmentsemantic.png`, those of `mask_valid` in `_domain_depth_zbuffer.png`. Of each of the 16
buildings in `splits/taskonomy/buildings.txt` the first 2000 (train) or 1000 (val, test) views are taken,
sorted by the name of their picture.

Pictures of 512 x 512 become 256 x 256: values by the mean of 2 x 2 pixels, which is what bilinear resampling
gives for a factor of 2, classes by the pixel nearest to the new one's centre. A pixel is valid if all that it
was made of are. What is stored, as fixed-point fractions (`data_scripts.preparing`), in the ranges of the
paper's code:

- `image`, `normal`: the 8-bit values; the loader maps them to [-1, 1].
- `depth_zbuffer`: log(1 + d) / log(2^16) of the 16-bit value d, whose unit is 1/512 m.
- `edge_texture`, `keypoints2d`: the 16-bit value, clipped at 11041 and 3129, over that limit.
- `segment_semantic`, if the raw folder has it: classes 1 (background) to 17; 0, "uncertain" (README of the
  data set), becomes -1, which is ignored.
- `mask_valid`: 1 where the scanned building has a surface. Without a folder of masks: where the depth is
  neither 0 nor 65535, its largest value, which stands for none.

Every file is read to its end and its checksums are verified; a view that lacks a file, or of which one is
broken, is left out and listed in `dropped.txt`. Damage that was reported in public (EPFL-VILAB/omnidata
issues 3, 5 and 7, StanfordVL/taskonomy issue 72) is in none of the paper's buildings.
"""

import io
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from data_scripts.commands import main
from data_scripts.cues import fraction
from data_scripts.layouts import Broken, Field, Image, Layout, RawData
from data_scripts.preparing import is_fixture
from simo.errors import SimoError
from simo.files import decoding, listed

SIZE = (256, 256)
EDGE_LIMIT, KEYPOINT_LIMIT, NO_DEPTH = 11041, 3129, 65535

SEMANTIC = "segment_semantic"
LAYOUT = Layout(
    "taskonomy",
    SIZE,
    (
        Field("image", "uint8", 3, 0, 255),
        Field("depth_zbuffer", "uint16", 1, 0, 65535),
        Field("normal", "uint8", 3, 0, 255),
        Field("edge_texture", "uint16", 1, 0, 65535),
        Field("keypoints2d", "uint16", 1, 0, 65535),
        Field("mask_valid", "uint8", 1, 0, 1),
        Field(SEMANTIC, "int8", None, -1, 17, 18, optional=True),
    ),
    {"train": 16000, "val": 4000, "test": 4000},
    may_drop=True,
)

# Domain of the raw data to the end of its files' names, and what a pixel of them is.
FILES = {
    "rgb": ("rgb", "uint8", 3),
    "depth_zbuffer": ("depth_zbuffer", "uint16", 1),
    "normal": ("normal", "uint8", 3),
    "edge_texture": ("edge_texture", "uint16", 1),
    "keypoints2d": ("keypoints2d", "uint16", 1),
    "mask_valid": ("depth_zbuffer", "uint8", 1),
    SEMANTIC: ("segmentsemantic", "uint8", 1),
}
OPTIONAL = ("mask_valid", SEMANTIC)

INSTRUCTIONS = """Taskonomy is free for non-commercial research and education and may not be passed on in any
form. There is no account: omnitools shows the licence (https://github.com/StanfordVL/taskonomy) and asks for
consent, name and e-mail; this project never does that for you.
    pip install omnidata-tools          (and aria2, from the system's packages)
    omnitools.download rgb depth_zbuffer normal edge_texture keypoints2d mask_valid segment_semantic \\
        --components taskonomy --subset tiny --dest RAW
The subset `tiny` has 35 buildings, among them the 16 of the paper; the others may be deleted. Their size is
not published; all 537 buildings with all domains have 11.16 TB, from which we estimate some hundred GB for
these domains of `tiny`. mask_valid and segment_semantic may be left out."""


def read_buildings():
    """The paper's buildings, from the committed list: (split, building, number of views at most) in order."""
    path = Path(__file__).parent / "splits" / "taskonomy" / "buildings.txt"
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [(split, building, int(most)) for split, building, most in rows]


def open_taskonomy(raw):
    """Locate the views of the paper's buildings.

    Parameters
    ----------
    raw : str or Path
        Folder with the domains.

    Returns
    -------
    RawData
        Images are numbered within their split in the planned order, also where some will be dropped.

    Raises
    ------
    SimoError
        If a building, or a part of its views, is missing, with how to get it.
    """
    raw = Path(raw)
    fixture = is_fixture(raw)
    domains = [domain for domain in FILES if domain not in OPTIONAL or (raw / domain).is_dir()]
    images, splits = [], {}
    for split, building, most in read_buildings():
        folders = {domain: _folder(raw, domain, building) for domain in domains}
        views = _views(folders["rgb"])
        if not views or (len(views) < most and not fixture):
            raise SimoError(
                f"{folders['rgb']} holds {len(views)} of at least {most} views: the download is not "
                f"complete.\n{INSTRUCTIONS}"
            )
        members = splits.setdefault(split, [])
        for view in views[:most]:
            image = Image(split, len(members), f"{building}/{view}", (str(raw), tuple(domains)))
            images.append(image)
            members.append(image.id)
    fields = tuple(field for field in LAYOUT.fields if not field.optional or field.name in domains)
    return RawData(
        replace(LAYOUT, fields=fields), "omnidata", images, splits, convert, {"domains": domains}, fixture
    )


def _folder(raw, domain, building):
    """Where a building's files of a domain are; SimoError if nowhere."""
    for folder in (raw / domain / "taskonomy" / building, raw / domain / building):
        if folder.is_dir():
            return folder
    raise SimoError(f"{raw / domain} has no folder taskonomy/{building} or {building}.\n{INSTRUCTIONS}")


def _views(folder):
    """Names `point_<p>_view_<v>` of a building in the order of their pictures' names."""
    suffix = "_domain_rgb.png"
    return [name[: -len(suffix)] for name in (path.name for path in listed(folder, f"point_*{suffix}"))]


def convert(image):
    """Arrays of one view.

    Parameters
    ----------
    image : Image
        Its `name` is `<building>/<view>`, its `source` the raw folder and the domains that it has.

    Returns
    -------
    dict of str to ndarray
        The fields of `LAYOUT`, and `segment_semantic` if the raw data have it.

    Raises
    ------
    Broken
        If a file is missing or damaged, or is not what its domain must be.
    """
    raw, domains = image.source
    building, _, view = image.name.partition("/")
    read = partial(_read, Path(raw), building, view)
    files = {domain: read(domain) for domain in domains}
    depth = files["depth_zbuffer"]
    measured = files["mask_valid"] if "mask_valid" in files else (depth != 0) & (depth != NO_DEPTH)
    arrays = {
        "image": np.round(halve(files["rgb"])).astype(np.uint8),
        "depth_zbuffer": fraction(np.log1p(halve(depth)) / np.log(2.0**16), np.uint16),
        "normal": np.round(halve(files["normal"])).astype(np.uint8),
        "edge_texture": fraction(np.minimum(halve(files["edge_texture"]) / EDGE_LIMIT, 1), np.uint16),
        "keypoints2d": fraction(np.minimum(halve(files["keypoints2d"]) / KEYPOINT_LIMIT, 1), np.uint16),
        "mask_valid": (halve(measured != 0) == 1).astype(np.uint8),
    }
    if SEMANTIC in files:
        classes = files[SEMANTIC][1::2, 1::2, 0]
        if classes.max() > 17:
            raise Broken(f"{SEMANTIC}: expected classes 0 to 17, found {classes.max()}")
        arrays[SEMANTIC] = np.where(classes == 0, -1, classes).astype(np.int8)
    return arrays


def halve(values):
    """Mean of every 2 x 2 pixels of an array (2 H, 2 W, C) of unsigned integers; float64 (H, W, C)."""
    corners = (values[y::2, x::2].astype(np.uint32) for y in (0, 1) for x in (0, 1))
    return sum(corners) / 4


def _read(raw, building, view, domain):
    """Pixels (512, 512, C) of a file, each byte of which was verified."""
    from PIL import Image as Pictures

    end, dtype, channels = FILES[domain]
    path = _folder(raw, domain, building) / f"{view}_domain_{end}.png"
    with decoding(f"{domain}: {path.name}", kind=Broken):
        content = path.read_bytes()
        # Pillow stops decoding at the last row and skips the checksums of pixel data: `verify` reads them.
        with Pictures.open(io.BytesIO(content), formats=["PNG"]) as picture:
            picture.verify()
        with Pictures.open(io.BytesIO(content), formats=["PNG"]) as picture:
            pixels = np.asarray(picture)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    expected = (2 * SIZE[0], 2 * SIZE[1], channels)
    if f"{pixels.dtype} {pixels.shape}" != f"{dtype} {expected}":
        raise Broken(f"{domain}: expected {dtype} {expected}, found {pixels.dtype} {pixels.shape}")
    return pixels


if __name__ == "__main__":
    sys.exit(main(LAYOUT, open_taskonomy, __doc__))
