"""data_scripts.cityscapes: from files in the official formats to prepared arrays."""

import shutil

import numpy as np
import pytest
from PIL import Image

from data_scripts import layouts
from data_scripts.checking import check
from data_scripts.cityscapes import (
    LAYOUT,
    PACKAGES,
    convert,
    open_raw,
    part_classes,
    scaled_disparity,
    train_classes,
)
from data_scripts.commands import main
from data_scripts.fixtures import write_cityscapes
from data_scripts.layouts import Broken
from data_scripts.preparing import committed_splits, prepare, random_parts
from simo.errors import SimoError

SUFFIXES = {
    "leftImg8bit": "_leftImg8bit.png",
    "gtFine": "_gtFine_labelIds.png",
    "gtFinePanopticParts": "_gtFinePanopticParts.tif",
    "disparity": "_disparity.png",
}
FRAMES = ["aachen_000000_000019", "aachen_000001_000019", "bochum_000002_000019", "bochum_000003_000019"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Extracted packages, four training frames, two for validation, one test image."""
    folder = tmp_path_factory.mktemp("raw")
    write_cityscapes(folder, zipped=False)
    return folder


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "cityscapes"
    prepare(open_raw(raw), out, workers=1)
    return out


@pytest.fixture
def copy(raw, tmp_path):
    return shutil.copytree(raw, tmp_path / "raw")


def raw_file(raw, package, frame):
    return raw / package / "train" / frame.split("_")[0] / f"{frame}{SUFFIXES[package]}"


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def expected_part(uid):
    """Part class of a uid, read from its decimal digits; written without looking at `part_classes`."""
    digits = str(uid)
    if len(digits) < 6:
        return 0
    sid, part = int(digits[:-5]), int(digits[-2:])
    if sid in (24, 25):
        return {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 0}[part]
    return {0: 0, 1: 5, 2: 6, 3: 7, 4: 8, 5: 9}[part]


# From raw to prepared


def test_arrays_are_those_of_the_files(raw, prepared):
    """Protects every value: decoded here pixel by pixel, at half size, each frame in its place."""
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28]  # the fixtures have no later ones
    train_id = {i: n for n, i in enumerate(ids)}
    for index, frame in enumerate(FRAMES):
        pictures = {package: np.array(Image.open(raw_file(raw, package, frame))) for package in PACKAGES}
        arrays = {f.name: np.load(prepared / f"train/{f.name}/{index}.npy") for f in LAYOUT.fields}
        means = pictures["leftImg8bit"].reshape(128, 2, 256, 2, 3).astype(float).mean(axis=(1, 3))
        assert np.abs(arrays["image"] - means).max() <= 0.5
        for i, j in np.random.default_rng(index).integers(0, (128, 256), (2000, 2)):
            at = 2 * i + 1, 2 * j + 1
            assert arrays["label_19"][i, j] == train_id.get(int(pictures["gtFine"][at]), -1)
            assert arrays["part_seg"][i, j] == expected_part(int(pictures["gtFinePanopticParts"][at]))
            p = int(pictures["disparity"][at])
            pixels = (p - 1) / 256 * 2048 / 512  # the fixtures are 512 wide
            assert arrays["depth"][i, j, 0] == pytest.approx(pixels / 256 if p else 0.0, rel=1e-6, abs=1e-9)
        assert set(np.unique(arrays["part_seg"])) == set(range(10))
        assert (arrays["depth"] == 0).any()


def test_official_size(tmp_path):
    """Protects the real frames' geometry: blocks of 8 for the image, the pixel at 8i + 4 for the others."""
    rows, columns = np.arange(1024)[:, None], np.arange(2048)[None]
    pictures = {
        "leftImg8bit": np.stack(
            [rows // 8 % 251 + 0 * columns, columns // 8 + 0 * rows, 0 * rows + 0 * columns], -1
        ),
        "gtFine": (rows + columns) % 34,
        "gtFinePanopticParts": 2_400_100 + (rows + columns) % 5,
        "disparity": 1 + 32 * rows + columns // 8,
    }
    types = {"gtFinePanopticParts": np.int32, "disparity": np.uint16}
    source = []
    for package, picture in pictures.items():
        path = tmp_path / f"frame{SUFFIXES[package]}"
        Image.fromarray(picture.astype(types.get(package, np.uint8))).save(path)
        source.append((None, str(path)))
    arrays = convert(layouts.Image("train", 0, "frame", tuple(source)))
    i, j = np.arange(128)[:, None], np.arange(256)[None]
    assert np.array_equal(arrays["image"][..., 0], np.broadcast_to(i % 251, (128, 256)))
    assert np.array_equal(arrays["image"][..., 1], np.broadcast_to(j, (128, 256)))
    assert np.array_equal(arrays["part_seg"], (8 * i + 8 * j + 8) % 5)
    assert np.array_equal(arrays["label_19"] == 0, (8 * i + 8 * j + 8) % 34 == 7)
    stored = 32.0 * (8 * i + 4) + j  # p - 1
    assert np.array_equal(arrays["depth"][..., 0], (stored / 65536).astype(np.float32))


def test_zipped_extracted_and_mixed_are_the_same(raw, prepared, tmp_path):
    """Protects the choice of how packages lie there: the arrays do not depend on it, nor on the workers."""
    for name, zipped in {"zip": True, "mixed": {"gtFine", "disparity"}}.items():
        write_cityscapes(tmp_path / name, zipped=zipped)
        assert len(list((tmp_path / name).glob("*.zip"))) == (4 if zipped is True else 2)
        prepare(open_raw(tmp_path / name), tmp_path / f"{name}-out", workers=2 if zipped is True else 1)
        assert files_of(tmp_path / f"{name}-out") == files_of(prepared)
    nested = tmp_path / "nested"  # as unzip into a folder of the archive's name leaves them
    for package, about in PACKAGES.items():
        shutil.copytree(raw / package, nested / about.archive.removesuffix(".zip") / package)
    shutil.copy(raw / "FIXTURE.txt", nested)
    prepare(open_raw(nested), tmp_path / "nested-out", workers=1)
    assert files_of(tmp_path / "nested-out") == files_of(prepared)


def test_prepared_folder_is_sound(prepared, capsys):
    """Protects the layout: the check of the command line finds nothing, and says that it is made-up data."""
    assert main(LAYOUT, open_raw, "", ["--check", "--out", str(prepared)]) == 0
    assert "ok fixture" in capsys.readouterr().out
    lines = (prepared / "ids.txt").read_text().splitlines()
    assert lines == [f"train/{i}\t{frame}" for i, frame in enumerate(FRAMES)] + [
        "val/0\tfrankfurt_000000_000019",
        "val/1\tlindau_000001_000019",
    ]
    splits = {p.stem: p.read_text().split() for p in prepared.glob("splits/*.txt")}
    first, rest = random_parts(4, 3)
    assert splits == {
        "train": [f"train/{i}" for i in first],
        "val": [f"train/{i}" for i in rest],
        "test": ["val/0", "val/1"],
    }


def test_check_does_not_take_a_fixture_for_the_data(prepared, tmp_path):
    """Protects results: without the mark of a fixture, six frames are not Cityscapes."""
    out = shutil.copytree(prepared, tmp_path / "out")
    text = (out / "prepared.json").read_text()
    (out / "prepared.json").write_text(text.replace('"fixture": true', '"fixture": false'))
    failures = [finding for finding in check(out, LAYOUT) if finding.startswith("FAIL")]
    assert failures == [
        "FAIL images in split train: expected 2380, found 3",
        "FAIL images in split val: expected 595, found 1",
        "FAIL images in split test: expected 500, found 2",
    ]


def test_committed_splits_are_the_papers():
    """Protects the committed text: torch's permutation of 2975 with seed 42, 2380 of it train, 500 test."""
    first, rest = random_parts(2975, 2380)
    splits = committed_splits("cityscapes")
    assert splits["train"] == [f"train/{i}" for i in first]
    assert splits["val"] == [f"train/{i}" for i in rest]
    assert splits["test"] == [f"val/{i}" for i in range(500)]
    assert {name: len(members) for name, members in splits.items()} == LAYOUT.counts


# Numbers


def test_train_classes():
    """Protects the 19 classes: the official table, ids without a class ignored, unknown ids refused."""
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    classes = train_classes(ids)
    assert classes.dtype == np.int8
    assert [int(ids[classes == n][0]) for n in range(19)] == evaluated
    assert (classes == -1).sum() == 34 - 19
    with pytest.raises(Broken, match="unknown label id 34"):
        train_classes(ids + np.uint8(1))


def test_part_classes():
    """Protects the encoding: the format's own examples, each part of each class, and what has no parts."""
    known = {0: 0, 23: 0, 26: 0, 7003: 0, 26002: 0, 700300: 0, 2401000: 0, 2401002: 2}
    known |= {sid * 100_000 + 300 + part: part for sid in (24, 25) for part in range(5)}
    known |= {sid * 100_000 + 300 + part: part + 4 for sid in (26, 27, 28) for part in range(1, 6)}
    known |= {2_500_405: 0}  # the artefact of about ten files
    for uid, expected in known.items():
        assert part_classes(np.array([[uid]], dtype=np.int32)).tolist() == [[expected]]
        assert expected == expected_part(uid)
    assert part_classes(np.zeros((2, 3), dtype=np.int32)).dtype == np.int8


@pytest.mark.parametrize(
    "uid", [-1, 99, 100, 999, 34_000, 2_400_006, 2_600_106, 700_301, 3_300_101, 12_345_678]
)
def test_unknown_uids_are_refused(uid):
    """Protects from another encoding read as this one: the offending uid is named."""
    with pytest.raises(Broken, match=f"uid {uid}$"):
        part_classes(np.array([[7, uid]], dtype=np.int32))


def test_scaled_disparity():
    """Protects scale and validity: 0 and 1 give no ground truth, 256 steps a pixel, relative to the width."""
    stored = np.array([[0, 1, 2, 257, 25601, 65535]], dtype=np.uint16)
    expected = np.array([[0, 0, 1, 256, 25600, 65534]]) / 65536
    assert np.array_equal(scaled_disparity(stored, 2048), expected.astype(np.float32))
    assert np.allclose(scaled_disparity(stored, 1024), 2 * expected)  # the same scene, seen in fewer pixels


# Raw data that cannot be used


def test_nothing_there(tmp_path, capsys):
    """Protects the newcomer: where to register, which files, how large, under which terms; exit status 1."""
    for raw in (tmp_path, tmp_path / "none"):
        assert main(LAYOUT, open_raw, "", ["--raw", str(raw), "--out", str(tmp_path / "out")]) == 1
        text = capsys.readouterr().err
        for word in ("cityscapes-dataset.com", "register", "non-commercial", "--raw", "11 GB", "3.5 GB"):
            assert word in text
        assert all(package.archive in text for package in PACKAGES.values())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_missing_package(copy, package):
    """Protects from a late surprise: a package that is not there is named before anything is decoded."""
    shutil.rmtree(copy / package)
    with pytest.raises(
        SimoError, match=f"neither {PACKAGES[package].archive} nor an extracted folder {package}"
    ):
        open_raw(copy)


@pytest.mark.parametrize("package", PACKAGES)
def test_missing_file(copy, package):
    """Protects the index from shifting: a frame without one of its files is named, also in a fixture."""
    raw_file(copy, package, FRAMES[1]).unlink()
    with pytest.raises(SimoError, match=f"missing: train/{FRAMES[1]} in {package}"):
        open_raw(copy)


def test_official_counts(copy):
    """Protects the split, which is by position: without the fixture's mark, 4 and 2 frames are refused."""
    (copy / "FIXTURE.txt").unlink()
    with pytest.raises(
        SimoError, match=r"expected \{'train': 2975, 'val': 500\}.*found \{'train': 4, 'val': 2\}"
    ):
        open_raw(copy)


def test_file_there_twice(copy):
    """Protects from two extractions that may differ."""
    shutil.copytree(copy / "gtFine", copy / "old/gtFine")
    with pytest.raises(SimoError, match="is there twice"):
        open_raw(copy)


def test_other_packages_are_not_mistaken(raw, copy):
    """Protects from files of the same name in the sequence packages, which hold other frames too."""
    for name in ("leftImg8bit_sequence", "disparity_sequence"):
        shutil.copytree(copy / name.removesuffix("_sequence"), copy / name)
    folder = copy / "leftImg8bit_sequence/train/aachen"
    (folder / f"{FRAMES[0]}_leftImg8bit.png").rename(folder / "aachen_000000_000018_leftImg8bit.png")
    assert [image.name for image in open_raw(copy).images] == [image.name for image in open_raw(raw).images]


def test_truncated_zip(tmp_path):
    """Protects from an unfinished download: the archive is named."""
    write_cityscapes(tmp_path, train=2, val=1)
    path = tmp_path / PACKAGES["disparity"].archive
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SimoError, match="disparity_trainvaltest.zip, a zip file, cannot be decoded"):
        open_raw(tmp_path)


def test_corrupt_member(tmp_path):
    """Protects from a damaged archive: the member is named when it is read, and nothing is prepared of it."""
    write_cityscapes(tmp_path / "raw", train=2, val=1)
    path = tmp_path / "raw" / PACKAGES["leftImg8bit"].archive
    content = bytearray(path.read_bytes())
    place = content.index(b"val/frankfurt") + 500
    content[place : place + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(SimoError, match="val/frankfurt/frankfurt_000000_000019_leftImg8bit.png"):
        prepare(open_raw(tmp_path / "raw"), tmp_path / "out", workers=1)
    assert not (tmp_path / "out/prepared.json").exists()


def test_broken_pictures(copy):
    """Protects from half a picture and from a picture of another kind or size: the file is named."""
    images = open_raw(copy).images
    path = raw_file(copy, "gtFine", FRAMES[0])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Broken, match="aachen_000000_000019_gtFine_labelIds.png cannot be decoded"):
        convert(images[0])
    path.write_bytes(b"no picture")
    with pytest.raises(Broken, match="cannot be decoded"):
        convert(images[0])
    shutil.copy(raw_file(copy, "leftImg8bit", FRAMES[0]), path)
    with pytest.raises(Broken, match="labelIds.png: expected pixels of type L, found RGB"):
        convert(images[0])
    Image.fromarray(np.zeros((256, 500), dtype=np.uint8)).save(path)
    with pytest.raises(Broken, match=r"aachen_000000_000019: .*differ in size .*gtFine 500 x 256"):
        convert(images[0])
    Image.fromarray(np.full((256, 512), 77, dtype=np.uint8)).save(path)
    with pytest.raises(Broken, match="frame aachen_000000_000019: unknown label id 77"):
        convert(images[0])


def test_fixtures_command(tmp_path):
    """Protects the rehearsal: the command writes raw data that can be opened and say they are made up."""
    from data_scripts import fixtures

    assert fixtures.main([str(tmp_path), "--datasets", "cityscapes"]) == 0
    assert (tmp_path / "cityscapes/FIXTURE.txt").read_text().startswith("Made-up test data")
    opened = open_raw(tmp_path / "cityscapes")
    assert opened.fixture is True
    assert [image.name for image in opened.images[:4]] == FRAMES
    assert fixtures.main([str(tmp_path), "--datasets", "cityscapes"]) == 0


def test_fixtures_do_not_touch_real_data(tmp_path, capsys):
    """Protects a download of 11 GB from whoever names its folder for the rehearsal."""
    from data_scripts import fixtures

    real = tmp_path / "cityscapes" / PACKAGES["leftImg8bit"].archive
    real.parent.mkdir()
    real.write_bytes(b"real")
    assert fixtures.main([str(tmp_path), "--datasets", "cityscapes"]) == 1
    assert "holds data that are not made up" in capsys.readouterr().err
    assert [path.read_bytes() for path in real.parent.iterdir()] == [b"real"]
