"""simo.realignment.statistics: batch norm statistics against a pass over the data, and what they repair."""

import copy

import pytest
import torch
from torch import nn

from simo.encoders import create_encoder
from simo.errors import SimoError
from simo.merging.methods import merge
from simo.merging.task_vectors import TaskVector
from simo.realignment.statistics import reestimate_statistics


@pytest.fixture
def batches():
    return [{"image": torch.rand(4, 3, 64, 64)} for _ in range(2)]


def encoder_of(seed, batches=None):
    """A small EfficientNet of random weights, and, with images, their statistics."""
    torch.manual_seed(seed)
    encoder = create_encoder("test_efficientnet", {}, [3, 4, 5]).eval()
    if batches:
        reestimate_statistics(encoder, batches)
    return encoder


def inputs_of_norms(encoder, image):
    """What each batch norm gets to see of images, in eval mode, by module."""
    seen, handles = {}, []
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_hook(lambda m, x, _: seen.update({m: x[0].detach()})))
    encoder(image)
    for handle in handles:
        handle.remove()
    return seen


def test_statistics_are_those_of_a_pass_over_the_data(batches):
    """With all images in a batch, each layer's mean and variance are those of what it sees afterwards.

    But for n / (n - 1): layers are normalised by the one variance, and keep the other.
    """
    images = torch.rand(16, 3, 128, 128)
    encoder = encoder_of(0, [{"image": images}])
    seen = inputs_of_norms(encoder, images)
    assert len(seen) > 10
    for norm, x in seen.items():
        mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3))
        assert ((norm.running_mean - mean).abs() < 0.02 * variance.sqrt()).all()
        torch.testing.assert_close(norm.running_var, variance, rtol=0.03, atol=0)


def test_statistics_of_before_play_no_part(batches):
    """Estimated twice they are the same: a merged encoder comes with its experts'."""
    encoder = encoder_of(0, batches)
    once = copy.deepcopy(encoder.state_dict())
    reestimate_statistics(encoder, batches)
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, once[name], msg=name)


def test_several_batches_count_equally(batches):
    """The first layer's statistics are the means of the batches' own."""
    encoder = encoder_of(0, batches)
    norm = encoder.backbone.bn1
    xs = [inputs_of_norms(encoder, batch["image"])[norm] for batch in batches]
    torch.testing.assert_close(norm.running_mean, sum(x.mean(dim=(0, 2, 3)) for x in xs) / 2)
    torch.testing.assert_close(norm.running_var, sum(x.var(dim=(0, 2, 3)) for x in xs) / 2)


def test_collapsed_features_are_repaired(batches):
    """Averaged experts' features vary less than either's; with statistics of their own they do again."""
    image = batches[0]["image"]
    experts = [encoder_of(seed, batches) for seed in (1, 2)]
    merged = encoder_of(0)
    base = copy.deepcopy(merged.state_dict())
    vectors = [TaskVector.between(base, expert.state_dict()) for expert in experts]
    merged.load_state_dict(merge("average", vectors).apply(base))

    def spread(encoder):
        return torch.stack([x.std(dim=(0, 2, 3)).mean() for x in encoder(image).maps(encoder.dims)])

    wanted = sum(map(spread, experts)) / 2
    assert (spread(merged) < 0.6 * wanted).all()
    reestimate_statistics(merged, batches)
    torch.testing.assert_close(spread(merged), wanted, rtol=0.15, atol=0)


def test_nothing_else_changes(batches, state_of):
    """Weights, momentum and mode stay, and so do statistics of a layer that no feature needs."""
    encoder = encoder_of(0).train()
    before = state_of(encoder)
    torch.nn.init.constant_(encoder.backbone.bn2.running_mean, 7.0)  # after the last level
    reestimate_statistics(encoder, batches)
    for name, tensor in encoder.state_dict().items():
        statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert statistic or torch.equal(tensor, before[name]), name
    assert (encoder.backbone.bn2.running_mean == 7).all()
    assert all(module.training for module in encoder.modules())
    assert {m.momentum for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("broken", [[], [{"image": torch.full((2, 3, 64, 64), 255.0)}]])
def test_refused_images_leave_the_statistics(state_of, same, broken):
    """No image, or one out of range: the encoder is as it was."""
    encoder = encoder_of(0)
    before = state_of(encoder)
    with pytest.raises(SimoError, match="expected at least one|float32 in"):
        reestimate_statistics(encoder, broken)
    assert same(before, encoder.state_dict())


def test_an_encoder_without_batch_norm_is_refused(model, batches):
    """A ViT has nothing to estimate."""
    with pytest.raises(SimoError, match=r"the list of batch norms is \[\]: expected some"):
        reestimate_statistics(model.encoder, batches)


def test_a_model_is_no_encoder(model, batches, state_of, same):
    """Its heads have batch norms, too, which are their experts'."""
    before = state_of(model)
    with pytest.raises(SimoError, match="encoder is MultiTaskModel: expected an Encoder: `model.encoder`"):
        reestimate_statistics(model, batches)
    assert same(before, model.state_dict())
