"""simo.tasks: losses against numbers computed by hand, and which pixels count."""

import math

import pytest
import torch
import torch.nn.functional as F

from simo.errors import SimoError
from simo.tasks import TASKS, tasks_of, valid_pixels

SEGMENTATION, DEPTH, NORMALS = TASKS["nyuv2"]
CE = "cross_entropy"


def maps(*rows):
    """A `(1, C, 1, W)` tensor from one row of W values a channel."""
    return torch.tensor(rows)[None, :, None, :]


def test_tasks_are_the_papers():
    """Protects channels, metrics and directions of NYUv2, on which every number depends."""
    assert [(t.name, t.channels, t.metric, t.higher_is_better) for t in TASKS["nyuv2"]] == [
        ("segmentation", 13, "mIoU", True),
        ("depth", 1, "aErr", False),
        ("normals", 3, "mDist", False),
    ]
    assert [(t.name, t.channels, t.metric, t.higher_is_better) for t in TASKS["cityscapes"]] == [
        ("segmentation", 19, "mIoU", True),
        ("parts", 10, "mIoU", True),
        ("disparity", 1, "aErr", False),
    ]
    assert [(t.name, t.channels, t.metric, t.higher_is_better) for t in TASKS["taskonomy"]] == [
        ("autoencoder", 3, "aErr", False),
        ("depth", 1, "aErr", False),
        ("normals", 3, "aErr", False),
        ("edges", 1, "aErr", False),
        ("keypoints", 1, "aErr", False),
    ]
    for task in TASKS["nyuv2"] + TASKS["cityscapes"]:
        assert len(set(task.classes)) == (task.channels if task.is_segmentation else 0)
    assert [t.is_segmentation for t in TASKS["nyuv2"]] == [True, False, False]


@pytest.mark.parametrize(
    ("dataset", "rules"),
    [
        (
            "nyuv2",
            [("label", CE, 0, 0, 0, 0), ("depth", "l1", 1, 0, -1, 0), ("normal", "cosine", 0, 0, 0, 1)],
        ),
        (
            "cityscapes",
            [("label_19", CE, 0, 0, 0, 0), ("part_seg", CE, 0, 0, 0, 0), ("depth", "l1", 1, 0, 1, 0)],
        ),
        (
            "taskonomy",
            [
                ("image", "l1", 0, 1, 0, 0),
                ("depth_zbuffer", "l1", 1, 0, None, 0),
                ("normal", "l1", 0, 1, 0, 1),
                ("edge_texture", "l1", 0, 1, None, 0),
                ("keypoints2d", "l1", 0, 1, None, 0),
            ],
        ),
    ],
)
def test_targets_are_read_and_trained_as_they_are_stored(dataset, rules):
    """File, loss, what is clamped at 0 or lies in [-1, 1], what enlarging and mirroring an image change."""
    found = [(t.folder, t.loss, t.non_negative, t.centred, t.zoom, t.flips_x) for t in TASKS[dataset]]
    assert found == rules


def test_cross_entropy_by_hand():
    """Labelled pixels alone make the mean: 13 equal scores cost log 13, one larger by log 3 costs log 5."""
    prediction = torch.zeros(1, 13, 1, 3)
    prediction[0, 4, 0, 1] = math.log(3)
    prediction[0, 0, 0, 2] = 100.0
    target = torch.tensor([[[2, 4, -1]]])
    expected = (math.log(13) + math.log(15 / 3)) / 2
    assert SEGMENTATION.compute_loss(prediction, target).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_equals_torch_mean():
    """Agrees with torch's own mean over pixels that are not ignored."""
    prediction, target = torch.randn(2, 13, 5, 4), torch.randint(-1, 13, (2, 5, 4))
    expected = F.cross_entropy(prediction, target, ignore_index=-1)
    torch.testing.assert_close(SEGMENTATION.compute_loss(prediction, target), expected)


def test_l1_of_three_channels():
    """Errors of 0, 1 and 5 in a pixel's channels are a loss of 2: Taskonomy's normals and autoencoder."""
    normals = next(task for task in TASKS["taskonomy"] if task.name == "normals")
    assert normals.compute_loss(maps([1.0], [2.0], [6.0]), maps([1.0], [1.0], [1.0])).item() == 2


def test_l1_by_hand():
    """Depth 0 is no ground truth: errors 1 and 0.5 at two valid pixels, whatever stands at the third."""
    loss = DEPTH.compute_loss(maps([1.0, 2.5, 70.0]), maps([2.0, 2.0, 0.0]))
    assert loss.item() == 0.75


def test_cosine_by_hand():
    """Angles 90°, 60° and 0° cost 1, 0.5 and 0, at any length of prediction; the zero normal is ignored."""
    prediction = maps([5.0, 0.5, 0.0, 9.0], [0.0, math.sqrt(0.75), 0.0, 9.0], [0.0, 0.0, 0.01, 9.0])
    target = maps([0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0])
    assert NORMALS.compute_loss(prediction, target).item() == pytest.approx(0.5, abs=1e-6)


def test_normal_with_a_zero_component_counts():
    """Only the zero vector is ignored, not a normal that lies in a coordinate plane."""
    target = maps([0.0, 0.0], [-1.0, 0.0], [1.0, 0.0])
    assert valid_pixels(target).tolist() == [[[True, False]]]


@pytest.mark.parametrize("task", TASKS["nyuv2"], ids=lambda task: task.name)
def test_batch_without_ground_truth(task):
    """A batch in which every pixel is ignored costs 0 and moves no weight, and divides nothing by 0."""
    prediction = torch.randn(2, task.channels, 3, 3, requires_grad=True)
    shape = (2, 3, 3) if task.is_segmentation else prediction.shape
    target = torch.full(shape, -1) if task.is_segmentation else torch.zeros(shape)
    loss = task.compute_loss(prediction, target)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad.abs().max().item() == 0


@pytest.mark.parametrize("task", TASKS["nyuv2"], ids=lambda task: task.name)
def test_ignored_pixels_get_no_gradient(task):
    """The gradient lives on valid pixels only, and is finite even where the prediction is the zero vector."""
    prediction = torch.randn(1, task.channels, 1, 3)
    prediction[..., 1] = 0
    prediction.requires_grad_(True)
    target = torch.ones(1, 1, 3, dtype=torch.long) if task.is_segmentation else torch.ones(prediction.shape)
    target[..., 2] = -1 if task.is_segmentation else 0
    task.compute_loss(prediction, target).backward()
    gradient = prediction.grad.abs().sum(1)[0, 0]
    assert torch.isfinite(gradient).all()
    assert gradient[0] > 0
    assert gradient[2] == 0


def test_half_precision_prediction_is_accepted():
    """A prediction of mixed-precision training is compared in float32."""
    prediction, target = torch.randn(1, 13, 4, 4).bfloat16(), torch.randint(0, 13, (1, 4, 4))
    loss = SEGMENTATION.compute_loss(prediction, target)
    torch.testing.assert_close(loss, F.cross_entropy(prediction.float(), target))


def test_prediction_of_another_shape_is_refused():
    """L1 would broadcast `(B, 1, H, W)` against three channels and train on nonsense."""
    with pytest.raises(SimoError, match=r"the prediction is \(2, 1, 4, 4\): expected \(2, 3, 4, 4\)"):
        NORMALS.compute_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("task", "target"), [(DEPTH, (2, 4, 4)), (NORMALS, (2, 1, 4, 4)), (SEGMENTATION, (2, 1, 4, 4))]
)
def test_target_of_another_shape_is_refused(task, target):
    """Depth without its channel would compare every image with every other."""
    with pytest.raises(SimoError, match=rf"{task.name}: the shape of the target is \({str(target)[1:-1]}\)"):
        task.compute_loss(torch.zeros(2, task.channels, 4, 4), torch.ones(target))


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        (SEGMENTATION, torch.tensor([[0, 13]]), "segmentation expects classes -1 .* to 12, found 0 to 13"),
        (SEGMENTATION, torch.tensor([[-2, 3]]), "found -2 to 3"),
        (DEPTH, torch.zeros(2, 4, 4), "depth expects 1 channels, found 2"),
        (DEPTH, torch.tensor([[[1.0, math.nan, math.inf]]]), "depth expects finite values, found 2"),
    ],
)
def test_unusable_target_is_refused(task, target, message):
    """The message names the file, the task, what was expected and what was found."""
    with pytest.raises(SimoError, match=f"file.npy.*{message}"):
        task.check_target(target, "file.npy")


def test_negative_truth_of_what_heads_clamp_is_refused():
    """Depth below 0 is a mark of some data sets for pixels without truth; as truth no head could reach it."""
    target = torch.tensor([[[0.0, -1.0]]])
    with pytest.raises(
        SimoError, match=r"file.npy: task depth expects values of 0 \(no truth\) or more, found -1"
    ):
        DEPTH.check_target(target, "file.npy")
    NORMALS.check_target(target.expand(3, 1, 2), "file.npy")


@pytest.mark.parametrize("task", TASKS["nyuv2"], ids=lambda task: task.name)
def test_usable_target_is_accepted(task):
    """Both ends of the allowed range pass: ignored and last class, zero and large values."""
    task.check_target(
        torch.tensor([[-1, 12]]) if task.is_segmentation else torch.zeros(task.channels, 2, 2), ""
    )


def test_tasks_of_keeps_the_papers_order():
    """The order of tables and figures does not depend on how tasks were asked for."""
    assert tasks_of("nyuv2") == TASKS["nyuv2"]
    assert tasks_of("nyuv2", ["normals", "segmentation"]) == (SEGMENTATION, NORMALS)


@pytest.mark.parametrize(("dataset", "names"), [("nyu", None), ("nyuv2", ["depth", "dept"])])
def test_unknown_names_are_refused(dataset, names):
    """A misspelt data set or task is answered with the known ones."""
    with pytest.raises(SimoError, match="expected one of .*(nyuv2|'depth', 'normals')"):
        tasks_of(dataset, names)
