"""data_scripts.nyuv2: from each of its four raw sources to a training step, and normals from depth."""

import shutil
from pathlib import Path

import h5py
import huggingface_hub
import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from writers import write_nyuv2_npy, write_nyuv2_parquet, write_nyuv2_pictures

from data_scripts import nyuv2_parquet
from data_scripts.checking import check
from data_scripts.fixtures import draw_room, write_nyuv2_mat
from data_scripts.layouts import Broken, Image
from data_scripts.normals import normals_from_depth
from data_scripts.nyuv2 import LAYOUT, REVISION, convert_npy, convert_parquet, main, open_nyuv2, tidy
from data_scripts.nyuv2_official import class_table, nearest, read_labelled, shrink
from data_scripts.nyuv2_pictures import STEP, dequantise
from data_scripts.preparing import committed_splits, prepare
from data_scripts.render.rooms import choose_view, furnish, render_room
from simo.datasets import PreparedDataset
from simo.errors import SimoError
from simo.files import read_json

WRITERS = {
    "npy": write_nyuv2_npy,
    "parquet": write_nyuv2_parquet,
    "mat": write_nyuv2_mat,
    "pictures": write_nyuv2_pictures,
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The same three training and three test images in each raw format; tests only read them."""
    root = tmp_path_factory.mktemp("raw")
    for name, write in WRITERS.items():
        write(root / name, train=3, val=3)
    return root


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    """What becomes of each."""
    root = tmp_path_factory.mktemp("prepared")
    for name in WRITERS:
        prepare(open_nyuv2(raw / name), root / name, workers=1)
    return root


def copied(raw, tmp_path, real=False):
    """A copy of a raw folder that a test may damage, without the mark of a fixture if it shall be real."""
    copy = Path(shutil.copytree(raw, tmp_path / "copy"))
    if real:
        (copy / "FIXTURE.txt").unlink()
    return copy


def test_committed_splits_follow_the_papers_rule():
    """Protects the comparison with the paper: 795, and the 654 parted 400 / 254 by torch's seed 42."""
    order = torch.randperm(654, generator=torch.Generator().manual_seed(42)).tolist()
    splits = committed_splits("nyuv2")
    assert splits["train"] == [f"train/{i}" for i in range(795)]
    assert splits["val"] == [f"val/{i}" for i in sorted(order[:400])]
    assert splits["test"] == [f"val/{i}" for i in sorted(order[400:])]
    assert {name: len(members) for name, members in splits.items()} == LAYOUT.counts


def test_fixture_splits_scale_the_rule():
    """Protects small data from an empty split: the shares of 400 / 254, one image at least."""
    from data_scripts.nyuv2 import _fixture_splits

    order = torch.randperm(10, generator=torch.Generator().manual_seed(42)).tolist()
    assert _fixture_splits(1, 10)["val"] == [f"val/{i}" for i in sorted(order[:6])]
    assert [len(_fixture_splits(1, 2)[name]) for name in ("val", "test")] == [1, 1]
    with pytest.raises(SimoError, match="at least 2 images to split, found 1"):
        _fixture_splits(1, 1)
    with pytest.raises(SimoError, match="made-up images in train is 0: expected at least 1"):
        _fixture_splits(0, 2)


def test_tidy_by_hand():
    """Protects the arrays' meaning: types, unit normals, zero vectors and ignored labels kept."""
    arrays = tidy(
        "x",
        image=np.full((1, 2, 3), 0.25),
        label=np.array([[-1.0, 12.0]]),
        depth=np.array([[0.0, 2.5]]),
        normal=np.array([[[0.0, 0.0, 0.0], [0.0, 3.0, -4.0]]]),
    )
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "image": ("float32", (1, 2, 3)),
        "label": ("int8", (1, 2)),
        "depth": ("float32", (1, 2, 1)),
        "normal": ("float32", (1, 2, 3)),
    }
    assert arrays["label"].tolist() == [[-1, 12]]
    assert arrays["depth"][..., 0].tolist() == [[0.0, 2.5]]
    np.testing.assert_allclose(arrays["normal"], [[[0, 0, 0], [0, 0.6, -0.8]]], rtol=1e-6)
    for label in (0.5, 255.0):
        with pytest.raises(Broken, match="x: expected whole numbers"):
            tidy("x", np.zeros((1, 1, 3)), np.array([[label]]), np.zeros((1, 1)), np.zeros((1, 1, 3)))


@pytest.mark.parametrize("source", WRITERS)
def test_raw_to_training_step(prepared, source, train_pixelwise):
    """Protects the whole way: prepared data pass the check, are marked as made up, and a model learns."""
    out = prepared / source
    findings = check(out, LAYOUT)
    assert [finding for finding in findings if not finding.startswith("ok ")] == []
    record = read_json(out / "prepared.json")
    assert (record["source"], record["fixture"]) == (source, True)
    assert record["splits"] == {"train": 3, "val": 2, "test": 1}
    data = PreparedDataset(out, "nyuv2", "train", scales=(1.0, 1.2), crop=(56, 84))
    losses = train_pixelwise(data, 20)
    assert losses[-1] < 0.7 * losses[0]


def test_npy_and_parquet_hold_the_same(prepared):
    """Protects the choice of source: the copy on the Hub gives the arrays of the folder, to the last bit."""
    first, second = (read_json(prepared / name / "prepared.json") for name in ("npy", "parquet"))
    assert first["sha256"] == second["sha256"]
    frame = draw_room(np.random.default_rng(0), (288, 384))
    for field, array in frame.items():
        stored = np.load(prepared / "npy" / "train" / field / "0.npy")
        np.testing.assert_allclose(stored, array, atol=1e-6)


def test_pictures_of_the_official_file_are_those_of_their_numbers(tmp_path):
    """The picture that is read is that of the number in the id map."""
    write_nyuv2_mat(tmp_path / "mat", 3, 3)
    images = open_nyuv2(tmp_path / "mat").images
    assert [image.source[1] + 1 for image in images] == [int(image.name[:4]) for image in images]


def test_id_maps(prepared):
    """Protects the way back to the original images: npy by path, parquet by row, others by number."""
    ids = {name: (prepared / name / "ids.txt").read_text().splitlines() for name in WRITERS}
    assert ids["npy"][3] == "val/0\tval/0.npy"
    assert ids["parquet"][4] == "val/1\tval-00000-of-00001.parquet:1"
    assert ids["mat"][1] == "train/1\t0003 room_0001/r-2.000000-2.ppm"
    assert ids["mat"][3] == "val/0\t0002 room_0001/r-1.000000-1.ppm"
    assert ids["pictures"][1] == "train/1\t0003 nyu_images/2.jpg"
    assert ids["pictures"][3] == "val/0\t0002 nyu_images/1.jpg"


# (a) npy


def test_npy_that_cannot_be_read_is_named(raw, tmp_path):
    """Protects from a traceback deep in NumPy: a truncated file is named."""
    copy = copied(raw / "npy", tmp_path)
    path = copy / "train" / "depth" / "1.npy"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(Broken, match=r"train/depth/1\.npy cannot be decoded"):
        convert_npy(Image("train", 1, "train/1.npy", str(copy)), LAYOUT.size)


def test_npy_folder_with_holes_is_refused(raw, tmp_path):
    """Protects from targets of another image: every field must have the same numbers, without a gap."""
    copy = copied(raw / "npy", tmp_path)
    (copy / "val" / "normal" / "1.npy").unlink()
    with pytest.raises(SimoError, match=r"val/normal: .*1\.npy is missing"):
        open_nyuv2(copy)


# (b) parquet


def test_rows_can_be_read_in_any_order(raw):
    """Protects resuming, and workers that share a file: a row is the same whatever was read before."""
    images = open_nyuv2(raw / "parquet").images
    ahead = [convert_parquet(image, LAYOUT.size) for image in images]
    for image, expected in reversed(list(zip(images, ahead, strict=True))):
        for name, array in convert_parquet(image, LAYOUT.size).items():
            np.testing.assert_array_equal(array, expected[name])
    assert not np.array_equal(ahead[0]["depth"], ahead[1]["depth"])


def test_damaged_shards_are_named(raw, tmp_path):
    """Protects from half a download: a truncated shard is refused before anything is written."""
    copy = copied(raw / "parquet", tmp_path)
    shard = copy / "data" / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(SimoError, match=r"train-00000-of-00001\.parquet, a parquet file, cannot be decoded"):
        open_nyuv2(copy)


def test_download_is_pinned_and_only_on_demand(raw, tmp_path, monkeypatch, capsys):
    """Protects the reader's line and the record: asked for, announced with its size, at one revision."""
    calls = []

    def fetch(repository, **options):
        calls.append((repository, options["repo_type"], options["revision"], options["allow_patterns"]))
        shutil.copytree(raw / "parquet", options["local_dir"], dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(nyuv2_parquet, "DOWNLOAD_BYTES", 1)
    with pytest.raises(SimoError, match="holds none of the sources"):
        open_nyuv2(tmp_path)
    assert calls == []
    found = open_nyuv2(tmp_path, fetch=True)
    assert calls == [("tanganke/nyuv2", "dataset", REVISION, "*.parquet")]
    assert "0.00 GB" in capsys.readouterr().out
    assert found.options == open_nyuv2(tmp_path).options == {"revision": REVISION}


def test_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    """Protects the reader from the traceback of an HTTP library, and from a disk that fills up midway."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **b: 1 / 0)
    with pytest.raises(SimoError, match=r"at revision b367b8b\w* .*same command again"):
        nyuv2_parquet.download(tmp_path / "new")
    assert not (tmp_path / "new" / "revision.json").exists()
    # without a network the library returns what is in the folder
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **b: None)
    with pytest.raises(SimoError, match=r"cannot fetch .*0 of 2971250125 bytes came"):
        nyuv2_parquet.download(tmp_path / "new")
    assert not (tmp_path / "new" / "revision.json").exists()
    monkeypatch.setattr(nyuv2_parquet, "DOWNLOAD_BYTES", 10**18)
    with pytest.raises(SimoError, match="still to be fetched"):
        nyuv2_parquet.download(tmp_path / "new")


# (c) the official file


def test_classes_by_hand(raw, tmp_path):
    """Protects the way from 894 names over 40 classes to 13: both count from 1, and 0 is unknown."""
    copy = copied(raw / "mat", tmp_path)
    to_40, to_13 = np.ones((1, 894), int), np.zeros((1, 40), int)
    to_40[0, [0, 1, 893]] = 40, 7, 0
    to_13[0, [0, 6, 39]] = 5, 13, 1
    savemat(copy / "classMapping40.mat", {"mapClass": to_40})
    savemat(copy / "class13Mapping.mat", {"classMapping13": {"labels": to_13}})
    table = class_table(copy)
    assert table.dtype == np.int8
    assert table[[0, 1, 2, 3, 894]].tolist() == [-1, 0, 12, 4, -1]
    savemat(copy / "classMapping40.mat", {"mapClass": to_40[:, :893]})
    with pytest.raises(SimoError, match="expected 894 numbers from 0 to 40, found 893"):
        class_table(copy)


def test_official_arrays_pixel_by_pixel(raw):
    """Protects transposing, crop and registration: pixels looked up one by one in the file itself."""
    arrays = read_labelled(str(raw / "mat"), 2, (288, 384))
    with h5py.File(raw / "mat" / "nyu_depth_v2_labeled.mat") as file:
        images, labels, depths, measured = (
            file[name][2] for name in ("images", "labels", "depths", "rawDepths")
        )
    for row, column in ((0, 0), (0, 383), (287, 0), (287, 383), (100, 31), (8, 60)):
        y, x = 47 + int((row + 0.5) * 420 / 288), 40 + int((column + 0.5) * 560 / 384)
        assert arrays["label"][row, column] == (labels[x, y] // 41 - 1 if labels[x, y] else -1)
        assert arrays["depth"][row, column] == depths[x, y]
        assert arrays["normal"][row, column].any() == (measured[x, y] > 0)
        np.testing.assert_allclose(arrays["image"][row, column], images[:, x, y] / 255, atol=0.03)
    assert set(np.unique(arrays["label"])) == set(range(-1, 13))
    assert not arrays["normal"][0, 0].any()  # the fixture's corner was not measured


def test_resampling_keeps_the_picture_in_place():
    """Protects registration of image and targets: a ramp stays a ramp, at the centres of the new pixels."""
    assert nearest(slice(10, 14), 2).tolist() == [11, 13]
    assert nearest(slice(40, 600), 384)[[0, 1, 383]].tolist() == [40, 42, 599]
    ramp = np.broadcast_to((np.arange(560) / 4)[None, :, None], (420, 560, 3)).astype(np.float32)
    expected = ((np.arange(384) + 0.5) * 560 / 384 - 0.5) / 4
    np.testing.assert_allclose(shrink(ramp / 255, (288, 384))[144, 4:-4, 0] * 255, expected[4:-4], atol=0.05)


def test_official_files_must_fit(raw, tmp_path):
    """Protects from a wrong file: the missing one, an index out of range, and a truncated .mat are named."""
    copy = copied(raw / "mat", tmp_path)
    splits = loadmat(copy / "splits.mat")
    savemat(copy / "splits.mat", {"trainNdxs": splits["trainNdxs"], "testNdxs": [[2], [7]]})
    with pytest.raises(SimoError, match="testNdxs to be numbers from 1 to 6"):
        open_nyuv2(copy)
    (copy / "splits.mat").write_text("<html>moved</html>" * 100)
    with pytest.raises(SimoError, match="a MATLAB 5 file, cannot be decoded"):
        open_nyuv2(copy)
    (copy / "splits.mat").unlink()
    with pytest.raises(SimoError, match=r"holds no splits\.mat.*silberman"):
        open_nyuv2(copy)
    short = copied(raw / "mat", tmp_path / "second")
    file = short / "nyu_depth_v2_labeled.mat"
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(SimoError, match="a MATLAB 7.3 file, cannot be decoded"):
        open_nyuv2(short)


def test_mat_fixture_is_a_matlab_file(raw):
    """Protects the fixture's worth: MATLAB's header before HDF5, strings by reference, arrays transposed."""
    path = raw / "mat" / "nyu_depth_v2_labeled.mat"
    head = path.read_bytes()[:520]
    assert head.startswith(b"MATLAB 7.3 MAT-file")
    assert head[124:128] == b"\x00\x02IM"
    assert head[512:] == b"\x89HDF\r\n\x1a\n"
    with h5py.File(path) as file:
        assert file["images"].shape == (6, 3, 640, 480)
        assert (file["names"].shape, file["names"].dtype) == ((1, 894), h5py.ref_dtype)
        assert file["labels"].dtype == np.uint16


# Normals from depth


def test_normals_of_a_plane_are_exact():
    """Protects formula and frame: a tilted plane, its depth by the ray equation, an off-centre camera."""
    truth = np.array([-0.3, 0.5, 0.8])
    truth /= np.linalg.norm(truth)
    (fx, fy), (cx, cy) = (50.0, 60.0), (18.0, 11.0)
    x, y = (np.arange(40) - cx) / fx, -(np.arange(30) - cy) / fy
    ray = np.stack([*np.broadcast_arrays(x[None, :], y[:, None]), -np.ones((30, 40))], axis=-1)
    depth = (-2.0 / (ray @ truth)).astype(np.float32)
    assert depth.min() > 0
    normal = normals_from_depth(depth, (fx, fy), (cx, cy))
    np.testing.assert_allclose(normal, np.broadcast_to(truth, normal.shape), atol=1e-3)
    some = normals_from_depth(depth, (fx, fy), (cx, cy), np.array([0, 29]), np.array([5, 39]))
    np.testing.assert_array_equal(some, normal[np.ix_([0, 29], [5, 39])])


def test_normals_do_not_mix_surfaces():
    """Protects edges: before and behind a step in depth the walls stay parallel to the image; gaps stay 0."""
    depth = np.full((30, 40), 2.0, np.float32)
    depth[:, 20:] = 2.2
    depth[3:6, 3:6] = 0
    normal = normals_from_depth(depth, (50, 50), (20, 15))
    assert not normal[3:6, 3:6].any()
    normal[3:6, 3:6] = (0, 0, 1)
    np.testing.assert_allclose(normal, np.broadcast_to([0.0, 0.0, 1.0], normal.shape), atol=1e-4)
    alone = np.zeros((30, 40), np.float32)
    alone[10, :] = 2.0  # a line determines no plane
    assert not normals_from_depth(alone, (50, 50), (20, 15)).any()


@pytest.mark.parametrize(("noise", "median", "share"), [(0.0, 0.5, 0.78), (0.0014, 4.0, 0.72)])
def test_normals_agree_with_the_renderer(noise, median, share):
    """Protects the estimate on furnished rooms, with a Kinect's noise too: exact normals are known there.

    A Kinect's depth z has a standard deviation of about 0.0014 z² (Khoshelham and Elberink, 2012), which is
    one of 0.0014 in 1 / z.
    """
    for seed in range(3):
        room = render_room(seed, 240, 320)
        focal = choose_view(furnish(np.random.default_rng(seed)))[4, 0] * 240
        random = np.random.default_rng(seed)
        depth = 1 / (1 / room["depth"][..., 0] + noise * random.normal(size=(240, 320)))
        normal = normals_from_depth(depth.astype(np.float32), (focal, focal), (159.5, 119.5))
        assert normal.any(axis=-1).mean() > 0.98
        angle = np.degrees(np.arccos(np.clip((normal * room["normal"]).sum(-1), -1, 1)))
        assert np.median(angle) < median
        assert np.mean(angle < 11.25) > share


@pytest.fixture(scope="module")
def large_rooms():
    """Depth and focal length of two rooms of 480 x 640."""
    return [
        (
            render_room(seed, 480, 640)["depth"][..., 0],
            choose_view(furnish(np.random.default_rng(seed)))[4, 0] * 480,
        )
        for seed in range(2)
    ]


@pytest.mark.parametrize(("noise", "bounds"), [(0.0, (2.9, 0.66, 0.0032)), (0.0014, (5.0, 3.35, 0.0076))])
def test_depth_in_8_bits_keeps_its_normals(large_rooms, noise, bounds):
    """Protects the pictures' normals: dequantised depth and its normals are near those never quantised.

    Bounds are the mean and median angle in degrees and the mean error of depth in metres, a little above what
    was measured: 2.78 and .62 degrees and .0030 m, with a Kinect's noise 4.93, 3.30 and .0073. Depth taken as
    it is gives 7.5, 4.5 and .0098, with noise 6.1, 4.1 and .0160; a plain mean of the neighbours that are at
    most 2.5 steps away, in 60 rounds, 4.2, 1.7 and .0035, with noise 5.0, 3.4 and .0072.
    """
    rows, columns, angles, errors = np.arange(1, 480, 3), np.arange(1, 640, 3), [], []
    for depth, focal in large_rooms:
        seen = 1 / (1 / depth + noise * np.random.default_rng(0).normal(size=depth.shape))
        found = dequantise(np.round(seen / STEP).astype(np.uint8))
        exact, normal = (
            normals_from_depth(each, (focal, focal), (319.5, 239.5), rows, columns) for each in (depth, found)
        )
        both = exact.any(axis=-1) & normal.any(axis=-1)
        assert both.mean() > 0.98
        angles.append(np.degrees(np.arccos(np.clip((exact * normal).sum(-1)[both], -1, 1))))
        errors.append(np.abs(found - depth).mean())
    angles = np.concatenate(angles)
    measured = (angles.mean(), np.median(angles), np.mean(errors))
    assert all(value < bound for value, bound in zip(measured, bounds, strict=True)), measured


# The command line


def test_without_data_it_says_how_to_get_them(tmp_path, capsys):
    """Protects a user without data: all four sources, where they are, how large, and no traceback."""
    command = ["--raw", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]
    assert main(LAYOUT, open_nyuv2, "NYUv2", command) == 1
    message = capsys.readouterr().err
    for part in (
        "auto-lambda",
        "tanganke/nyuv2",
        "nyu_depth_v2.html",
        "splits.mat",
        "GB",
        "--download",
        "refinenet_pytorch",
    ):
        assert part in message
    assert not (tmp_path / "out").exists()


def test_incomplete_real_data_are_refused(raw, tmp_path):
    """Protects the numbers: what is not marked as a fixture must be the 795 and 654 images."""
    with pytest.raises(
        SimoError, match=r"expected \{'train': 795, 'val': 654\}.*found \{'train': 3, 'val': 3"
    ):
        open_nyuv2(copied(raw / "parquet", tmp_path, real=True))


def test_several_sources_need_a_choice(raw, tmp_path):
    """Protects from preparing another source than the user thinks of."""
    copy = copied(raw / "npy", tmp_path)
    shutil.copytree(raw / "parquet" / "data", copy / "data")
    with pytest.raises(SimoError, match=r"several sources .*npy, parquet.*--source"):
        open_nyuv2(copy)
    assert open_nyuv2(copy, source="parquet").source == "parquet"
    with pytest.raises(SimoError, match="no source 'mat'"):
        open_nyuv2(copy, source="mat")
