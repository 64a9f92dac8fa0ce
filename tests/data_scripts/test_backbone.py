"""The miniature's pretraining: what the encoder sees, what the loss counts, resuming, shipped weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_scripts import backbone
from data_scripts.miniature import scene_seed
from data_scripts.render import render_room
from simo.checkpoints import load_recipe
from simo.encoders import create_encoder
from simo.training import Optimisation

WEIGHTS = Path(__file__).parents[2] / "simo" / "weights" / "miniature_vit.safetensors"


def create_vit(seed=0):
    torch.manual_seed(seed)
    return create_encoder(**backbone.MODEL, blocks=[6]).backbone.eval()


@pytest.fixture
def noise(monkeypatch):
    """Replace the renderer by noise; list the seeds that were drawn."""
    seeds = []

    def render(seed, height, width):
        seeds.append(seed)
        return {"image": np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)}

    monkeypatch.setattr(backbone, "render_room", render)
    monkeypatch.setattr(backbone, "render_street", render)
    return seeds


def call(folder, *arguments):
    """Run the command with few images; return exit status and checkpoint."""
    out = folder / "vit.safetensors"
    few = ["--images", "64", "--epochs", "1", "--batch-size", "32", "--workers", "1", "--device", "cpu"]
    return backbone.main(["--out", str(out), "--cache", str(folder / "cache"), *few, *arguments]), out


def test_hidden_pixels_do_not_reach_the_encoder():
    """Protects the premise of masked autoencoding: what is to be predicted cannot be looked up."""
    model, images = backbone.MaskedAutoencoder(create_vit()), torch.rand(2, 3, 64, 64)
    visible = backbone.choose_visible(2, mask=0.6)
    shown = torch.zeros(2, 64).scatter(1, visible, 1.0).view(2, 1, 8, 8)
    shown = shown.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    changed = torch.where(shown == 1, images, torch.rand_like(images))
    with torch.no_grad():
        assert torch.equal(model.encode(images, visible), model.encode(changed, visible))
        assert not torch.equal(model.encode(images, visible), model.encode(images.flip(-1), visible))


def test_encoder_is_trained_as_it_is_used():
    """Protects against a pretraining whose scaling, positions or order differ from the Encoder's."""
    vit, images = create_vit(), torch.rand(2, 3, 64, 64)
    model = backbone.MaskedAutoencoder(vit)
    with torch.no_grad():
        tokens = model.encode(images, torch.arange(64).expand(2, -1))
        features = create_encoder(**backbone.MODEL, blocks=[6])
        features.backbone = vit
        patches, classes = features(images)
        expected = vit.norm(torch.cat([classes, patches[:, 0].flatten(2).mT], dim=1))
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


def test_decoder_sees_tokens_at_their_own_places():
    """Protects the way back: a prediction does not depend on the order of the visible patches."""
    model, images = backbone.MaskedAutoencoder(create_vit()).eval(), torch.rand(2, 3, 64, 64)
    visible = backbone.choose_visible(2, mask=0.6)
    with torch.no_grad():
        predicted, expected = model(images, visible.flip(1)), model(images, visible)
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-5)


def test_loss_counts_hidden_patches_only():
    """Protects the loss: by hand, two hidden patches that are off by 1 and by 3 give (1 + 9) / 2."""
    images = torch.rand(1, 3, 64, 64)
    predicted, hidden = backbone.pixels(images), torch.tensor([5, 40])
    predicted[0, 5] += 1
    predicted[0, 40] -= 3
    visible = torch.tensor([[i for i in range(64) if i not in hidden]])
    assert backbone.hidden_error(predicted, images, visible).item() == pytest.approx(5, rel=1e-4)
    predicted[0, visible] += 100
    assert backbone.hidden_error(predicted, images, visible).item() == pytest.approx(5, rel=1e-4)


def test_pixels_are_normalised_by_patch():
    """Protects the target: patch 9 is row 1, column 1 of the grid, with mean 0 and deviation 1."""
    images = torch.rand(1, 3, 64, 64)
    patch = images[0, :, 8:16, 8:16].flatten()
    expected = (patch - patch.mean()) / patch.std()
    torch.testing.assert_close(backbone.pixels(images)[0, 9], expected, rtol=1e-2, atol=1e-2)
    assert backbone.pixels(torch.ones(1, 3, 64, 64)).abs().max() == 0


def test_augmentation_is_mild_and_seeded():
    """Protects the views: windows of the image, slightly enlarged, a function of the generator only."""
    ramp = torch.linspace(0, 1, 64).expand(64, 3, 64, 64)
    torch.manual_seed(1)
    views = backbone.augment(ramp)
    torch.manual_seed(1)
    assert torch.equal(views, backbone.augment(ramp))
    rise = views[:, 0, 0, -1] - views[:, 0, 0, 0]
    assert rise.abs().min() > 0.6**0.5 - 0.05
    assert rise.abs().max() <= 1
    assert 0.2 < (rise < 0).float().mean() < 0.8


def test_script_writes_a_checkpoint_that_loads(tmp_path, noise):
    """Protects the whole command: rendered, trained for two steps, saved, and of use to simo.models."""
    status, out = call(tmp_path)
    assert status == 0
    assert noise == [scene_seed(0, "pretraining", index) for index in range(64)]
    recipe = load_recipe(out, stand_in_for="DINOv2 ViT-B/14", steps=2, model=backbone.MODEL)
    assert recipe["arguments"]["images"] == 64
    features = create_encoder(**backbone.MODEL, blocks=[2, 6], weights=out)(torch.rand(1, 3, 64, 64))
    assert features.patches.shape == (1, 2, 128, 8, 8)
    assert torch.isfinite(features.patches).all()
    assert not list((tmp_path / "cache").glob("state*"))


def test_rooms_and_streets_take_turns(monkeypatch):
    """Protects the mixture, and the size at which things are seen: a street's part is as wide as 64 of 96."""
    whole = np.random.default_rng(0).random((64, 96, 3), dtype=np.float32)
    sizes = []
    monkeypatch.setattr(backbone, "render_room", lambda seed, *size: {"image": whole[:, :64]})
    monkeypatch.setattr(backbone, "render_street", lambda seed, *size: sizes.append(size) or {"image": whole})
    room, first, second = (backbone.render_scene(number, 0) for number in (0, 1, 67))
    expected = (255 * whole).round().astype(np.uint8)
    assert np.array_equal(room, expected[:, :64])
    assert np.array_equal(first, expected[:, :64])
    assert np.array_equal(second, expected[:, 0:64])
    assert np.array_equal(backbone.render_scene(9, 0), expected[:, 4:68])
    assert set(sizes) == {(64, 96)}


def test_renders_are_resumed_by_chunks(tmp_path, noise, monkeypatch):
    """Protects finished renders: after an interruption only what is missing is rendered, as before."""
    monkeypatch.setattr(backbone, "CHUNK", 4)
    whole = backbone.load_renders(tmp_path, 3, 10, workers=1)
    assert whole.shape == (10, 64, 64, 3)
    assert whole.dtype == np.uint8
    assert len(noise) == 10
    next(tmp_path.glob("*/4-8.npy")).unlink()
    assert np.array_equal(backbone.load_renders(tmp_path, 3, 10, workers=1), whole)
    assert noise[10:] == [scene_seed(3, "pretraining", index) for index in range(4, 8)]


def test_resumed_training_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    """Protects reproducibility: an interruption changes neither the weights nor the history."""
    images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    settings = Optimisation(steps=4, batch_size=8, seed=0, weight_decay=0.05, save_seconds=0)
    whole, history = backbone.pretrain(images, settings, 1e-3, 0.6, tmp_path / "whole.safetensors")

    calls, augment = [], backbone.augment

    def interrupt(views):
        calls.append(views)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return augment(views)

    monkeypatch.setattr(backbone, "augment", interrupt)
    with pytest.raises(KeyboardInterrupt):
        backbone.pretrain(images, settings, 1e-3, 0.6, tmp_path / "state.safetensors")
    resumed, resumed_history = backbone.pretrain(images, settings, 1e-3, 0.6, tmp_path / "state.safetensors")
    assert len(calls) == 5  # two steps, the interrupted one, and the two that were left
    assert resumed_history == history
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--mask", "1"], "--mask 1.0"), (["--lr", "0"], "--lr 0.0"), (["--out", "vit.pt"], "vit.pt")],
)
def test_unusable_arguments_are_named(tmp_path, noise, capsys, arguments, message):
    """Protects the user from tracebacks: one line that names the argument, before anything is rendered."""
    status, _ = call(tmp_path, *arguments)
    assert status == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert noise == []


def test_damaged_renders_are_named(tmp_path, noise, capsys):
    """Protects against a half-written or foreign file in the cache: an error that says what to delete."""
    call(tmp_path)
    chunk = next((tmp_path / "cache").glob("*/0-64.npy"))
    chunk.write_bytes(b"nonsense")
    assert call(tmp_path)[0] == 1
    assert str(chunk.parent) in capsys.readouterr().err


def depth_r2(encoder, images, depth):
    """Share of the patch depths' variance that ridge regression explains in the last third of the rooms."""
    with torch.no_grad():
        features = encoder(images)
    x = features.patches.flatten(1, 2).flatten(2).mT.double()  # (B, 64, L·D)
    y = torch.nn.functional.avg_pool2d(depth, 8).flatten(1).double()  # (B, 64)
    split = 2 * len(images) // 3
    mean, deviation = x[:split].mean((0, 1)), x[:split].std((0, 1)) + 1e-6
    x = torch.cat([(x - mean) / deviation, torch.ones_like(x[..., :1])], dim=2)
    train, target = x[:split].flatten(0, 1), y[:split].flatten()
    weights = torch.linalg.solve(train.mT @ train + 50 * torch.eye(x.shape[2]).double(), train.mT @ target)
    error = (x[split:] @ weights - y[split:]).square().sum()
    return 1 - (error / (y[split:] - target.mean()).square().sum()).item()


def test_shipped_weights_are_what_they_say():
    """Protects the file in the package: intact, small, loadable, and honest about what it stands in for."""
    recipe = load_recipe(WEIGHTS, stand_in_for="DINOv2 ViT-B/14", model=backbone.MODEL)
    assert recipe["script"] == "data_scripts.backbone"
    assert WEIGHTS.stat().st_size <= 4_000_000
    create_encoder(**backbone.MODEL, blocks=[2, 3, 5, 6], weights=WEIGHTS)


def test_shipped_weights_know_rooms():
    """Protects their worth: depth of unseen rooms is better read off them than off random weights."""
    rooms = [render_room(scene_seed(0, "preview", index)) for index in range(60)]
    images = torch.stack([torch.from_numpy(room["image"]).movedim(-1, 0) for room in rooms])
    depth = torch.stack([torch.from_numpy(room["depth"]).movedim(-1, 0) for room in rooms])
    torch.manual_seed(0)
    fresh, pretrained = (
        depth_r2(create_encoder(**backbone.MODEL, blocks=[2, 3, 5, 6], weights=weights).eval(), images, depth)
        for weights in (None, WEIGHTS)
    )
    assert pretrained > fresh + 0.1
