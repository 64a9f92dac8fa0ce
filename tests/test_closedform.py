"""simo.closedform: maps against examples by hand and laws, folding against what it replaces."""

import copy

import pytest
import torch

from simo.closedform import (
    Moments,
    choose_ridge,
    diagonal,
    gather_moments,
    procrustes,
    realign_closed_form,
    ridge,
)
from simo.errors import SimoError
from simo.heads import DPTHead, LinearHead
from simo.models import Features
from simo.tasks import tasks_of

DEPTH, NORMALS = (task for task in tasks_of("nyuv2") if task.name in ("depth", "normals"))


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def random_pairs(count=200, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, width, generator=generator, dtype=torch.float64) + 3
    matrix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(count, width, generator=generator, dtype=torch.float64)
    return z, z @ matrix.T + 1 + noise


def test_ridge_by_hand():
    """z = (-1, 0, 1), y = (0, 1, 2): least squares is z + 1, which the prior, the identity, leaves alone."""
    moments = Moments.of(column(-1, 0, 1), column(0, 1, 2))
    for strength in (0.0, 1.0, float("inf")):
        matrix, shift = ridge(moments, strength)
        assert (matrix.item(), shift.item()) == pytest.approx((1, 1))
    # y = (0, 3, 6): G = 2, H = 6; with λ = strength · 2 the slope is (6 + λ) / (2 + λ)
    moments = Moments.of(column(-1, 0, 1), column(0, 3, 6))
    for strength, slope in ((0.0, 3.0), (1.0, 2.0), (float("inf"), 1.0)):
        matrix, shift = ridge(moments, strength)
        assert (matrix.item(), shift.item()) == pytest.approx((slope, 3))


def test_ridge_minimises_its_objective():
    """No small change of A or c lowers the penalised error: gradients by autograd are zero."""
    z, y = random_pairs()
    moments, strength = Moments.of(z, y), 0.3
    matrix, shift = (value.clone().requires_grad_() for value in ridge(moments, strength))
    centred = z - z.mean(0)
    amount = strength * centred.square().sum() / 4
    loss = (y - z @ matrix.T - shift).square().sum() + amount * (matrix - torch.eye(4)).square().sum()
    for gradient in torch.autograd.grad(loss, (matrix, shift)):
        assert gradient.abs().max() < 1e-8 * loss.item()


def test_error_is_the_sum_of_squares():
    """Held-out error from sums alone equals that of the residuals."""
    z, y = random_pairs()
    other = ridge(Moments.of(*random_pairs(seed=1)), 0.1)
    residuals = y - z @ other[0].T - other[1]
    assert Moments.of(z, y).error(*other) == pytest.approx(residuals.square().sum().item())


def test_moments_add_and_subtract():
    """Streaming in parts, and holding a part out, is the same as having the pairs at once."""
    z, y = random_pairs()
    parts = [Moments.of(z[part], y[part]) for part in (slice(0, 50), slice(50, 120), slice(120, 200))]
    whole = sum(parts, Moments())
    rest = whole - parts[1]
    expected = Moments.of(torch.cat([z[:50], z[120:]]), torch.cat([y[:50], y[120:]]))
    assert rest.count == expected.count
    for name, value in expected.sums.items():
        torch.testing.assert_close(rest.sums[name], value)


def test_strength_is_chosen_on_held_out_images():
    """Many clean pairs need no ridge; few noisy ones of unrelated features need much of it."""
    z, y = random_pairs(2000)
    clean = [Moments.of(z[i::5], y[i::5]) for i in range(5)]
    assert choose_ridge(clean)[1] <= 1e-3
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    noisy = z + torch.randn(12, 8, generator=generator, dtype=torch.float64)
    assert choose_ridge([Moments.of(z[i::4], noisy[i::4]) for i in range(4)])[1] >= 1
    with pytest.raises(SimoError, match="at least 2 folds"):
        choose_ridge(clean[:1])


def test_procrustes_finds_a_rotation():
    """y = Q z + b is recovered exactly, reflections included."""
    z, _ = random_pairs()
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    matrix, shift = procrustes(Moments.of(z, z @ rotation.T + 2))
    torch.testing.assert_close(matrix, rotation)
    torch.testing.assert_close(shift, torch.full((4,), 2.0, dtype=torch.float64))


def test_diagonal_is_a_regression_a_feature():
    """Each feature by itself, and a feature that never varies is only shifted."""
    z, y = random_pairs()
    z[:, 2] = 5.0
    matrix, shift = diagonal(Moments.of(z, y))
    for feature in (0, 1, 3):
        own = torch.stack([z[:, feature], torch.ones(200)], dim=1)
        slope, start = torch.linalg.lstsq(own, y[:, feature]).solution
        assert matrix[feature, feature].item() == pytest.approx(slope.item())
        assert shift[feature].item() == pytest.approx(start.item())
    assert matrix[2, 2] == 1
    assert torch.count_nonzero(matrix - matrix.diag().diag()) == 0


def head_of(kind, task):
    """A head in eval mode whose batch norm statistics are not the initial ones."""
    torch.manual_seed(0)
    head = LinearHead(task, 4, 6, 2) if kind == "linear" else DPTHead(task, 4, 6, [2, 3, 4, 5], 4)
    for name, buffer in head.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand_like(buffer))
    return head.eval().double()


@pytest.mark.parametrize("task", [DEPTH, NORMALS], ids=lambda task: task.name)
@pytest.mark.parametrize("kind", ["linear", "dpt"])
def test_folded_head_equals_mapping_the_features(kind, task):
    """φ with the maps folded in, on z, is φ on A z + c: to float64's rounding."""
    head = head_of(kind, task)
    features = Features(torch.randn(2, 4, 6, 3, 5).double(), torch.randn(2, 4, 6).double())
    maps = [(torch.randn(6, 6).double(), torch.randn(6).double()) for _ in head.inputs(features)]
    if kind == "linear":
        patches = torch.stack(
            [
                torch.einsum("ij,bjhw->bihw", a, features.patches[:, t]) + c[:, None, None]
                for t, (a, c) in enumerate(maps[::2])
            ],
            1,
        )
        classes = torch.stack([features.classes[:, t] @ a.T + c for t, (a, c) in enumerate(maps[1::2])], 1)
    else:  # maps act on sums: give each tap's mapped sum as patches, and no class token
        sums = features.patches + features.classes[..., None, None]
        patches = torch.stack(
            [
                torch.einsum("ij,bjhw->bihw", a, sums[:, t]) + c[:, None, None]
                for t, (a, c) in enumerate(maps)
            ],
            1,
        )
        classes = torch.zeros_like(features.classes)
    expected = head(Features(patches, classes), (7, 9))
    folded = copy.deepcopy(head)
    folded.fold(maps)
    torch.testing.assert_close(folded(features, (7, 9)), expected, rtol=1e-9, atol=1e-9)
    assert folded.state_dict().keys() == head.state_dict().keys()


@pytest.mark.parametrize("kind", ["linear", "dpt"])
def test_folding_the_identity_changes_nothing(kind):
    """A = I, c = 0: the prediction stays."""
    head = head_of(kind, NORMALS)
    features = Features(torch.randn(2, 4, 6, 3, 5).double(), torch.randn(2, 4, 6).double())
    expected = head(features, (7, 9))
    head.fold([(torch.eye(6).double(), torch.zeros(6).double()) for _ in head.inputs(features)])
    torch.testing.assert_close(head(features, (7, 9)), expected)


def batches_of(count, size=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 16, 16, generator=generator)
    return [{"image": part} for part in images.split(size)]


def test_realigned_to_itself_is_itself(model, tasks):
    """If the merged encoder is every task's expert, nothing is left to repair."""
    experts = {task.name: copy.deepcopy(model.encoder) for task in tasks}
    realigned = realign_closed_form(model, experts, batches_of(8))
    image = batches_of(1)[0]["image"]
    for name, prediction in model(image).items():
        torch.testing.assert_close(realigned(image)[name], prediction, rtol=1e-3, atol=1e-4)


def test_repairs_a_linear_damage(model, tasks, state_of, same):
    """Features that another matrix has mixed are brought back: predictions are the expert's again."""
    before = state_of(model)
    expert = copy.deepcopy(model)
    with torch.no_grad():  # the last block's output of the merged encoder is mixed
        block = model.encoder.backbone.blocks[-1]
    mixing = torch.eye(16) + 0.3 * torch.randn(16, 16)
    handle = block.register_forward_hook(lambda module, inputs, output: output @ mixing.T + 0.5)
    realigned = realign_closed_form(model, {t.name: expert.encoder for t in tasks}, batches_of(40))
    image = batches_of(2)[0]["image"]
    for name, wanted in expert(image).items():
        damage = (model(image)[name] - wanted).abs().mean()
        left = (realigned(image)[name] - wanted).abs().mean()
        assert left < 0.05 * damage, name
    handle.remove()
    assert same(before, model.state_dict())


def test_no_label_is_read(model, tasks):
    """Batches hold images and nothing else."""
    experts = {task.name: copy.deepcopy(model.encoder) for task in tasks}
    assert realign_closed_form(model, experts, batches_of(4)).heads.keys() == model.heads.keys()
    with pytest.raises(SimoError, match="no image"):
        realign_closed_form(model, experts, [])


def test_folds_are_parts_of_the_images(model, tasks):
    """Each image is in one fold; all folds together are all images, however they come in batches."""
    experts = {tasks[0].name: copy.deepcopy(model.encoder)}
    one, two = (gather_moments(model, experts, batches_of(7, size), folds=3) for size in (2, 7))
    for rows, others in zip(one[tasks[0].name], two[tasks[0].name], strict=True):
        tokens = rows[2].count / 2  # images 2 and 5
        assert [row.count for row in rows] == [3 * tokens, 2 * tokens, 2 * tokens]
        for row, other in zip(rows, others, strict=True):
            torch.testing.assert_close(row.sums["yz"], other.sums["yz"], rtol=1e-4, atol=1e-4)
