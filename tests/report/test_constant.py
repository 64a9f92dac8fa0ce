"""report.constant: the best of all predictions that look at no image."""

import pytest
import torch

from report.constant import Constant
from simo.datasets import PreparedDataset, evaluation_batches
from simo.evaluation import evaluate
from simo.tasks import tasks_of


@pytest.fixture
def tasks():
    """All of NYUv2's."""
    return tasks_of("nyuv2")


def test_constant_is_the_best_of_all_constants(nyuv2, tasks):
    """No other constant does better on the split it was learned from: the median, the commonest class."""
    train = PreparedDataset(nyuv2, "nyuv2", "train")
    constant = Constant(train)
    best = evaluate(constant, evaluation_batches(train, 2), tasks)
    assert constant.depth.item() == pytest.approx(
        torch.cat([s["depth"][s["depth"] != 0] for s in train]).median().item()
    )
    for change in (-0.1, 0.1):
        constant.depth += change
        assert evaluate(constant, evaluation_batches(train, 2), tasks)["depth"] > best["depth"]
        constant.depth -= change
    counts = torch.cat([s["segmentation"].flatten() for s in train])
    assert constant.segmentation.argmax() == counts[counts >= 0].mode().values


def test_constant_does_not_look(nyuv2):
    """Its prediction is the same at every pixel of every image, at any size."""
    constant = Constant(PreparedDataset(nyuv2, "nyuv2", "train"))
    for name, maps in constant(torch.rand(3, 3, 5, 7)).items():
        assert maps.shape == (3, getattr(constant, name).shape[1], 5, 7)
        assert (maps == maps[:1, :, :1, :1]).all()


def test_constant_of_a_sample_is_close(nyuv2):
    """At full scale pixels are sampled evenly: a tenth of them gives nearly the same constants."""
    train = PreparedDataset(nyuv2, "nyuv2", "train", ["depth", "normals"])
    every, some = Constant(train), Constant(train, limit=128)
    assert some.depth.item() == pytest.approx(every.depth.item(), abs=0.15)
    torch.testing.assert_close(some.normals, every.normals, atol=0.35, rtol=0)
