"""simo.merging.calibration: layers by hand, and laws of RegMean++, FeatCal and ProDistill."""

import copy
import math

import pytest
import torch

from simo.encoders import create_encoder
from simo.errors import SimoError
from simo.merging import calibration
from simo.merging.calibration import (
    calibrate_linear,
    calibrate_norm,
    featcal,
    prodistill,
    regmean_plus_plus,
)
from simo.merging.methods import average, task_arithmetic
from simo.merging.moments import input_moments, regmean
from simo.merging.task_vectors import TaskVector
from simo.realignment.closedform import gram
from simo.training import Optimisation


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def parameters(**values):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def experts_of(encoder, count=2, size=0.1):
    """The state of an encoder, and copies with other weights."""
    generator = torch.Generator().manual_seed(0)
    experts = [copy.deepcopy(encoder) for _ in range(count)]
    with torch.no_grad():
        for expert in experts:
            for tensor in expert.parameters():
                tensor.add_(size * torch.randn(tensor.shape, generator=generator))
    base = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    return base, experts, [TaskVector.between(base, expert.state_dict()) for expert in experts]


def batches_of(count=6, size=2, shape=(16, 16)):
    images = torch.rand(count, 3, *shape, generator=torch.Generator().manual_seed(1))
    return [{"image": part} for part in images.split(size)]


def outputs(encoder, batches):
    with torch.no_grad():
        return torch.cat([encoder(batch["image"]).patches for batch in batches])


def test_a_linear_layer_by_hand():
    """x = 1 and 3, mean outputs 2 and 10: x x = 5, u x = 16, so c = 2 / 5 for two experts.

    Pulled by 1 to the anchor 1: W = (6.4 + 1) / (2 + 1) = 37 / 15. Then b, of 3 in the mean and pulled to 0:
    (2 / 5 · (3 + 6 − 2 W)) / (2 / 5 + 1).
    """
    matrix = gram(column(1.0, 3.0), column(2.0, 10.0))
    solved = calibrate_linear(
        matrix, parameters(bias=[3.0]), parameters(weight=[[1.0]], bias=[0.0]), pull=1.0, count=2
    )
    assert solved["weight"].item() == pytest.approx(37 / 15)
    assert solved["bias"].item() == pytest.approx(0.4 * (9 - 2 * 37 / 15) / 1.4)


def test_pull_is_in_units_of_the_frobenius_norm_and_of_the_number_of_tasks():
    """Inputs (3, 0) and (0, 4), targets 6 and 4, anchor (1, 1): s = 3 / (√337 / 2), each weight by hand."""
    inputs = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    s = 3 / (math.sqrt(337) / 2)
    anchor = parameters(weight=torch.ones(1, 2, dtype=torch.float64))
    solved = calibrate_linear(gram(inputs, column(6, 4)), {}, anchor, pull=1.0, count=3)["weight"]
    assert solved[0].tolist() == pytest.approx([(9 * s + 1) / (4.5 * s + 1), 1], rel=1e-6)


def test_a_norm_by_hand():
    """z = 1 and 3, z z = 5, mean 2, two experts of γ = 2 and β = 1 in the mean, pulled by 1 to 0.

    11 γ + 4 β = 2 (5 · 2 + 2 · 1) = 24 and 4 γ + 3 β = 2 (2 · 2 + 1) = 10 give γ = 32 / 17, β = 14 / 17.
    """
    matrix = gram(column(1.0, 3.0), column(1.0, 3.0)[:, :0])
    solved = calibrate_norm(
        matrix, parameters(weight=[2.0], bias=[1.0]), parameters(weight=[0.0], bias=[0.0]), pull=1.0, count=2
    )
    assert solved["weight"].item() == pytest.approx(32 / 17)
    assert solved["bias"].item() == pytest.approx(14 / 17)


def test_a_norm_without_shift_stays():
    """There is no closed form for half of it: it is left as it was merged."""
    matrix = gram(column(1.0, 3.0), column(1.0, 3.0)[:, :0])
    assert calibrate_norm(matrix, {}, parameters(weight=[1.0]), pull=1.0, count=2) == {}


def test_featcal_of_one_expert_is_the_expert(model):
    """The law of its authors' tests: without a pull the only expert is found, from wherever it starts."""
    base, (expert,), (vector,) = experts_of(model.encoder, count=1)
    start = copy.deepcopy(model.encoder)
    start.load_state_dict(vector.apply(base, 0.5))
    batches = batches_of(32, 8)
    block = "backbone.blocks.0"
    start.backbone.patch_embed.load_state_dict(expert.backbone.patch_embed.state_dict())
    for name in ("cls_token", "pos_embed"):
        getattr(start.backbone, name).data.copy_(getattr(expert.backbone, name))
    found = featcal(start, base, [expert], batches, pull=0.0, blend=0.0)
    for name, tensor in expert.state_dict().items():
        if name.startswith(block) and name.endswith(("norm1.weight", "norm1.bias", "qkv.bias")):
            torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs(found, batches), outputs(expert, batches), rtol=1e-2, atol=1e-2)


def test_featcal_leaves_the_expert_alone(model):
    """What is the expert already, and whose anchor is itself, stays, however strong the pull."""
    base, (expert,), _ = experts_of(model.encoder, count=1)
    found = featcal(expert, base, [expert], batches_of(), stretch=1.0).state_dict()
    for name, tensor in expert.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"pull": -1.0}, {"stretch": math.nan}, {"blend": math.nan}, {"blend": 1.5}]
)
def test_featcal_refuses_what_it_cannot_solve(model, wrong):
    """A value that is none would go into every layer."""
    base, experts, _ = experts_of(model.encoder, count=1)
    with pytest.raises(SimoError, match=r"\(pull, stretch, blend\) is .*: expected 0 or more"):
        featcal(model.encoder, base, experts, batches_of(), **wrong)


def test_featcal_pulled_hard_is_its_anchor(model):
    """λ → ∞ gives θ_0 + stretch · (θ − θ_0) of linear layers and norms, whatever the images say."""
    base, experts, vectors = experts_of(model.encoder)
    merged = copy.deepcopy(model.encoder)
    merged.load_state_dict(task_arithmetic(vectors).apply(base, 0.3))
    found = featcal(merged, base, experts, batches_of(), pull=1e9, stretch=2.0).state_dict()
    for name, tensor in merged.state_dict().items():
        calibrated = ".blocks." in name and tensor.ndim < 3
        expected = 2 * tensor - base[name] if calibrated else tensor
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)


def test_featcal_brings_features_closer(model, state_of, same):
    """Features come closer to the experts' mean, which is all that one encoder can do for the same images."""
    base, experts, vectors = experts_of(model.encoder)
    merged, batches = copy.deepcopy(model.encoder), batches_of(32, 8)
    merged.load_state_dict(task_arithmetic(vectors).apply(base, 0.8))
    before = state_of(merged)
    found = featcal(merged, base, experts, batches)
    assert same(state_of(merged), before)
    wanted = sum(outputs(expert, batches) for expert in experts) / 2

    def apart(encoder):
        return (outputs(encoder, batches) - wanted).square().mean()

    assert apart(found) < 0.8 * apart(merged)


def test_regmean_plus_plus_of_one_expert_is_the_expert(model):
    """All of its layers' outputs, and so its features, are the expert's."""
    base, (expert,), vectors = experts_of(model.encoder, count=1)
    batches = batches_of(32, 8)
    found = regmean_plus_plus(model.encoder, base, vectors, [expert], batches)
    torch.testing.assert_close(outputs(found, batches), outputs(expert, batches), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shrink", [0.5, 0.95])
def test_regmean_plus_plus_begins_as_regmean(model, shrink):
    """Where the first layer is reached nothing is merged before it but what all share: as RegMean's.

    Experts that differ in the blocks alone have the same patches and tokens, and their first blocks see the
    same. In the second block they do not, and RegMean++ is another.
    """
    base, experts, _ = experts_of(model.encoder)
    for expert in experts:
        shared = {name: tensor for name, tensor in base.items() if ".blocks." not in name}
        expert.load_state_dict(shared, strict=False)
    vectors = [TaskVector.between(base, expert.state_dict()) for expert in experts]
    batches = batches_of(32, 8)
    moments = [input_moments(expert, batches) for expert in experts]
    plain = regmean(vectors, moments, shrink=shrink).apply(base)
    found = regmean_plus_plus(model.encoder, base, vectors, experts, batches, shrink=shrink).state_dict()
    first, second = (f"backbone.blocks.{number}.attn.qkv.weight" for number in (0, 1))
    torch.testing.assert_close(found[first], plain[first], rtol=1e-3, atol=1e-4)
    assert (found[second] - plain[second]).abs().max() > 1e-2
    mean = average(vectors).apply(base)
    torch.testing.assert_close(found["backbone.norm.weight"], mean["backbone.norm.weight"])


class Images(torch.utils.data.Dataset):
    """Images without a single label, as training reads them: by index and key."""

    def __init__(self, count=8, shape=(16, 16)):
        self.images = torch.rand(count, 3, *shape, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index[0]]}


BUDGET = Optimisation(
    steps=200, batch_size=4, seed=0, weight_decay=0.5, clip=1e-9
)  # of these two, nothing is used


def test_prodistill_by_hand(model):
    """Of a bias that ends a block, what comes closest to both experts' outputs is their mean.

    Where an expert alone has changed the bias, its coefficient must become 1 / 2; where both have, by u and
    v, their coefficients a and b must give a u + b v = (u + v) / 2. What no expert changed stays.
    """
    base = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    name = "backbone.blocks.1.mlp.fc2.bias"
    changes = torch.tensor([[0.5, 0.0, 1.0], [0.0, -0.5, 0.5]])
    experts = [copy.deepcopy(model.encoder) for _ in changes]
    for expert, change in zip(experts, changes, strict=True):
        expert.get_parameter(name).data[:3] += change
    vectors = [TaskVector.between(base, expert.state_dict()) for expert in experts]
    found = prodistill(model.encoder, base, vectors, experts, Images(), BUDGET, learning_rate=0.02)
    moved = found.state_dict()[name] - base[name]
    torch.testing.assert_close(moved[:3], torch.tensor([0.25, -0.25, 0.75]), rtol=1e-2, atol=1e-3)
    state = found.state_dict()
    assert all(torch.equal(state[other], base[other]) for other in base if other != name)


def test_prodistill_of_one_expert_comes_close_to_it(model, state_of, same):
    """The law of one task; encoder and expert do not change; what is outside of blocks keeps `start`."""
    base, (expert,), vectors = experts_of(model.encoder, count=1)
    before = [state_of(each) for each in (model.encoder, expert)]
    found = prodistill(model.encoder, base, vectors, [expert], Images(), BUDGET, learning_rate=0.02)
    assert all(map(same, before, map(state_of, (model.encoder, expert))))
    start = copy.deepcopy(model.encoder)
    vectors[0].load_into(start, base, 0.3)
    for name in ("backbone.cls_token", "backbone.patch_embed.proj.weight"):
        assert torch.equal(found.state_dict()[name], start.state_dict()[name])
    batches = [{"image": Images().images}]
    wanted = outputs(expert, batches)
    far, near = ((outputs(each, batches) - wanted).square().mean() for each in (start, found))
    assert near < 0.2 * far  # the rest is what lies outside


def test_prodistill_goes_on_where_it_was(model, tmp_path, same, monkeypatch):
    """Killed in the second block, it ends as if it had not been."""
    base, experts, vectors = experts_of(model.encoder)
    plan = (model.encoder, base, vectors, experts, Images(), Optimisation(steps=6, batch_size=4, seed=0))
    whole = prodistill(*plan).state_dict()

    def kill(*_, label, **given):
        if "blocks.1" in label:
            raise KeyboardInterrupt
        return fit(*_, label=label, **given)

    fit = calibration.fit
    monkeypatch.setattr(calibration, "fit", kill)
    with pytest.raises(KeyboardInterrupt):
        prodistill(*plan, resume=tmp_path)
    monkeypatch.setattr(calibration, "fit", fit)
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.blocks.0.safetensors"]
    assert same(whole, prodistill(*plan, resume=tmp_path).state_dict())
    with torch.no_grad():
        experts[0].backbone.pos_embed.add_(0.1)
    with pytest.raises(SimoError, match="blocks.0.safetensors is the state of another training"):
        prodistill(*plan, resume=tmp_path)


SWIN = {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}
CONVNEXT = {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}


@pytest.mark.parametrize(
    ("name", "args"), [("swin_tiny_patch4_window7_224", SWIN), ("convnext_tiny", CONVNEXT)]
)
def test_pyramids_are_calibrated(name, args):
    """Blocks of maps, channels last or first, are found, and one expert's laws hold for them, too."""
    encoder = create_encoder(name, args, [1, 2]).eval()
    base, (expert,), vectors = experts_of(encoder, count=1)
    batches = batches_of(8, 4, (64, 64))
    for found in (
        featcal(expert, base, [expert], batches, stretch=1.0),
        regmean_plus_plus(encoder, base, vectors, [expert], batches),
    ):
        torch.testing.assert_close(outputs(found, batches), outputs(expert, batches), rtol=1e-3, atol=1e-3)
    still = Optimisation(steps=1, batch_size=2, seed=0)
    found = prodistill(encoder, base, vectors, [expert], Images(2, (64, 64)), still, 0.0, start=1.0)
    torch.testing.assert_close(outputs(found, batches), outputs(expert, batches), rtol=1e-3, atol=1e-3)
    pulled = featcal(expert, base, [expert], batches, pull=1e9, stretch=0.0).state_dict()  # to the base
    name = next(name for name in base if "blocks.0.mlp.fc1.weight" in name)
    torch.testing.assert_close(pulled[name], base[name], rtol=1e-3, atol=1e-4)


def test_blocks_that_return_more_than_tokens_are_distilled():
    """MViT's blocks give the size of their grid, too: at its own coefficients an expert stays the expert."""
    encoder = create_encoder("mvitv2_tiny", {}, [1, 4]).eval()
    base, (expert,), vectors = experts_of(encoder, count=1, size=0.01)
    still = Optimisation(steps=1, batch_size=2, seed=0)
    found = prodistill(encoder, base, vectors, [expert], Images(2, (64, 64)), still, 0.0, start=1.0)
    batches = [{"image": Images(2, (64, 64)).images}]
    torch.testing.assert_close(outputs(found, batches), outputs(expert, batches), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (batches_of(1)[:0], "number of batches for backbone.blocks.0 is 0: expected at least one"),
        (None, "number of batches for backbone.blocks.1 is 0: expected at least one"),
        ([{"image": 255 * torch.rand(1, 3, 16, 16)}], "image"),
    ],
)
@pytest.mark.parametrize("method", [featcal, regmean_plus_plus])
def test_images_that_are_none_or_out_of_range_are_refused(model, method, batches, message):
    """No block is calibrated by nothing or for images of 0 to 255 without a word."""
    base, experts, vectors = experts_of(model.encoder)
    batches = iter(batches_of(1)) if batches is None else batches  # which the second block finds read
    given = (base, experts, batches) if method is featcal else (base, vectors, experts, batches)
    with pytest.raises(SimoError, match=message):
        method(model.encoder, *given)


def test_convolutions_alone_are_refused():
    """Without linear layers there would be nothing to calibrate."""
    encoder = create_encoder("test_resnet", {}, [3, 5]).eval()
    base, experts, vectors = experts_of(encoder)
    with pytest.raises(SimoError, match="ResNet has no linear layers"):
        featcal(encoder, base, experts, batches_of())
    with pytest.raises(SimoError, match="ResNet has no linear layers"):
        regmean_plus_plus(encoder, base, vectors, experts, batches_of())
