"""report.mechanism: similarity and explained shares against laws, task vectors against examples by hand."""

import copy

import pytest
import torch

from report.mechanism import (
    compare_features,
    compare_moments,
    explained,
    linear_cka,
    spectrum,
)
from simo.errors import SimoError
from simo.merging.task_vectors import TaskVector
from simo.realignment.closedform import STRENGTHS, choose_ridge, gram, ridges, squared_errors


def rows(count=400, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 2, 1, 1])


def vector_of(**tensors):
    return TaskVector(tensors, lambda name: tensors[name])


def test_cka_sees_neither_rotations_nor_scales_nor_shifts():
    """It is 1 for the same features in another basis, and near 0 for unrelated ones."""
    z = rows()
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    assert linear_cka(gram(z, 3 * z @ rotation + 5), 4) == pytest.approx(1)
    assert linear_cka(gram(z, rows(seed=1)), 4) < 0.05


def test_cka_by_its_definition():
    """HSIC of centred linear kernels, normalised: the formula over pairs of rows instead of features."""
    z, y = rows(20), rows(20, seed=1)
    centring = torch.eye(20, dtype=torch.float64) - 1 / 20
    kernels = [centring @ x @ x.T @ centring for x in (z, y)]
    expected = (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    assert linear_cka(gram(z, y), 4) == pytest.approx(expected.item())


def test_each_map_explains_what_it_can_express():
    """Shifted, scaled, turned and mixed features: fully explained by the map that undoes it, not by less."""
    z, rotation = rows(), torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    cases = {
        "nothing": z,
        "shift": z + 2,
        "diagonal": z * torch.tensor([1.0, 3, 0.2, -1]) + 2,
        "procrustes": z @ rotation + 2,
        "ridge": z @ torch.randn(4, 4, dtype=torch.float64) + 2,
    }
    undone_by = {
        "nothing": {"nothing", "shift", "diagonal", "procrustes", "ridge"},
        "shift": {"shift", "diagonal", "procrustes", "ridge"},
        "diagonal": {"diagonal", "ridge"},
        "procrustes": {"procrustes", "ridge"},
        "ridge": {"ridge"},
    }
    for name, y in cases.items():
        found = explained(gram(z[:200], y[:200]), gram(z[200:300], y[200:300]), gram(z[300:], y[300:]), 4)
        full = {key for key, share in found.items() if share > 0.9999}
        assert full == undone_by[name], name
        assert max(found.values()) <= 1 + 1e-9


def test_the_ridge_is_not_chosen_by_the_tested_images():
    """Where these ask for another strength, the one of the held-out images stays, and the share is lower."""
    z = rows()
    y = z @ torch.randn(4, 4, dtype=torch.float64)
    fitted, held_out = gram(z[:100], y[:100]), gram(z[100:200], y[100:200])
    tested = gram(z[200:], z[200:] + 0.1 * y[200:])  # nearer to the identity, where strong ridges lead
    identity = torch.eye(4, dtype=torch.float64)
    total = squared_errors(tested, torch.zeros_like(identity), y[:200].mean(0)).sum()

    def share(weight, bias):
        return (1 - squared_errors(tested, weight, bias).sum() / total).item()

    ((weight, bias, *_),) = choose_ridge(fitted, held_out, identity, [4])
    found = explained(fitted, held_out, tested, 4)["ridge"]
    assert found == pytest.approx(share(weight, bias))
    assert found < max(share(*each) for each in ridges(fitted + held_out, identity, STRENGTHS)) - 0.1


def test_encoder_explains_itself(model, tasks):
    """Against a copy of itself: everything, at every block, which are all there, not the tapped ones only."""
    experts = {tasks[0].name: copy.deepcopy(model.encoder)}
    images = torch.rand(6, 3, 16, 16)
    taps = list(model.encoder.taps)
    found = compare_features(model.encoder, experts, [{"image": images[:4]}], [{"image": images[4:]}])
    assert [row["block"] for row in found] == list(range(1, len(model.encoder.backbone.blocks) + 1))
    for row in found:
        assert row["nothing"] == pytest.approx(1)
        assert row["cka"] == pytest.approx(1)
    assert model.encoder.taps == taps


def test_spectrum_by_hand():
    """σ = (3, 1): 9/10 of the energy lie in half of the directions.

    What is no matrix of a linear layer does not count, and neither does a matrix that did not move.
    """
    tensors = {"a.weight": torch.diag(torch.tensor([1.0, 3.0])), "b.weight": torch.zeros(2, 2)}
    tensors |= {"c.weight": torch.ones(7), "mask_token": torch.ones(1, 4)}
    assert spectrum(vector_of(**tensors), [0.5, 1.0]) == pytest.approx([0.9, 1.0])
    with pytest.raises(SimoError, match="expected a task vector with a matrix that is not 0"):
        spectrum(0.0 * vector_of(**tensors), [0.5])


def test_moments_by_hand():
    """G of 1 and 3 are 1 from their mean 2; RegMean of τ 1 and 5 is (1 + 3 · 5) / 4 = 4, the average 3."""
    name = "blocks.7.fc.weight"
    seen = {task: {name: torch.tensor([[value]]).double()} for task, value in (("a", 1.0), ("b", 3.0))}
    vectors = {task: vector_of(**{name: torch.tensor([[value]])}) for task, value in (("a", 1.0), ("b", 5.0))}
    (row,) = compare_moments(seen, vectors)
    assert (row["layer"], row["block"]) == (name, 1)  # the first that there is
    assert row["distances"] == pytest.approx({"a": 0.5, "b": 0.5})
    assert row["change"] == pytest.approx(1 / 3)


def test_a_layer_that_nobody_changed_is_a_number():
    """No NaN, which no record may hold: neither where nothing moved nor where an input is always 0."""
    still = {task: vector_of(**{"fc.weight": torch.zeros(2, 3)}) for task in "ab"}
    (row,) = compare_moments(dict.fromkeys("ab", {"fc.weight": torch.zeros(3, 3).double()}), still)
    assert [*row["distances"].values(), row["change"]] == [0.0] * 3


def test_equal_moments_are_at_no_distance():
    """Experts that all see the same: every distance is 0, and RegMean the average."""
    grams = {"fc.weight": torch.eye(3, dtype=torch.float64)}
    vectors = {task: vector_of(**{"fc.weight": torch.randn(2, 3)}) for task in "abc"}
    (row,) = compare_moments(dict.fromkeys("abc", grams), vectors)
    assert row["block"] == 0
    assert [*row["distances"].values(), row["change"]] == pytest.approx([0.0] * 4, abs=1e-6)
