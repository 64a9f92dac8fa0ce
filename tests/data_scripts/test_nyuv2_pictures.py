"""data_scripts.nyuv2_pictures: mirrored back, 13 classes, depth within its step; sizes of every source."""

import shutil

import numpy as np
import pytest
from PIL import Image as Pictures
from writers import write_nyuv2_npy, write_nyuv2_pictures

from data_scripts.commands import main
from data_scripts.fixtures import write_nyuv2_mat
from data_scripts.layouts import Broken
from data_scripts.nyuv2 import LAYOUT, _add_options, open_nyuv2
from data_scripts.nyuv2_official import thirteen_classes
from data_scripts.nyuv2_pictures import STEP, classes, dequantise, open_pictures, read_pictures
from simo.errors import SimoError
from simo.files import read_json

SMALL = (144, 192)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The same images as pictures and as the official file; tests only read them."""
    root = tmp_path_factory.mktemp("raw")
    write_nyuv2_pictures(root / "pictures", train=2, val=3)
    write_nyuv2_mat(root / "mat", train=2, val=3)
    return root


@pytest.fixture
def copy(raw, tmp_path):
    """A copy of the pictures that a test may damage."""
    return shutil.copytree(raw / "pictures", tmp_path / "copy")


def test_same_images_as_from_the_official_file(raw):
    """Protects mirroring, crop, classes and order: each image is the one that the official file gives."""
    before, seen = sorted(raw.rglob("*")), set()
    ours, official = (open_nyuv2(raw / name, size=SMALL) for name in ("pictures", "mat"))
    assert [image.id for image in ours.images] == [image.id for image in official.images]
    assert ours.splits == official.splits
    for first, second in zip(ours.images, official.images, strict=True):
        assert first.name[:4] == second.name[:4]  # the official number
        found, expected = ours.convert(first), official.convert(second)
        np.testing.assert_array_equal(found["label"], expected["label"])
        seen |= set(np.unique(found["label"]))
        assert np.abs(found["depth"] - expected["depth"]).max() < 1.001 * STEP
        assert np.abs(found["image"] - expected["image"]).mean() < 0.02  # JPEG
        both = found["normal"].any(-1) & expected["normal"].any(-1)
        angle = np.arccos(np.clip((found["normal"] * expected["normal"]).sum(-1)[both], -1, 1))
        assert np.degrees(np.median(angle)) < 5
    assert seen == set(range(-1, 13))
    assert sorted(raw.rglob("*")) == before  # nothing is written into raw


def test_left_is_left(copy):
    """Protects the camera's frame: a mark at the left of a mirrored picture comes out at the right."""
    for folder, mode, mark in (("nyu_depths", "L", 200), ("nyu_labels40", "L", 4), ("nyu_labels", "L", 7)):
        array = np.full((480, 640), 50 if folder == "nyu_depths" else 0, np.uint8)
        array[100:400, 60:300] = mark
        Pictures.fromarray(array, mode).save(copy / folder / "0.png")
    colour = np.zeros((480, 640, 3), np.uint8)
    colour[100:400, 60:300] = 255
    Pictures.fromarray(colour).save(copy / "nyu_images" / "0.jpg")
    arrays = read_pictures(str(copy), 0, (420, 560))
    rows, columns = np.mgrid[47:467, 40:600]
    inside = (rows >= 100) & (rows < 400) & (columns >= 340) & (columns < 580)  # 639 - 299 to 639 - 60
    np.testing.assert_array_equal(arrays["label"] == 4, inside)
    np.testing.assert_allclose(arrays["depth"], np.where(inside, 200 * STEP, 50 * STEP), rtol=1e-6)
    np.testing.assert_allclose(arrays["image"], np.repeat(inside[..., None], 3, 2), atol=0.2)
    assert (arrays["normal"][np.s_[200:300, 100:200]] @ [0, 0, 1] > 0.999).all()


def test_classes_by_hand():
    """Protects the 13 classes: counted from 0, and 39 is a class of its own only where the fine label is."""
    table = np.zeros(40, np.int64)
    table[[0, 5, 39]] = 12, 13, 7
    label40, label = np.array([[0, 5, 7, 39, 39]], np.uint8), np.array([[21, 0, 3, 0, 200]], np.uint8)
    found = classes(label40, label, table)
    assert found.dtype == np.int8
    assert found.tolist() == [[11, 12, -1, -1, 6]]


def test_mapping_must_have_40_classes(copy, raw):
    """Protects the labels from another mapping: it is refused by name."""
    assert thirteen_classes(raw / "mat").tolist() == [i % 13 + 1 for i in range(40)]
    shutil.copy(copy / "splits.mat", copy / "class13Mapping.mat")
    with pytest.raises(SimoError, match=r"class13Mapping\.mat: expected a variable 'classMapping13'"):
        open_pictures(copy)


# Depth within its step


def test_depth_never_leaves_its_step():
    """Protects what was measured: whatever the values, half a step is the most that smoothing moves them."""
    random = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(60), np.arange(80)) / 9 + 20
    for values in (random.integers(0, 256, (60, 80)), smooth, smooth + random.integers(0, 3, (60, 80))):
        values = values.astype(np.uint8)
        depth = dequantise(values)
        assert depth.dtype == np.float32
        assert np.abs(depth - values * STEP).max() <= STEP / 2 + 1e-6
        np.testing.assert_array_equal(depth == 0, values == 0)


def test_jumps_stay_sharp():
    """Protects edges: three steps between neighbours stay three, two are drawn together by one at most."""
    for jump, left, right in ((3, 60, 63), (2, 60.5, 61.5)):
        values = np.full((40, 60), 60, np.uint8)
        values[:, 30:] = 60 + jump
        depth = dequantise(values)
        assert (depth[:, 29] <= left * STEP + 1e-6).all()
        assert (depth[:, 30] >= right * STEP - 1e-6).all()
        if jump == 3:
            np.testing.assert_allclose(depth, values * STEP, rtol=1e-6)


def test_planes_become_straight():
    """Protects walls and floors: of a slanted plane in steps, a tenth of the error is left in the middle."""
    inverse = 0.4 + 4e-4 * np.arange(200)[None, :] + 2e-4 * np.arange(150)[:, None]
    values = np.round(1 / inverse / STEP)
    error = np.abs(dequantise(values.astype(np.uint8)) - 1 / inverse)[20:-20, 20:-20]
    assert error.mean() < 0.1 * np.abs(values * STEP - 1 / inverse)[20:-20, 20:-20].mean()


# Files that cannot be used


def test_missing_pictures_are_named(copy):
    """Protects from targets of another image: what is missing is named and counted before it is read."""
    (copy / "nyu_labels40" / "3.png").unlink()
    with pytest.raises(SimoError, match=r"holds no nyu_labels40/3\.png: .*refinenet_pytorch"):
        open_nyuv2(copy)
    shutil.rmtree(copy / "nyu_depths")
    with pytest.raises(SimoError, match=r"holds no nyu_depths/0\.png nor 5 more"):
        open_nyuv2(copy)
    (copy / "splits.mat").unlink()
    with pytest.raises(SimoError, match=r"holds no splits\.mat: .*nyuv2-meta-data"):
        open_nyuv2(copy)


def test_pictures_of_other_numbers_are_refused(copy):
    """Protects results on part of the data: unless it is a fixture, the official counts must be there."""
    (copy / "FIXTURE.txt").unlink()
    with pytest.raises(SimoError, match=r"expected \{'train': 795, 'val': 654\} images \(pictures\)"):
        open_nyuv2(copy)


@pytest.mark.parametrize(
    ("name", "array", "found"),
    [
        ("nyu_depths/0.png", np.zeros((240, 320), np.uint8), "480 x 640 L, found 240 x 320 L"),
        ("nyu_labels/0.png", np.zeros((481, 640), np.uint8), "480 x 640 L, found 481 x 640 L"),
        ("nyu_depths/0.png", np.zeros((480, 640), np.uint16), "480 x 640 L, found 480 x 640 I;16"),
        ("nyu_images/0.jpg", np.zeros((480, 640), np.uint8), "480 x 640 RGB, found 480 x 640 L"),
        ("nyu_labels40/0.png", np.full((480, 640), 40, np.uint8), "classes from 0 to 39, found 40"),
    ],
)
def test_other_pictures_are_named(copy, name, array, found):
    """Protects registration and units: another size, type or class is refused by the file's name."""
    Pictures.fromarray(array).save(copy / name)
    with pytest.raises(Broken, match=f"{name}: expected {found}: download it again"):
        read_pictures(str(copy), 0, SMALL)


@pytest.mark.parametrize("name", ["nyu_images/0.jpg", "nyu_depths/0.png"])
def test_damaged_pictures_are_named(copy, name):
    """Protects from half a download: a truncated picture is named."""
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(Broken, match=f"{name} cannot be decoded"):
        read_pictures(str(copy), 0, SMALL)


# The size


@pytest.mark.parametrize("source", ["pictures", "mat"])
def test_smaller_arrays_are_the_same_scene(raw, source):
    """Protects `--size`: a fifth takes every fifth pixel's targets; normals are those of full resolution."""
    full, fifth = (open_nyuv2(raw / source, size=size) for size in ((420, 560), (84, 112)))
    large, small = (each.convert(each.images[0]) for each in (full, fifth))
    for field in ("label", "depth", "normal"):
        np.testing.assert_array_equal(small[field], large[field][2::5, 2::5])
    assert small["image"].shape == (84, 112, 3)


def test_arrays_are_resampled_like_the_official_file(tmp_path):
    """Protects `--size` of the community's arrays: targets of the nearest pixel, image by the triangle."""
    write_nyuv2_npy(tmp_path / "npy", train=1, val=2)
    full, half = open_nyuv2(tmp_path / "npy"), open_nyuv2(tmp_path / "npy", size=SMALL)
    large, small = (each.convert(each.images[0]) for each in (full, half))
    for field in ("label", "depth", "normal"):
        np.testing.assert_array_equal(small[field], large[field][1::2, 1::2])
    weights, taps = (0.125, 0.375, 0.375, 0.125), np.arange(19, 23)  # centred between pixels 20 and 21
    expected = np.einsum("i,j,ijc->c", weights, weights, large["image"][np.ix_(taps, taps)])
    np.testing.assert_allclose(small["image"][10, 10], expected, atol=1e-5)


def test_size_is_recorded_and_never_mixed(raw, tmp_path, capsys):
    """Protects results from two sizes in one folder: it is named, checked, and another one is refused."""
    command = ["--raw", str(raw / "pictures"), "--out", str(tmp_path / "out"), "--workers", "1"]

    def run(*arguments):
        return main(LAYOUT, open_nyuv2, "NYUv2", [*arguments], _add_options)

    assert run(*command, "--size", "30", "40") == 0
    assert read_json(tmp_path / "out" / "prepared.json")["image_size"] == [30, 40]
    assert run("--check", "--out", str(tmp_path / "out")) == 0
    assert "ok image size: [30, 40]" in capsys.readouterr().out
    assert run(*command) == 1
    assert "image_size [30, 40] there, [288, 384] asked for" in capsys.readouterr().err
    assert run(*command, "--size", "421", "560") == 1
    assert "from 8 x 8 to 420 x 560 pixels, which pictures has, found 421 x 560" in capsys.readouterr().err
