"""simo.heads: the paper's sizes counted by hand, and each head against a formulation of its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simo.encoders import Features
from simo.errors import SimoError
from simo.heads import HEADS, DPTHead, LinearHead, create_head
from simo.models import count_parameters, create_model
from simo.tasks import TASKS

SEGMENTATION, DEPTH, NORMALS = TASKS["nyuv2"]
SMALL = {"channels": [2, 3, 4, 5], "width": 8}


def random_features(taps=2, dim=4, grid=(3, 5), batch=2):
    generator = torch.Generator().manual_seed(0)
    return Features(
        torch.randn(batch, taps, dim, *grid, generator=generator),
        torch.randn(batch, taps, dim, generator=generator),
    )


def randomise(head):
    """Put a head in eval mode, with batch norms that are not the identity."""
    with torch.no_grad():
        for norm in (module for module in head.modules() if isinstance(module, nn.BatchNorm2d)):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.normal_()
            norm.running_var.uniform_(0.5, 2)
    return head.eval()


def batch_norm(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def size_of(head, task, **options):
    """Parameters of a head on the paper's four taps of width 768."""
    with torch.device("meta"):
        return count_parameters(create_head(head, task, [768] * 4, True, options).parameters())


@pytest.mark.parametrize(
    ("task", "count"), [(SEGMENTATION, 92_173), (DEPTH, 6_145), (NORMALS, 30_723)], ids=lambda x: str(x)[:20]
)
def test_linear_heads_have_the_papers_size(task, count):
    """Protects the paper's linear heads: a weight for each of 6,144 channels, a bias, and a batch norm's."""
    channels = 4 * 2 * 768  # patch and class token of four taps
    norm = 0 if task is DEPTH else 2 * channels
    assert task.channels * (channels + 1) + norm == count
    assert size_of("linear", task) == count


@pytest.mark.parametrize(
    "task", [*TASKS["taskonomy"][:1], *TASKS["taskonomy"][3:]], ids=lambda task: task.name
)
def test_maps_that_may_be_negative_have_the_normals_head(task):
    """Edges, keypoints and colours in [-1, 1] are normalised and not clamped, in either kind of head."""
    for name in HEADS:
        head = create_head(name, task, [8] * 4, True, {})
        assert any(isinstance(module, nn.BatchNorm2d) for module in head.modules())
        assert head(random_features(4, 8), (6, 10)).min() < 0


# What all DPT heads of the paper share, counted by hand:
TRUNK = (
    769 * (24 + 48 + 96 + 192)  # 1×1 projections of width 768 with bias: 276,840
    + (24 * 24 * 16 + 24)  # transposed convolution 4×4: 9,240
    + (48 * 48 * 4 + 48)  # transposed convolution 2×2: 9,264
    + (192 * 192 * 9 + 192)  # strided convolution 3×3: 331,968
    + 9 * 128 * (24 + 48 + 96 + 192)  # 3×3 to 128 channels without bias: 414,720
    + 7 * 2 * 9 * 128 * 128  # seven residual units of two 3×3 convolutions without bias: 2,064,384
    + 4 * 129 * 128  # a 1×1 projection with bias in each fusion: 66,048
    + (9 * 128 + 1) * 128  # the 3×3 projection after them: 147,584
)
DEPTH_BRANCH = (9 * 128 + 1) * 64 + (9 * 64 + 1) * 32 + (32 + 1)  # 128 to 64 to 32 to 1: 92,289
MAP_BRANCH = 9 * 128 * 128 + 2 * 128  # 3×3 without bias and batch norm; the 1×1 has 129 a channel


def test_dpt_heads_have_the_papers_size():
    """Protects the paper's DPT heads: 3.412 M for depth, 3.470 M for 19 classes, to the last parameter."""
    assert TRUNK == 3_320_048
    assert size_of("dpt", DEPTH) == TRUNK + DEPTH_BRANCH == 3_412_337
    assert [size_of("dpt", task) for task in TASKS["cityscapes"]] == [3_470_211, 3_469_050, 3_412_337]
    assert TRUNK + MAP_BRANCH + 19 * 129 == 3_470_211


def test_taskonomy_heads_have_the_papers_size():
    """The paper's Table 4 trains 17.3 M parameters of heads: 3,412,337 and four times the map branch."""
    total = sum(size_of("dpt", task) for task in TASKS["taskonomy"])
    assert total == 5 * TRUNK + DEPTH_BRANCH + 4 * MAP_BRANCH + 129 * (3 + 3 + 1 + 1) == 17_284_409


def test_paper_options_are_the_defaults():
    """The profile may spell the paper's sizes out, or leave them out."""
    assert size_of("dpt", DEPTH, channels=[24, 48, 96, 192], width=128) == size_of("dpt", DEPTH)


@pytest.mark.parametrize("task", [SEGMENTATION, NORMALS], ids=lambda task: task.name)
def test_linear_head_by_formula(task):
    """Batch norm, at each patch one matrix on all taps' patch and class tokens, then a bilinear resize."""
    features = random_features()
    head = randomise(LinearHead(task, [4, 4], True))
    tokens = [
        part
        for tap in range(2)
        for part in (
            features.patches[:, tap],
            features.classes[:, tap, :, None, None] + torch.zeros(3, 5),
        )
    ]
    x = batch_norm(torch.cat(tokens, 1), head.norm)
    x = torch.einsum("oc,bchw->bohw", head.project.weight[:, :, 0, 0], x) + head.project.bias[:, None, None]
    expected = F.interpolate(x, (24, 40), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(features, (24, 40)), expected)


@pytest.mark.parametrize("name", ["linear", "dpt"])
def test_clamped_maps_still_learn(name):
    """A map that has fallen below 0 everywhere is predicted as 0, and the loss still pulls it up."""
    head = create_head(name, DEPTH, [8] * 4, True, {})
    last = [module for module in head.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.constant_(last.bias, -100.0)
    prediction = head(Features(torch.randn(2, 4, 8, 4, 4), torch.randn(2, 4, 8)), (16, 16))
    assert (prediction == 0).all()
    prediction.sum().backward()
    assert last.bias.grad.item() > 0


def test_depth_head_commutes_with_its_upsampling():
    """Convolving before the ×4 enlargement, as here, equals the released code's convolving after it."""
    features = random_features()
    head = LinearHead(DEPTH, [4, 4], True)
    classes = features.classes[..., None, None].expand(-1, -1, -1, 3, 5)
    joined = torch.cat([features.patches, classes], 2).reshape(2, 16, 3, 5)
    large = F.interpolate(joined, scale_factor=4, mode="bilinear", align_corners=False)
    expected = F.interpolate(head.project(large).relu(), (24, 40), mode="bilinear", align_corners=False)
    prediction = head(features, (24, 40))
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-5)
    assert prediction.min() >= 0
    assert (prediction == 0).any()
    assert (prediction > 0).any()
    assert isinstance(head.norm, torch.nn.Identity)


def test_expanded_head_shuffles_pixels():
    """With `expand`, each patch predicts a square of values, row by row, next to each other."""
    features = random_features(grid=(1, 1), batch=1)
    head = LinearHead(SEGMENTATION, [4, 4], True, expand=2).eval()
    values = head.project(
        head.norm(torch.cat([features.patches[..., 0, 0], features.classes], 2).view(1, 16, 1, 1))
    )
    torch.testing.assert_close(head(features, (2, 2)), values.view(1, 13, 2, 2))


def double(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def released_dpt(head, features, non_negative):
    """The DPT head in the order of the released code, for a grid of even sides: enlarge, then project.

    Written on the head's weights by name: `head` maps names to tensors.
    """

    def conv(x, name, **options):
        return F.conv2d(x, head[f"{name}.weight"], head.get(f"{name}.bias"), **options)

    def unit(x, name):
        y = conv(F.relu(x), f"{name}.first", padding=1)
        return x + conv(F.relu(y), f"{name}.second", padding=1)

    levels = []
    for tap in range(4):
        b, _, d, h, w = features.patches.shape
        tokens = features.patches[:, tap].flatten(2) + features.classes[:, tap].unsqueeze(-1)  # (B, D, h·w)
        level = conv(tokens.view(b, d, h, w), f"projects.{tap}")
        if tap < 2:
            weight, bias = head[f"resizes.{tap}.weight"], head[f"resizes.{tap}.bias"]
            level = F.conv_transpose2d(level, weight, bias, stride=4 - 2 * tap)
        elif tap == 3:
            level = conv(level, "resizes.3", stride=2, padding=1)
        levels.append(conv(level, f"widen.{tap}", padding=1))
    path = conv(double(unit(levels[3], "fusions.0.refine")), "fusions.0.project")
    for number in (1, 2, 3):
        path = path + unit(levels[3 - number], f"fusions.{number}.enter")
        path = conv(double(unit(path, f"fusions.{number}.refine")), f"fusions.{number}.project")
    path = F.relu(conv(path, "smooth", padding=1))
    if non_negative:
        path = double(conv(path, "output.0", padding=1))
        return F.relu(conv(F.relu(conv(path, "output.2", padding=1)), "output.4"))
    mean, variance = head["output.1.running_mean"], head["output.1.running_var"]
    path = conv(path, "output.0", padding=1)
    path = F.batch_norm(path, mean, variance, head["output.1.weight"], head["output.1.bias"])
    return conv(F.relu(path), "output.4")


@pytest.mark.parametrize("task", [SEGMENTATION, NORMALS, DEPTH], ids=lambda task: task.name)
def test_dpt_head_by_formula(task):
    """Every weight and step is where the paper's released head has it, in a functional formulation of it."""
    features = random_features(4, 6, grid=(4, 6))
    head = randomise(DPTHead(task, [6] * 4, True, **SMALL))
    expected = released_dpt(head.state_dict(), features, task.non_negative)
    assert expected.shape[-2:] == ((64, 96) if task.non_negative else (32, 48))
    expected = F.interpolate(expected, (30, 50), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(features, (30, 50)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(10, 19), (19, 19), (1, 1)])
@pytest.mark.parametrize("task", [SEGMENTATION, DEPTH], ids=lambda task: task.name)
def test_dpt_head_takes_odd_grids(task, grid):
    """The padded 128×256 and 256×256 give 10×19 and 19×19 patches, whose half is no whole number."""
    head = DPTHead(task, [6] * 4, True, **SMALL)
    size = (14 * grid[0] - 3, 14 * grid[1] - 1)
    assert head(random_features(4, 6, grid), size).shape == (2, task.channels, *size)


@pytest.mark.parametrize("task", [SEGMENTATION, DEPTH], ids=lambda task: task.name)
def test_every_weight_of_the_dpt_head_learns(task):
    """No part of the head is left out of the prediction: each parameter gets a gradient."""
    head = DPTHead(task, [6] * 4, True, **SMALL)
    (head(random_features(4, 6, (4, 4)), (32, 32)) - 1).square().sum().backward()
    assert [name for name, p in head.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("seed", range(5))
def test_dpt_depth_is_not_negative(seed):
    """What lies below 0 is predicted as 0, and nothing else changes."""
    torch.manual_seed(seed)
    head = DPTHead(DEPTH, [6] * 4, True, channels=[2, 3, 4, 5], width=32)
    features = random_features(4, 6, (4, 4))
    with torch.no_grad():
        head.output[4].bias.fill_(100.0)
        head.output[4].bias -= head(features, (32, 32)).mean()
    prediction = head(features, (32, 32))
    assert prediction.min() == 0 < prediction.max()


def test_model_with_dpt_heads(settings, tasks):
    """The miniature takes the DPT head by parameters alone."""
    args = {**settings["backbone_args"], "img_size": 32, "depth": 4}
    changes = {"backbone_args": args, "blocks": [1, 2, 3, 4], "head": "dpt", "head_options": SMALL}
    model = create_model(tasks, seed=0, **{**settings, **changes}).eval()
    predictions = model(torch.rand(1, 3, 32, 32))
    assert {name: x.shape[1:] for name, x in predictions.items()} == {
        task.name: (task.channels, 32, 32) for task in tasks
    }


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("resnet", {}, r"unknown head 'resnet': expected one of \['dpt', 'linear'\]"),
        ("linear", {"expnad": 2}, r"head linear has no option 'expnad': expected some of \['expand'\]"),
        ("dpt", {"expand": 2}, r"head dpt has no option 'expand': .*'channels', 'width'"),
        ("linear", {"expand": 0}, "head linear: expand is 0: expected a whole number, at least 1"),
        ("linear", {"expand": 1.5}, "head linear: expand is 1.5: expected a whole number"),
        (
            "dpt",
            {"channels": [1, 2, 3]},
            r"head dpt: the pair .* is \(4, 3\): expected",
        ),
        ("dpt", {"channels": [1, 2, 3, 0]}, "head dpt: channels is 0: expected a whole number, at least 1"),
        ("dpt", {"width": 2}, "head dpt: width is 2: expected a whole number, at least 4"),
    ],
)
def test_unusable_head_is_refused(head, options, message):
    """A misspelt name or option and a value that makes no head are named, with what is expected."""
    with pytest.raises(SimoError, match=message):
        create_head(head, DEPTH, [8] * 4, True, options)


def test_dpt_needs_four_taps():
    """Its pyramid has four levels."""
    with pytest.raises(SimoError, match=r"pair \(blocks, channels\) is \(2, 4\): expected"):
        create_head("dpt", DEPTH, [8] * 2, True, {})
