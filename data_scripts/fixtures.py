"""Write tiny made-up raw data in the genuine formats, for tests and for the rehearsal of the paper profile.

Usage
-----
    python -m data_scripts.fixtures OUT [--datasets NAME ...]

writes OUT/<data set> for each data set. Every folder receives a file FIXTURE.txt, and whatever is prepared or
computed from it is marked by it: no number from made-up data can be mistaken for a result.
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from data_scripts.commands import exit_status
from data_scripts.preparing import is_fixture
from simo.errors import SimoError
from simo.files import atomic_path, is_litter

NOTE = "Made-up test data in the format of the real ones. No number computed from them is a result.\n"

# Cityscapes from top to bottom: sky, building, vegetation, sidewalk, road, and an id that is not evaluated
_BANDS = ((23, 0.25), (11, 0.42), (21, 0.5), (8, 0.58), (7, 0.94), (1, 1.0))
_HUMAN = ((2, 0.2), (1, 0.5), (3, 0.6), (4, 1.0))  # parts and where they end: head, torso, arms, legs
_VEHICLE = ((1, 0.35), (5, 0.6), (3, 0.7), (4, 0.75), (2, 1.0))  # windows, chassis, lights, plate, wheels
_CITIES = {"train": ("aachen", "bochum"), "val": ("frankfurt", "lindau"), "test": ("berlin",)}


def mark_fixture(raw):
    """Write FIXTURE.txt into a raw folder, creating it; return its Path. SimoError if real data are there."""
    raw = Path(raw)
    if not is_fixture(raw) and raw.is_dir() and not all(is_litter(path.name) for path in raw.iterdir()):
        raise SimoError(f"{raw} holds data that are not made up: give another folder, or an empty one")
    with atomic_path(raw / "FIXTURE.txt") as temporary:
        temporary.write_text(NOTE, encoding="utf-8")
    return raw


def smooth_noise(random, size, cells=4):
    """Noise in [0, 1] whose scale is `1 / cells` of the image.

    Parameters
    ----------
    random : numpy.random.Generator
        The only source of randomness.
    size : (int, int)
        Height and width.
    cells : int
        Random values along each axis, between which the noise is bilinear.

    Returns
    -------
    ndarray
        `(H, W)` float32.
    """
    from PIL import Image

    corners = Image.fromarray(random.random((cells, cells), dtype=np.float32))
    return np.asarray(corners.resize(size[::-1], Image.Resampling.BILINEAR))


def draw_street(random, size):
    """Draw one frame in the encodings of Cityscapes, without writing it.

    Parameters
    ----------
    random : numpy.random.Generator
        The only source of randomness.
    size : (int, int)
        Height and width.

    Returns
    -------
    dict of str to ndarray
        `leftImg8bit` `(H, W, 3)` uint8, `gtFine` `(H, W)` uint8 label ids, `gtFinePanopticParts` `(H, W)`
        int32 uids, `disparity` `(H, W)` uint16, 0 invalid, else 256 times pixels of this width, plus 1.
    """
    height, width = size
    uids = np.zeros(size, dtype=np.int32)
    top = 0
    for sid, end in _BANDS:
        uids[int(top * height) : int(end * height)] = sid
        top = end
    places = random.permutation(6)  # side by side, so that every frame has every part
    for iid, sid in enumerate((24, 25, 26, 27, 28, 26)):
        parts = _HUMAN if sid < 26 else _VEHICLE
        y, x = random.uniform(0.4, 0.6) * height, (0.02 + 0.16 * places[iid]) * width
        h, w = random.uniform(0.25, 0.35) * height, (0.05 if sid < 26 else 0.15) * width
        uids[int(y) : int(y + h), int(x) : int(x + w)] = sid * 1000 + iid  # labelled as a whole: the margin
        start = 0.05
        for part, end in parts if iid < 5 else ():  # the last car has no parts
            rows = slice(int(y + start * h), int(y + 0.95 * end * h))
            uids[rows, int(x + 0.1 * w) : int(x + 0.9 * w)] = (sid * 1000 + iid) * 100 + part
            start = 0.95 * end
    label = np.where(uids > 99_999, uids // 100_000, np.where(uids > 99, uids // 1000, uids)).astype(np.uint8)
    colour = np.stack([(label * factor) % 192 for factor in (37, 91, 151)], axis=-1)
    noise = np.stack([smooth_noise(random, size, 8) for _ in range(3)], axis=-1)
    grain = random.integers(0, 4, (*size, 3), dtype=np.uint8)
    near = np.linspace(0, 1, height)[:, None] ** 2 * 0.9 + 0.1 * smooth_noise(random, size)
    disparity = (near * 0.06 * width * 256 + 1).astype(np.uint16)
    disparity[smooth_noise(random, size, 6) > 0.8] = 0
    disparity[:, : width // 20] = 0  # what the right camera does not see
    return {
        "leftImg8bit": (colour + 60 * noise + grain).astype(np.uint8),
        "gtFine": label,
        "gtFinePanopticParts": uids,
        "disparity": disparity,
    }


def encode_street(frame):
    """Encode a frame of `draw_street` as Cityscapes does: package to (end of the file's name, bytes)."""
    from PIL import Image

    formats = {
        "leftImg8bit": ("_leftImg8bit.png", "PNG", {}),
        "gtFine": ("_gtFine_labelIds.png", "PNG", {}),
        "gtFinePanopticParts": ("_gtFinePanopticParts.tif", "TIFF", {"compression": "tiff_lzw"}),
        "disparity": ("_disparity.png", "PNG", {}),
    }
    files = {}
    for package, (suffix, name, options) in formats.items():
        buffer = io.BytesIO()
        Image.fromarray(frame[package]).save(buffer, name, **options)
        files[package] = (suffix, buffer.getvalue())
    return files


def write_cityscapes(raw, train=4, val=2, size=(256, 512), zipped=True, seed=0):
    """Write street scenes in the four official packages of Cityscapes.

    As in those, there is also a test image, which has no parts; nobody should read it.

    Parameters
    ----------
    raw : str or Path
        The folder; files of these names are replaced.
    train, val : int
        Number of frames; at least 2 in `train`, of which one validates.
    size : (int, int)
        Height and width, where the real ones have 1024 and 2048.
    zipped : bool or set of str
        Whether the packages are zip files or folders; a set names the packages that are zip files.
    seed : int
        Seed of the content.
    """
    from data_scripts.cityscapes import PACKAGES

    raw = mark_fixture(raw)
    random = np.random.default_rng(seed)
    if zipped is True or zipped is False:
        zipped = set(PACKAGES) if zipped else set()
    members = {package: {} for package in PACKAGES}
    for split, count in {"train": train, "val": val, "test": 1}.items():
        for index in range(count):
            cities = _CITIES[split]
            city = cities[index * len(cities) // count]
            stem = f"{split}/{city}/{city}_{index:06d}_000019"
            for package, (suffix, content) in encode_street(draw_street(random, size)).items():
                if split != "test" or package != "gtFinePanopticParts":
                    members[package][f"{package}/{stem}{suffix}"] = content
    for package, files in members.items():
        if package in zipped:
            write_zip(raw / PACKAGES[package].archive, files)
        else:
            for name, content in files.items():
                with atomic_path(raw / name) as temporary:
                    temporary.write_bytes(content)


def write_zip(path, members):
    """Write a zip file with a deflated member for each name in a dict of bytes."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# NYUv2 and Taskonomy


def draw_room(random, size):
    """Draw one indoor frame, smooth and without meaning, whose normals are those of its relief.

    Parameters
    ----------
    random : numpy.random.Generator
        The only source of randomness.
    size : (int, int)
        Height and width.

    Returns
    -------
    dict of str to ndarray
        `image` (H, W, 3) float32 in [0, 1]; `label` (H, W) int64 from -1 to 12; `depth` (H, W, 1) float32
        metres, 0 in a corner; `normal` (H, W, 3) float32 unit vectors, 0 in the same corner.
    """
    relief = smooth_noise(random, size, 6)
    down, across = np.gradient(relief * 40)
    normal = np.stack([-across, down, np.ones(size)], axis=-1).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    depth = (1.5 + 4 * relief)[..., None]
    corner = np.s_[: size[0] // 8, : size[1] // 8]
    depth[corner], normal[corner] = 0, 0
    label = np.floor(smooth_noise(random, size, 5) * 13.99).astype(np.int64) - 1
    image = 0.7 * np.stack([smooth_noise(random, size, 8) for _ in range(3)], axis=-1)
    image += 0.3 * (label[..., None] + 1) / 13
    return {"image": image, "label": label, "depth": depth, "normal": normal}


def write_nyuv2_mat(raw, train=4, val=3, seed=0):
    """Write the official labelled file, its splits and the mappings to 13 classes.

    The first is a MATLAB 7.3 file: HDF5 behind MATLAB's own header, arrays transposed, strings behind
    references. Numbers of training and test images alternate, as far as they go. Label n is class
    n modulo 40 of the 40 classes, and that modulo 13 of the 13, so that label 41 m is class m - 1 of ours.

    Parameters
    ----------
    raw : str or Path
        The folder.
    train, val : int
        Number of images, 480 x 640 as all of NYUv2; at least 2 in `val`, of which one tests.
    seed : int
        Seed of the content.
    """
    import h5py
    from scipy.io import savemat

    raw, random = mark_fixture(raw), np.random.default_rng(seed)
    frames = [draw_room(random, (480, 640)) for _ in range(train + val)]
    depth = np.stack([frame["depth"][..., 0].T for frame in frames])
    arrays = {
        "images": np.stack([np.round(frame["image"] * 255).astype(np.uint8).T for frame in frames]),
        "depths": np.where(depth == 0, np.float32(3), depth),
        "rawDepths": depth,
        "labels": np.stack([((frame["label"] + 1) * 41).astype(np.uint16).T for frame in frames]),
    }
    texts = {"names": [f"thing {i}" for i in range(894)]}
    texts["rawRgbFilenames"] = [f"room_0001/r-{i}.000000-{i}.ppm" for i in range(train + val)]
    with atomic_path(raw / "nyu_depth_v2_labeled.mat") as temporary:
        with h5py.File(temporary, "w", userblock_size=512) as file:
            for name, values in arrays.items():
                file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), compression=1)
            for name, strings in texts.items():
                letters = [np.array([[ord(letter)] for letter in text], np.uint16) for text in strings]
                stored = [file.create_dataset(f"#refs#/{name}{i}", data=x) for i, x in enumerate(letters)]
                file.create_dataset(name, data=[[item.ref for item in stored]], dtype=h5py.ref_dtype)
        with open(temporary, "r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file, made up".ljust(116) + bytes(8) + b"\x00\x02IM")
    write_nyuv2_lists(raw, train, val)
    savemat(raw / "classMapping40.mat", {"mapClass": np.arange(894)[None] % 40 + 1})


def write_nyuv2_lists(raw, train, val):
    """`splits.mat` and `class13Mapping.mat`."""
    from scipy.io import savemat

    order = np.argsort(np.arange(train + val) % 2, kind="stable") + 1
    savemat(raw / "splits.mat", {"trainNdxs": order[:train, None], "testNdxs": order[train:, None]})
    mapping = {"labels": np.arange(40)[None] % 13 + 1, "classNames": np.array(list("bbccffopsttww"), object)}
    savemat(raw / "class13Mapping.mat", {"classMapping13": mapping})


def write_taskonomy(raw, views=2, optional=("mask_valid", "segment_semantic"), seed=0):
    """Write views of the paper's 16 buildings in the folders of omnitools.

    Parameters
    ----------
    raw : str or Path
        The folder.
    views : int
        Number of views a building; their points are 9, 10, 11 and so on, of which 9 is the last by name.
    optional : sequence of str
        Which of the domains that may be left out to write.
    seed : int
        Seed of the content.
    """
    from PIL import Image

    from data_scripts.taskonomy import FILES, OPTIONAL, read_buildings

    raw, random = mark_fixture(raw), np.random.default_rng(seed)
    domains = [domain for domain in FILES if domain not in OPTIONAL or domain in optional]
    for _, building, _ in read_buildings():
        for view in range(views):
            pictures = _draw_view(random)
            for domain in domains:
                name = f"point_{9 + view}_view_0_domain_{FILES[domain][0]}.png"
                with atomic_path(raw / domain / "taskonomy" / building / name) as temporary:
                    Image.fromarray(pictures[domain]).save(temporary, compress_level=1)


def _draw_view(random, size=(512, 512)):
    """One view in the encodings of Taskonomy, by domain."""
    room = draw_room(random, size)
    depth = room["depth"][..., 0]
    return {
        "rgb": np.round(room["image"] * 255).astype(np.uint8),
        "depth_zbuffer": np.where(depth == 0, 65535, depth * 512).astype(np.uint16),
        "normal": np.round(room["normal"] * 127 + 127).astype(np.uint8),
        "edge_texture": (smooth_noise(random, size, 12) * 13000).astype(np.uint16),
        "keypoints2d": (smooth_noise(random, size, 12) * 4000).astype(np.uint16),
        "mask_valid": (depth > 0).astype(np.uint8) * 255,
        "segment_semantic": (room["label"] + 1).astype(np.uint8),
    }


# The official file stands for NYUv2: of its four sources, its way is the longest.
WRITERS = {"nyuv2": write_nyuv2_mat, "cityscapes": write_cityscapes, "taskonomy": write_taskonomy}


def write_raw(out, datasets):
    """Write the raw data of the data sets named into a folder of that name each."""
    for name in datasets:
        WRITERS[name](out / name)
        print(f"{out / name}: made-up raw data")


def main(arguments=None):
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.fixtures", description=__doc__.split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder that receives a folder for each data set")
    parser.add_argument("--datasets", nargs="+", choices=WRITERS, default=list(WRITERS), metavar="NAME")
    options = parser.parse_args(arguments)
    return exit_status(write_raw, options.out, options.datasets)


if __name__ == "__main__":
    sys.exit(main())
