"""simo.metrics: pooled metrics against numpy over all pixels, and both Δ by hand."""

import numpy as np
import pytest
import torch

from simo.errors import SimoError
from simo.metrics import AbsoluteError, AngularError, MeanIoU, create_metric
from simo.performance import delta_formula, delta_printed
from simo.performance import normalised_performance as normalised
from simo.tasks import TASKS

SEGMENTATION, DEPTH, NORMALS = TASKS["nyuv2"]


def by_task(values):
    return dict(zip(("segmentation", "depth", "normals"), values, strict=False))


def one_pixel(metric, prediction, target):
    """The metric of a single pixel."""
    metric.update(torch.tensor(prediction).view(1, -1, 1, 1), torch.tensor(target).view(1, -1, 1, 1))
    return metric.compute().item()


def numpy_miou(scores, target, channels):
    """Independent mIoU: loops over classes on all pixels at once."""
    predicted = scores.argmax(1)[target != -1]
    target = target[target != -1]
    ious = []
    for c in range(channels):
        union = ((predicted == c) | (target == c)).sum()
        if union:
            ious.append(((predicted == c) & (target == c)).sum() / union)
    return 100 * np.mean(ious)


@pytest.fixture
def batches():
    """Two batches of unequal size and content: classes 0 to 3 of 13, some pixels ignored."""
    generator = torch.Generator().manual_seed(1)
    result = []
    for count, classes in ((3, 4), (1, 2)):
        target = torch.randint(-1, classes, (count, 6, 5), generator=generator)
        scores = torch.randn(count, 13, 6, 5, generator=generator)
        scores[:, :4] += 2
        scores[:, 7:] = -9
        result.append((scores, target))
    return result


def test_miou_is_pooled_over_batches(batches):
    """The mIoU of a split is that of all its pixels at once, not the mean of its batches' mIoU."""
    metric = MeanIoU(13)
    for scores, target in batches:
        metric.update(scores, target)
    scores = np.concatenate([s.numpy() for s, _ in batches])
    target = np.concatenate([t.numpy() for _, t in batches])
    pooled = numpy_miou(scores, target, 13)
    of_batches = np.mean([numpy_miou(s.numpy(), t.numpy(), 13) for s, t in batches])
    assert metric.compute().item() == pytest.approx(pooled, rel=1e-12)
    assert abs(pooled - of_batches) > 0.5


def test_miou_by_hand():
    """IoU 1/3, 1/2 and 0; class 2 occurs in the prediction only and counts, class 3 nowhere and does not."""
    scores = torch.nn.functional.one_hot(torch.tensor([[[0, 0, 1, 2, 3]]]), 4).movedim(-1, 1).float()
    metric = MeanIoU(4)
    metric.update(scores, torch.tensor([[[0, 1, 1, 0, -1]]]))
    assert metric.compute().item() == pytest.approx(100 * (1 / 3 + 1 / 2 + 0) / 3)


def test_perfect_prediction_of_few_classes_is_100():
    """Absent classes neither lower the mean nor turn it into NaN."""
    target = torch.tensor([[[5, 5, -1]]])
    metric = MeanIoU(13)
    metric.update(torch.nn.functional.one_hot(target.clamp(min=0), 13).movedim(-1, 1).float(), target)
    assert metric.compute().item() == 100


def test_absolute_error_is_pooled_over_pixels():
    """Batches with one and three valid pixels weigh 1 and 3, not 1 and 1 as images or batches would."""
    metric = AbsoluteError(1)
    metric.update(torch.full((1, 1, 1, 3), 5.0), torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 1, 3))
    metric.update(torch.full((1, 1, 1, 3), 5.0), torch.tensor([5.0, 5.0, 4.0]).view(1, 1, 1, 3))
    assert metric.compute().item() == (4 + 0 + 0 + 1) / 4


def test_absolute_error_does_not_lose_small_terms():
    """A million small errors after large ones are not swallowed by float32 rounding."""
    metric = AbsoluteError(1)
    target = torch.full((1, 1, 1000, 1000), 2.0)
    metric.update(target + 1000, target)
    for _ in range(3):
        metric.update(target + 2**-12, target)
    assert metric.compute().item() == pytest.approx((1000 + 3 * 2**-12) / 4, rel=1e-12)


@pytest.mark.parametrize(
    ("prediction", "target", "degrees"),
    [
        ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], 90),
        ([3.0, 3.0, 0.0], [1.0, 0.0, 0.0], 45),
        ([0.0, 0.0, -0.2], [0.0, 0.0, 1.0], 180),
        ([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], 0),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 1.0], 90),
    ],
)
def test_angular_error_by_hand(prediction, target, degrees):
    """Angles do not depend on the length of prediction or target; a zero prediction is 90° off."""
    assert one_pixel(AngularError(3), prediction, target) == pytest.approx(degrees, abs=1e-5)


def test_angular_error_equals_numpy():
    """Agrees with numpy's arc tangent of cross and dot product, pooled over batches, zero normals ignored."""
    generator = torch.Generator().manual_seed(0)
    metric, angles = AngularError(3), []
    for count in (2, 5):
        prediction, target = torch.randn(2, count, 3, 4, 4, generator=generator)
        target[:, :, 0] = 0
        metric.update(prediction, target)
        a, b = (x.movedim(1, -1)[:, 1:].reshape(-1, 3).double().numpy() for x in (prediction, target))
        cross = np.linalg.norm(np.cross(a, b), axis=1)
        angles.append(np.degrees(np.arctan2(cross, (a * b).sum(1))))
    assert metric.compute().item() == pytest.approx(np.concatenate(angles).mean(), rel=1e-9)


@pytest.mark.parametrize("task", TASKS["nyuv2"], ids=lambda task: task.name)
def test_no_ground_truth_at_all_is_refused(task):
    """A split without any valid pixel gives an error, not NaN and not 0."""
    metric = create_metric(task)
    shape = (1, 2, 2) if task.is_segmentation else (1, task.channels, 2, 2)
    metric.update(torch.randn(1, task.channels, 2, 2), torch.full(shape, -1 if task.is_segmentation else 0))
    with pytest.raises(SimoError, match="number of (labelled|valid) pixels is 0: expected some"):
        metric.compute()


def test_each_task_gets_its_metric():
    """The paper's mIoU, aErr and mDist belong to segmentation, depth and normals."""
    assert [type(create_metric(task)) for task in TASKS["nyuv2"]] == [MeanIoU, AbsoluteError, AngularError]


def test_normalised_performance_by_hand():
    """Higher is better: M/b. Errors: b/M, so that 1 is the expert and less is worse in both."""
    assert normalised(SEGMENTATION, 30.0, 60.0) == 0.5
    assert normalised(DEPTH, 0.4, 0.1) == pytest.approx(0.25)


def test_channels_of_a_pixel_are_averaged():
    """Errors of 0, 1 and 5 in a pixel's three channels are one error of 2."""
    assert one_pixel(AbsoluteError(3), [1.0, 2.0, 6.0], [1.0, 1.0, 1.0]) == 2


@pytest.mark.parametrize("task", TASKS["nyuv2"], ids=lambda task: task.name)
def test_a_prediction_that_is_nan_is_refused(task):
    """A model that diverged has no score."""
    target = torch.ones(1, *(() if task.is_segmentation else (task.channels,)), 2, 2)
    prediction = torch.zeros(1, task.channels, 2, 2)
    prediction[0, 0, 0, 0] = torch.nan
    with pytest.raises(SimoError, match="found 1 NaN"):
        create_metric(task).update(prediction, target.long() if task.is_segmentation else target)


def test_performance_relative_to_nothing_is_finite():
    """A rehearsal's expert may get no pixel right: 0 relative to 0 is 1, and more is more, not an error."""
    values, baselines = by_task([0.0, 0.1, 18.0]), by_task([0.0, 0.1, 18.0])
    assert normalised(SEGMENTATION, 0.0, 0.0) == 1
    assert normalised(SEGMENTATION, 1e-5, 0.0) == pytest.approx(10)
    assert normalised(DEPTH, 0.0, 0.5) > 1e5
    assert delta_printed(TASKS["nyuv2"], values, baselines) == 0
    assert delta_formula(TASKS["nyuv2"], values, baselines) == 0


def test_both_deltas_by_hand():
    """Half the mIoU, four times the error, no change: -41.7 as printed, -116.7 by the formula."""
    values = by_task([30.0, 0.4, 18.0])
    baselines = by_task([60.0, 0.1, 18.0])
    tasks = TASKS["nyuv2"]
    assert delta_printed(tasks, values, baselines) == pytest.approx(100 * (0.5 + 0.25 + 1) / 3 - 100)
    assert delta_formula(tasks, values, baselines) == pytest.approx(100 * (-0.5 - 3 + 0) / 3)
    assert delta_printed(tasks, baselines, baselines) == delta_formula(tasks, baselines, baselines) == 0


def test_both_deltas_reward_improvement():
    """A model that beats the experts in every task has a positive Δ by either definition."""
    values, baselines = by_task([70.0, 0.1, 15.0]), by_task([60.0, 0.2, 20.0])
    assert delta_printed(TASKS["nyuv2"], values, baselines) > 0
    assert delta_formula(TASKS["nyuv2"], values, baselines) > 0
