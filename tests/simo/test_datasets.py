"""simo.datasets: reads what was written, moves image and targets together, resumes batches."""

import itertools
import shutil

import numpy as np
import pytest
import torch

from simo.datasets import (
    PreparedDataset,
    ShuffledBatches,
    _as_values,
    augment,
    evaluation_batches,
    read_prepared,
    read_split,
    training_batches,
)
from simo.errors import SimoError
from simo.tasks import tasks_of

SCALES = (1.0, 1.2, 1.5)
HEIGHT, WIDTH = 20, 24


@pytest.fixture
def sample():
    """A sample whose image and targets all tell where a pixel came from: red its column, green its row."""
    row, column = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return {
        "image": torch.stack([column / WIDTH, row / HEIGHT, 0 * row]),
        "segmentation": torch.where(column % 2 == 0, column // 2, -1),
        "depth": (1.0 + row)[None],
        "normals": torch.stack([1.0 + column, 1.0 + row, 1.0 + 0 * row]),
    }


def augmented(sample, tasks, key, scales=SCALES, crop=(12, 16)):
    return augment(sample, tasks, scales, crop, torch.Generator().manual_seed(key))


def test_layout_is_read_back_exactly(nyuv2, tasks):
    """Protects the prepared layout: names, axes and values of image and targets arrive unchanged."""
    dataset = PreparedDataset(nyuv2, "nyuv2", "test")
    assert dataset.names == ["val/4", "val/5", "val/6"]
    assert dataset.size == (16, 16)
    read = dataset[1]
    for name, folder in {"image": "image", **{task.name: task.folder for task in tasks}}.items():
        stored = np.load(nyuv2 / "val" / folder / "5.npy")
        np.testing.assert_array_equal(np.moveaxis(stored, -1, 0) if stored.ndim == 3 else stored, read[name])
        assert read[name].dtype == (torch.int64 if name == "segmentation" else torch.float32)


def test_only_the_targets_of_the_tasks_are_read(nyuv2, tmp_path):
    """An expert trains without other tasks' labels, even where there are none on the disk."""
    copy = shutil.copytree(nyuv2, tmp_path / "copy")
    for folder in ("label", "normal"):
        shutil.rmtree(copy / "train" / folder)
    assert PreparedDataset(copy, "nyuv2", "train", ["depth"])[0].keys() == {"image", "depth"}


def test_splits_are_disjoint_as_written(nyuv2):
    """Every image of the folders is in exactly one split."""
    names = {split: read_split(nyuv2, split) for split in ("train", "val", "test")}
    assert {split: len(of_split) for split, of_split in names.items()} == {"train": 5, "val": 4, "test": 3}
    assert len(set(itertools.chain(*names.values()))) == 12


def test_folder_with_a_space_works(nyuv2, tmp_path):
    """Users keep data below names such as `My Drive`."""
    copy = shutil.copytree(nyuv2, tmp_path / "my data ä")
    assert len(PreparedDataset(str(copy), "nyuv2", "val")[0]) == 4


def test_no_augmentation_without_key(nyuv2):
    """Evaluation reads images as they are stored, even from a data set made for training."""
    plain = PreparedDataset(nyuv2, "nyuv2", "train")
    training = PreparedDataset(nyuv2, "nyuv2", "train", scales=SCALES, crop=(8, 8))
    assert all(torch.equal(plain[2][name], training[2][name]) for name in plain[2])
    assert all(torch.equal(plain[2][name], plain[2, 7][name]) for name in plain[2])
    assert training[2, 7]["image"].shape == (3, 8, 8)


def test_augmentation_depends_on_the_key_alone(nyuv2):
    """A resumed training sees the very same images, whatever was drawn before."""
    dataset = PreparedDataset(nyuv2, "nyuv2", "train", scales=SCALES, crop=(8, 8))
    first = dataset[2, 7]
    torch.manual_seed(5)
    dataset[1, 8]
    again = dataset[2, 7]
    assert all(torch.equal(first[name], again[name]) for name in first)
    images = [dataset[2, key]["image"] for key in range(8)]
    assert any(not torch.equal(images[0], image) for image in images)


def test_augmentation_changes_nothing_in_place(sample, tasks):
    """A sample that is kept in memory is the same for the next epoch."""
    before = {name: tensor.clone() for name, tensor in sample.items()}
    for key in range(6):
        augmented(sample, tasks, key)
    assert all(torch.equal(before[name], sample[name]) for name in before)


def test_image_and_targets_stay_registered(sample, tasks):
    """After scaling, crop and flip, each pixel's targets still come from where its colour comes from."""
    seen = set()
    for key in range(60):
        moved = augmented(sample, tasks, key)
        red, green, _ = moved["image"]
        flip = red[0, 0] > red[0, -1]
        rows = {s: s * moved["depth"][0] for s in SCALES}
        scale = next(s for s in SCALES if torch.allclose(rows[s], rows[s].round()))
        seen.add((scale, bool(flip)))
        column, row = WIDTH * red, HEIGHT * green
        near = {"atol": 1e-4 if scale == 1 else 0.51, "rtol": 0}
        torch.testing.assert_close(rows[scale], 1 + row, **near)
        x, y, z = moved["normals"]
        torch.testing.assert_close(-x if flip else x, 1 + column, **near)
        torch.testing.assert_close(y, 1 + row, **near)
        assert (z == 1).all()
        labelled = moved["segmentation"] != -1
        assert labelled.any()
        torch.testing.assert_close(2.0 * moved["segmentation"][labelled], column[labelled], **near)
    assert seen == set(itertools.product(SCALES, (False, True)))


def test_targets_are_never_interpolated(sample, tasks):
    """Scaling makes no class, depth or normal that was not there: no mean of bed and floor."""
    for key in range(20):
        moved = augmented(sample, tasks, key, scales=(1.5,))
        assert moved["segmentation"].dtype == torch.int64
        for name, factor in {"segmentation": 1, "depth": 1.5**-1, "normals": 1}.items():
            original = (sample[name] * factor).abs().unique()
            assert torch.isin(moved[name].abs(), original).all()


def test_depth_is_divided_by_the_scale(sample, tasks):
    """An image enlarged by 1.5 looks taken from nearer by 1.5; no depth stays no depth."""
    sample["depth"][:] = 3.0
    sample["depth"][:, ::2] = 0.0
    assert augmented(sample, tasks, 0, scales=(1.5,))["depth"].unique().tolist() == [0, 2]


def test_flip_is_an_involution(sample, tasks):
    """A flip mirrors everything and negates the normals' x only; scale 1 and a full crop do nothing."""
    flips = 0
    for key in range(20):
        moved = augmented(sample, tasks, key, scales=(1.0,), crop=(HEIGHT, WIDTH))
        if not torch.equal(moved["image"], sample["image"]):
            flips += 1
            back = {name: tensor.flip(-1) for name, tensor in moved.items()}
            back["normals"][0] *= -1
            assert all(torch.equal(back[name], sample[name]) for name in sample)
    assert 4 < flips < 16


def test_crop_reaches_every_place(sample, tasks):
    """Crops start anywhere that fits, the last row and column included."""
    corners = set()
    for key in range(200):
        image = augmented(sample, tasks, key, scales=(1.0,), crop=(HEIGHT - 1, WIDTH - 2))["image"]
        corners.add((round(HEIGHT * image[1].min().item()), round(WIDTH * image[0].min().item())))
    assert corners == set(itertools.product(range(2), range(3)))


def test_crop_that_does_not_fit_is_refused(nyuv2):
    """The message names the crop and the size of the scaled image."""
    dataset = PreparedDataset(nyuv2, "nyuv2", "train", scales=(1.0,), crop=(16, 17))
    with pytest.raises(
        SimoError, match=r"crop is \(16, 17\): expected at most the scaled image's size, 16×16"
    ):
        dataset[0, 0]


def test_crop_without_augmentation_is_refused(nyuv2):
    """Images are cut when they are augmented only: whole ones would come instead, and nothing be said."""
    with pytest.raises(SimoError, match=r"crop is \(8, 8\): expected None without scales"):
        PreparedDataset(nyuv2, "nyuv2", "train", crop=(8, 8))


def test_enlarging_is_refused_where_no_rule_gives_the_targets(taskonomy):
    """A detector's responses, or a depth's logarithm, on an enlarged image are not the old ones enlarged."""
    with pytest.raises(SimoError, match=r"scales is .*1.5.*: expected \[1.0\].*'edges', 'keypoints'"):
        PreparedDataset(taskonomy, "taskonomy", "train", scales=(1.0, 1.5))
    flipped = PreparedDataset(taskonomy, "taskonomy", "train", scales=(1.0,))  # crops whole images
    assert flipped[0, 1]["image"].shape == flipped[0]["image"].shape
    PreparedDataset(taskonomy, "taskonomy", "train", ["normals"], scales=(1.5,))


def test_every_epoch_is_a_permutation():
    """Each image is seen once an epoch, though batches run across its end; epochs differ."""
    batches = list(ShuffledBatches(length=10, batch_size=4, start=0, stop=15, seed=3))
    assert [len(batch) for batch in batches] == [4] * 15
    flat = [index for batch in batches for index, _ in batch]
    epochs = [flat[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 6


def test_every_sample_has_its_own_augmentation():
    """No key repeats within a training or between the trainings of a few seeds."""
    keys = [key for seed in range(3) for batch in ShuffledBatches(10, 16, 0, 1000, seed) for _, key in batch]
    assert len({key % 2**32 for key in keys}) == len(keys) == 48_000  # torch's generator reads 32 bits


@pytest.mark.parametrize("start", range(9))
def test_batches_resume_from_any_step(start):
    """A training continued at a step sees the batches that an uninterrupted one would have seen."""
    whole = list(ShuffledBatches(7, 3, 0, 9, seed=1))
    resumed = ShuffledBatches(7, 3, start, 9, seed=1)
    assert list(resumed) == whole[start:]
    assert len(resumed) == 9 - start


def test_seeds_give_different_orders():
    """Seeds are repetitions only if they differ, in every epoch from every other."""
    orders = [
        str([i for i, _ in batch]) for seed in range(5) for batch in ShuffledBatches(20, 20, 0, 5, seed)
    ]
    assert len(set(orders)) == 25


def test_training_batches_are_those_of_the_sampler(nyuv2):
    """The loader hands index and key to the data set and stacks what it gets."""
    dataset = PreparedDataset(nyuv2, "nyuv2", "train", scales=SCALES, crop=(8, 8))
    (plan,) = ShuffledBatches(len(dataset), 4, 3, 4, seed=2)
    (batch,) = training_batches(dataset, 4, 3, 4, seed=2)
    for name, tensor in batch.items():
        assert torch.equal(tensor, torch.stack([dataset[item][name] for item in plan]))


def test_evaluation_batches_keep_the_order(val):
    """Each image of the split once, in order, the last batch smaller."""
    batches = list(evaluation_batches(val, 3))
    assert [len(batch["image"]) for batch in batches] == [3, 1]
    images = torch.cat([batch["image"] for batch in batches])
    assert torch.equal(images, torch.stack([val[i]["image"] for i in range(4)]))


def save(path, change):
    np.save(path, change(np.load(path)))


def out_of_range(array):
    array[0, 0] = 13
    return array


def not_a_number(array):
    array[0, 0] = np.nan
    return array


BAD = {
    "missing folder": (shutil.rmtree, "data folder .* does not exist"),
    "half prepared": (lambda root: shutil.rmtree(root / "splits"), r"val.txt does not exist.*make data"),
    "empty split": (
        lambda root: (root / "splits/val.txt").write_text("\n"),
        "the number of images in .*val.txt is 0: expected some",
    ),
    "missing file": (lambda root: (root / "val/depth/1.npy").unlink(), r"depth.1.npy is missing"),
    "truncated": (
        lambda root: (root / "val/depth/1.npy").write_bytes((root / "val/depth/1.npy").read_bytes()[:300]),
        r"depth.1.npy cannot be decoded",
    ),
    "empty file": (
        lambda root: (root / "val/image/1.npy").write_bytes(b""),
        r"image.1.npy cannot be decoded",
    ),
    "pickled": (
        lambda root: np.save(root / "val/label/1.npy", np.array([{}]), allow_pickle=True),
        r"label.1.npy cannot be decoded",
    ),
    "label": (
        lambda root: save(root / "val/label/1.npy", out_of_range),
        r"label.1.npy.* to 12, found -1 to 13",
    ),
    "NaN": (
        lambda root: save(root / "val/depth/1.npy", not_a_number),
        r"depth.1.npy.*finite values, found 1",
    ),
    "smaller image": (
        lambda root: save(root / "val/image/1.npy", lambda x: x[:12]),
        r"image.1.npy: expected an image of 16×16×3 .*found 12×16×3",
    ),
    "grey image": (
        lambda root: save(root / "val/image/1.npy", lambda x: x[..., 0]),
        r"image.1.npy: expected an image of 16×16×3 .*found 16×16",
    ),
    "bytes": (
        lambda root: save(root / "val/image/1.npy", lambda x: (255 * x).astype(np.int16)),
        r"image.1.npy: expected values in \[0, 1\], found .* to 25",
    ),
    "NaN in image": (lambda root: save(root / "val/image/1.npy", not_a_number), r"image.1.npy: .*\[0, 1\]"),
    "smaller target": (
        lambda root: save(root / "val/normal/1.npy", lambda x: x[:, :10]),
        r"normal.1.npy: expected a target of 16×16 .*found 16×10",
    ),
    "channels": (
        lambda root: save(root / "val/normal/1.npy", lambda x: x[..., :2]),
        r"normal.1.npy: task normals expects 3 channels, found 2",
    ),
}


def test_unsigned_integers_are_fractions(nyuv2, tmp_path):
    """Protects the fixed-point rule: bytes stand for value / 255, whatever the data set."""
    root = shutil.copytree(nyuv2, tmp_path / "copy")
    numbers = np.arange(16 * 16 * 3, dtype=np.uint16).reshape(16, 16, 3)
    save(root / "val/image/0.npy", lambda _: (numbers % 256).astype(np.uint8))
    image = PreparedDataset(root, "nyuv2", "val")[0]["image"]
    torch.testing.assert_close(image, torch.from_numpy(numbers % 256 / 255).movedim(-1, 0).float())


@pytest.fixture
def taskonomy(tmp_path):
    """One prepared Taskonomy view of 2×2 pixels, the last of which has no ground truth."""
    fields = {
        "image": np.array([0, 51, 255], np.uint8),
        "depth_zbuffer": np.array([13107], np.uint16),
        "normal": np.array([255, 0, 51], np.uint8),
        "edge_texture": np.array([0], np.uint16),
        "keypoints2d": np.array([65535], np.uint16),
    }
    arrays = {name: np.broadcast_to(value, (2, 2, len(value))) for name, value in fields.items()}
    arrays["segment_semantic"] = np.full((2, 2), 7, np.int8)
    arrays["mask_valid"] = np.array([[1, 1], [1, 0]], np.uint8)
    for name, array in arrays.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        np.save(tmp_path / "train" / name / "0.npy", array)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("train/0\n")
    return tmp_path


def test_taskonomy_ranges_and_mask(taskonomy):
    """Protects the value ranges of Taskonomy, [-1, 1] but for depth, and its mask: 0 is not known."""
    sample = PreparedDataset(taskonomy, "taskonomy", "train")[0]
    expected = {
        "autoencoder": [-1.0, -0.6, 1.0],
        "depth": [0.2],
        "normals": [1.0, -1.0, -0.6],
        "edges": [-1.0],
        "keypoints": [1.0],
    }
    assert sample.keys() == {"image", *expected}
    for name, values in expected.items():
        torch.testing.assert_close(sample[name][:, 0, 0], torch.tensor(values))
        assert sample[name][:, 1, 1].tolist() == [0.0] * len(values)
        assert (sample[name].flatten(1)[:, :3] != 0).any(dim=0).all()
    torch.testing.assert_close(sample["image"][:, 1, 1], torch.tensor([0.0, 0.2, 1.0]))


def test_what_the_mask_calls_unknown_may_be_anything(taskonomy):
    """Depth of -1 is a common mark beside a mask; without it, such a value is refused."""
    path = taskonomy / "train/depth_zbuffer/0.npy"
    np.save(path, np.array([[[0.5], [2.0]], [[0.5], [-1.0]]], np.float32))
    assert PreparedDataset(taskonomy, "taskonomy", "train")[0]["depth"].flatten().tolist() == [0.5, 2, 0.5, 0]
    np.save(path, np.array([[[-1.0], [2.0]], [[0.5], [0.5]]], np.float32))
    with pytest.raises(SimoError, match=r"task depth expects values of 0 \(no truth\) or more, found -1"):
        PreparedDataset(taskonomy, "taskonomy", "train")[0]


def test_additional_task_is_read_on_request(taskonomy):
    """Protects the released code's semantic task: there by name, not among the paper's five."""
    sample = PreparedDataset(taskonomy, "taskonomy", "train", ["semantics"])[0]
    assert sample["semantics"].tolist() == [[7, 7], [7, -1]]


def test_centred_fraction_is_never_taken_for_missing():
    """No fixed-point fraction maps to exactly 0 in [-1, 1], where 0 means that there is no ground truth."""
    for kind in (np.uint8, np.uint16):
        every = np.arange(np.iinfo(kind).max + 1).astype(kind)[:, None, None]
        assert (2 * _as_values(every) - 1 != 0).all()


def test_disparity_grows_with_the_scale(sample, tasks):
    """An image enlarged by 1.5 looks taken from nearer, so disparity, 1 / depth, is 1.5 times as large."""
    (disparity,) = tasks_of("cityscapes", ["disparity"])
    sample = {"image": sample["image"], "disparity": torch.full((1, HEIGHT, WIDTH), 0.25)}
    generator = torch.Generator().manual_seed(0)
    moved = augment(sample, [disparity], (1.5,), (HEIGHT, WIDTH), generator)
    assert moved["disparity"].unique().tolist() == [0.375]


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_refused(nyuv2, tmp_path, name):
    """Each kind of damage is refused; the message names the file, what was expected and what was found."""
    damage, message = BAD[name]
    root = shutil.copytree(nyuv2, tmp_path / "copy")
    damage(root)
    with pytest.raises(SimoError, match=message):
        list(PreparedDataset(root, "nyuv2", "val"))


def test_unknown_split_is_refused(nyuv2):
    """The message lists the splits that there are."""
    with pytest.raises(SimoError, match="unknown split 'validation': expected one of .*'val'"):
        PreparedDataset(nyuv2, "nyuv2", "validation")


def test_what_was_prepared_needs_a_finished_preparation(nyuv2, tmp_path):
    """Results are keyed by the hash that a preparation writes last, never by a half-written folder."""
    assert read_prepared(nyuv2)["sha256"] == "0" * 64
    with pytest.raises(SimoError, match="prepared.json does not exist.*not prepared to the end"):
        read_prepared(tmp_path)


def test_samples_are_nested(nyuv2):
    """A larger random part holds the smaller one of the same seed, so that curves over sizes compare."""
    val = PreparedDataset(nyuv2, "nyuv2", "val")
    names = [val.sample(count, seed=3).names for count in (1, 2, 4)]
    assert names[0] == names[1][:1]
    assert names[1] == names[2][:2]
    assert sorted(names[2]) == sorted(val.names)
    with pytest.raises(SimoError, match="count is 5: expected 1 to 4 images of val"):
        val.sample(5, seed=3)


def test_rest_and_sample_make_the_split(nyuv2):
    """What is without a part has every other image once, in the split's order; the split stays as it is."""
    val = PreparedDataset(nyuv2, "nyuv2", "val")
    part = val.sample(3, seed=3)
    rest = val.without(part)
    assert rest.names == [name for name in val.names if name not in part.names]
    assert (len(part), len(rest), len(val)) == (3, 1, 4)


def test_splits_can_be_joined(nyuv2):
    """`train+val` holds the images of both, in order; an unknown part is refused as ever."""
    joined = PreparedDataset(nyuv2, "nyuv2", "train+val")
    parts = [PreparedDataset(nyuv2, "nyuv2", split).names for split in ("train", "val")]
    assert joined.names == parts[0] + parts[1]
    with pytest.raises(SimoError, match="unknown split 'tset'"):
        PreparedDataset(nyuv2, "nyuv2", "train+tset")
