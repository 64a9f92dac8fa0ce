"""data_scripts.miniature: rendered scenes in the layouts of the real data sets."""

import json
import shutil

import numpy as np
import pytest

from data_scripts import cues
from data_scripts.layouts import Image
from data_scripts.miniature import LAYOUTS, convert, main, plan, scene_seed, write
from data_scripts.preparing import committed_splits
from simo.datasets import PreparedDataset
from simo.errors import SimoError
from simo.tasks import valid_pixels

SMALL = {"size": (16, 24), "train": 5, "val": 3, "test": 4, "workers": 1}
DATASETS = sorted(LAYOUTS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """One small rendered folder a data set."""
    root = tmp_path_factory.mktemp("miniature")
    return {name: (root / name, write(name, root / name, **SMALL)) for name in DATASETS}


@pytest.mark.parametrize("dataset", DATASETS)
def test_has_the_layout_of_the_real_data(prepared, dataset):
    """Protects the claim that rendered and real data are read by the same code: fields, types, ranges."""
    out, record = prepared[dataset]
    assert record["source"] == "rendered"
    assert record["fixture"] is False
    assert record["splits"] == {"train": 5, "val": 3, "test": 4}
    assert record["fields"].keys() == {field.name for field in LAYOUTS[dataset].fields}
    for folder, field in {path.parent.relative_to(out).parts for path in out.glob("*/*/*.npy")}:
        assert field in record["fields"]
        assert folder in ("train", "val", "test")


@pytest.mark.parametrize("dataset", DATASETS)
def test_is_read_with_all_targets(prepared, dataset):
    """Every task of the paper finds its target, and nearly every pixel has ground truth but for the sky."""
    for split, count in {"train": 5, "val": 3, "test": 4}.items():
        data = PreparedDataset(prepared[dataset][0], dataset, split)
        assert len(data) == count
        for index in range(count):
            sample = data[index]
            for task in data.tasks:
                assert valid_pixels(sample[task.name][None]).float().mean() > 0.5


@pytest.mark.parametrize("dataset", ["nyuv2", "cityscapes"])
def test_splits_follow_the_real_ones(dataset):
    """The rule that splits rendered scenes gives the committed splits for the real numbers of images."""
    counts = {"nyuv2": (795, 400, 254), "cityscapes": (2380, 595, 500)}[dataset]
    _, splits = plan(dataset, *counts)
    assert splits == committed_splits(dataset)


def test_scene_seeds_are_disjoint():
    """Protects the splits from sharing a scene with each other or with the pretraining renders."""
    folders = ("train", "val", "test", "pretraining", "preview")
    seeds = [scene_seed(d, f, i) for d in (0, 1, 2**28 - 1) for f in folders for i in (0, 1, 2**32 - 1)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) == 0
    assert max(seeds) < 2**63
    with pytest.raises(SimoError, match="'validation'"):
        scene_seed(0, "validation", 0)


def test_taskonomy_targets_are_those_of_the_room():
    """Depth is logarithmic in steps of 1/512 m, and edges and keypoints come from the stored picture."""
    image = Image("train", 0, "", scene_seed(1, "train", 0))
    room, view = convert("nyuv2", (24, 24), image), convert("taskonomy", (24, 24), image)
    np.testing.assert_array_equal(view["image"], (255 * room["image"]).round())
    metres = np.expm1(view["depth_zbuffer"] / 65535 * np.log(2**16)) / 512
    np.testing.assert_allclose(metres, room["depth"], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(2 * (view["normal"] / 255) - 1, room["normal"], atol=1 / 255)
    edges = cues.edge_texture(view["image"] / 255)
    np.testing.assert_allclose(view["edge_texture"] / 65535, edges, atol=1e-5)


def test_edges_of_a_step():
    """A step of brightness h gives h / (σ √(2π)) at its place, by hand, and nothing far away."""
    image = np.zeros((21, 41, 3))
    image[:, 20:] = 0.4
    edges = cues.edge_texture(image)[10, :, 0] * cues.EDGE_FULL
    peak = 0.4 / (cues.EDGE_SIGMA * np.sqrt(2 * np.pi))
    # the step lies between two pixels, half a pixel from either
    expected = peak * np.exp(-0.125 / cues.EDGE_SIGMA**2)
    np.testing.assert_allclose(edges[19:21], expected, rtol=0.05)
    assert edges[:8].max() < 1e-6


def test_keypoints_are_blobs_of_either_sign():
    """Light and dark blobs answer alike, straight edges and flat parts not at all."""
    y, x = np.mgrid[:31, :31] - 15
    blob = 0.05 * np.exp(-(x**2 + y**2) / (2 * cues.KEYPOINT_SIGMA**2))
    light, dark = (cues.keypoints2d(np.repeat((0.5 + s * blob)[..., None], 3, 2))[..., 0] for s in (1, -1))
    np.testing.assert_allclose(light, dark, atol=5e-3)  # the filters are cut off at four sigma
    assert np.unravel_index(light.argmax(), light.shape) == (15, 15)
    edge = np.repeat(np.where(x > 0, 0.8, 0.2)[..., None], 3, 2)
    assert 100 * cues.keypoints2d(edge).max() < light.max()


def test_cues_do_not_depend_on_direction():
    """A picture turned by a right angle has its edges and keypoints turned with it."""
    image = np.random.default_rng(0).random((16, 16, 3))
    for cue in (cues.edge_texture, cues.keypoints2d):
        np.testing.assert_allclose(cue(np.rot90(image)), np.rot90(cue(image)), atol=1e-12)


def test_another_request_is_refused_or_replaced(prepared, tmp_path, capsys):
    """Protects a data set from being mixed with another one; `--replace` renders the new one instead."""
    out = shutil.copytree(prepared["nyuv2"][0], tmp_path / "copy")
    sizes = [word for name in ("train", "val", "test") for word in (f"--{name}", str(SMALL[name]))]
    command = ["nyuv2", "--out", str(out), *sizes, "--size", "16", "24", "--workers", "1", "--seed", "7"]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "'seed': 0" in message
    assert "'seed': 7" in message
    assert main([*command, "--replace"]) == 0
    assert json.loads((out / "prepared.json").read_text())["sha256"] != prepared["nyuv2"][1]["sha256"]


@pytest.mark.parametrize("dataset", DATASETS)
def test_complete_folder_is_left_alone(prepared, dataset, capsys):
    """Protects the reader's time: a second run renders nothing and says why."""
    out, record = prepared[dataset]
    assert write(dataset, out, **SMALL, replace=True) == record
    assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"train": 0}, {"size": (4, 64)}, {"workers": -1}, {"seed": -1}])
def test_impossible_requests_are_refused(tmp_path, wrong):
    """Protects from empty splits and from an error deep in the renderer; nothing is written."""
    with pytest.raises(SimoError):
        write("nyuv2", tmp_path / "new", **(SMALL | wrong))
    assert not (tmp_path / "new").exists()


def test_workers_and_folder_do_not_matter(prepared, tmp_path):
    """Protects reproducibility: two processes and a path with a space write what one process writes."""
    again = write("cityscapes", tmp_path / "a b" / "city", **(SMALL | {"workers": 2}))
    assert again == prepared["cityscapes"][1]
