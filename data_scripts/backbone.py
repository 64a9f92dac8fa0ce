"""Pretrain the miniature's encoder: a masked autoencoder (He et al., 2022) on unlabelled rendered scenes.

    python -m data_scripts.backbone --out simo/weights/miniature_vit.safetensors

The encoder stands in for DINOv2 ViT-B/14, the paper's pretrained encoder: a common start for all experts
that has seen no label. It is no DINOv2: 1.2 million parameters that know nothing but small rendered rooms
and streets. As in the paper, it is one start for all data sets.

The renders and the state of an unfinished training lie in `--cache`, so that an interrupted run continues.
"""

import argparse
import functools
import hashlib
import json
import math
import os
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from data_scripts.commands import exit_status
from data_scripts.miniature import SIZES, scene_seed
from data_scripts.preparing import in_parallel
from data_scripts.render import RENDERER, render_room, render_street
from simo.checkpoints import TensorFile, save_checkpoint, versions
from simo.encoders import create_encoder
from simo.errors import SimoError
from simo.files import atomic_path, decoding
from simo.training import Optimisation, OwnLoss, device_name, fit, pick_device, progress

STAND_IN_FOR = "DINOv2 ViT-B/14"
MODEL = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4},
}
SIZE, PATCH = MODEL["backbone_args"]["img_size"], MODEL["backbone_args"]["patch_size"]
PATCHES = (SIZE // PATCH) ** 2
CHUNK = 500  # renders a file: what an interruption may cost each process


class MaskedAutoencoder(nn.Module):
    """A ViT that sees some patches of an image, and a small decoder that predicts the pixels of the others.

    Parameters
    ----------
    encoder : nn.Module
        A timm `VisionTransformer` with one class token; all that is kept in the end.
    width, depth : int
        Of the decoder.
    """

    def __init__(self, encoder, width=96, depth=2):
        super().__init__()
        self.encoder = encoder
        self.embed = nn.Linear(encoder.embed_dim, width)
        self.hidden_token = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(0.02 * torch.randn(PATCHES + 1, width))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layers = [nn.TransformerEncoderLayer(width, 4, 4 * width, **options) for _ in range(depth)]
        self.decoder = nn.Sequential(*layers)
        self.predict = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * PATCH**2))

    def encode(self, images, visible):
        """Encode images `(B, 3, H, W)` in [0, 1] from patches `visible` `(B, K)` only: `(B, 1 + K, D)`."""
        encoder = self.encoder
        # the scaling is that of simo.encoders.Encoder
        tokens = encoder._pos_embed(encoder.patch_embed(2 * images - 1))  # (B, 1 + N, D)
        patches = tokens[:, 1:].gather(1, visible[..., None].expand(-1, -1, tokens.shape[-1]))  # (B, K, D)
        return encoder.norm(encoder.blocks(torch.cat([tokens[:, :1], patches], dim=1)))

    def forward(self, images, visible):
        """Predict `(B, N, 3 · patch²)`, the normalised pixels of every patch, see `pixels`."""
        tokens = self.embed(self.encode(images, visible))  # (B, 1 + K, W)
        patches = self.hidden_token.to(tokens.dtype).expand(len(images), PATCHES, -1)
        patches = patches.scatter(1, visible[..., None].expand(-1, -1, tokens.shape[-1]), tokens[:, 1:])
        decoded = self.decoder(torch.cat([tokens[:, :1], patches], dim=1) + self.position)  # (B, 1 + N, W)
        return self.predict(decoded[:, 1:])


def hidden_error(predicted, images, visible):
    """Mean squared error over the hidden patches, from `(B, N, P)`, `(B, 3, H, W)` and indices `(B, K)`."""
    hidden = torch.ones(predicted.shape[:2], device=predicted.device).scatter(1, visible, 0.0)  # (B, N)
    errors = (predicted.float() - pixels(images)).square().mean(dim=2)  # (B, N)
    return (errors * hidden).sum() / hidden.sum()


class Renders(Dataset):
    """Images `(N, H, W, 3)` uint8 as a data set for `simo.training.fit`."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, item):
        """Read `bytes` `(3, H, W)` uint8 at `item = (index, key)`; it is augmented by batch, not here."""
        return {"bytes": torch.from_numpy(self.images[item[0]]).movedim(-1, 0)}


def pixels(images):
    """Pixels `(B, N, 3 · patch²)` of images, each patch shifted and scaled to mean 0 and deviation 1."""
    patches = F.unfold(images, PATCH, stride=PATCH).mT  # (B, N, 3 · patch²)
    # a deviation of .01 is the sensor's noise on a flat wall, which nothing can predict
    return (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-4).sqrt()


def choose_visible(batch, mask):
    """Draw which patches of each image the encoder sees: indices `(batch, K)`, `K = (1 - mask) · N`."""
    return torch.rand(batch, PATCHES).argsort(dim=1)[:, : round((1 - mask) * PATCHES)]


def augment(images):
    """Enlarge a random window (60 to 100 % of the area) of each image, and mirror it at random."""
    half = torch.empty(len(images), 1).uniform_(0.6, 1.0).sqrt()  # half the window's side, of [-1, 1]
    centre = (2 * torch.rand(len(images), 2) - 1) * (1 - half)
    mirror = 1 - 2 * torch.randint(2, (len(images), 1))
    zero = torch.zeros_like(half)
    rows = [half * mirror, zero, centre[:, :1], zero, half, centre[:, 1:]]
    grid = F.affine_grid(torch.cat(rows, dim=1).view(-1, 2, 3), images.shape, align_corners=False)
    return F.grid_sample(images, grid.to(images.device), padding_mode="reflection", align_corners=False)


def pretrain(images, optimisation, learning_rate, mask, resume=None):
    """Train a fresh encoder and decoder on images `(N, H, W, 3)` uint8; return encoder and loss history.

    Augmentation and visible patches are drawn from the generator that `fit` seeds at each step.
    """
    torch.manual_seed(optimisation.seed)
    encoder = create_encoder(**MODEL, blocks=[MODEL["backbone_args"]["depth"]]).backbone
    model = MaskedAutoencoder(encoder).to(optimisation.device)

    def reconstruct(batch):
        views = augment(batch["bytes"] / 255)
        visible = choose_visible(len(views), mask).to(views.device)
        return {"image": hidden_error(model(views, visible), views, visible)}

    rates = [(list(model.parameters()), learning_rate)]
    plan = (model, reconstruct, rates, Renders(images), [OwnLoss("image")], optimisation)
    return encoder, fit(*plan, resume=resume)


def render_scene(number, seed):
    """Render the image of a number `(H, W, 3)` uint8: even numbers are rooms, odd ones parts of streets.

    Streets are as wide as in the miniature's Cityscapes, so that things have the same size there; of the
    width, one of the parts that fit is kept.
    """
    scene = scene_seed(seed, "pretraining", number)
    if number % 2 == 0:
        image = render_room(scene, SIZE, SIZE)["image"]
    else:
        width = SIZES["cityscapes"][1]
        left = number // 2 % (width - SIZE + 1)
        image = render_street(scene, SIZE, width)["image"][:, left : left + SIZE]
    return (255 * image).round().astype(np.uint8)


def render_chunk(path, seed):
    """Render the images that the file's name counts, `<start>-<stop>.npy`, into it."""
    numbers = range(*map(int, path.stem.split("-")))
    with atomic_path(path) as temporary:
        np.save(temporary, np.stack([render_scene(number, seed) for number in numbers]))


def load_renders(folder, seed, count, workers):
    """Render what the folder lacks, over several processes, and load all: `(count, H, W, 3)` uint8."""
    folder = Path(folder) / f"{RENDERER}-{SIZE}-seed{seed}"
    paths = [folder / f"{start}-{min(start + CHUNK, count)}.npy" for start in range(0, count, CHUNK)]
    missing = [path for path in paths if not path.exists()]
    show = functools.partial(progress, start=len(paths) - len(missing), total=len(paths), label="render")
    render = functools.partial(render_chunk, seed=seed)
    if workers > 1 and len(missing) > 1:
        render_scene(0, seed), render_scene(1, seed)  # compile the kernel once, for all workers
    deque(show(in_parallel(render, missing, workers)), maxlen=0)
    with decoding(f"a file in {folder}", "delete it and run again"):
        return np.concatenate([np.load(path, allow_pickle=False) for path in paths])


def parse(arguments):
    """Read the command line; SimoError for values that cannot be used."""
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m data_scripts.backbone", description=summary)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--images", type=int, default=16000, help="unlabelled renders")
    parser.add_argument("--epochs", type=float, default=24, help="passes over them")
    # for so little computation many small steps win: after 38,400 images the loss is .70, with 128 a step .83
    parser.add_argument("--batch-size", type=int, default=32, help="images a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--mask", type=float, default=0.6, help="share of the patches that are hidden")
    parser.add_argument("--seed", type=int, default=0, help="of renders, weights, order and masks")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="rendering processes")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--cache", type=Path, default=Path("build/backbone"), help="of unfinished work")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".safetensors":
        raise SimoError(f"--out {options.out}: expected a name that ends in .safetensors")
    for name in ("images", "epochs", "batch_size", "lr", "workers"):
        if not getattr(options, name) > 0:
            raise SimoError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected a number above 0")
    if not (0 < options.mask < 1 and 0 < choose_visible(1, options.mask).shape[1] < PATCHES):
        raise SimoError(f"--mask {options.mask}: expected some of {PATCHES} patches hidden, some visible")
    return options


def run(options):
    """Render, pretrain, and write the encoder's weights in half precision with their recipe."""
    device, precision = pick_device(options.device)
    what = {name: getattr(options, name) for name in ("images", "epochs", "batch_size", "lr", "mask", "seed")}
    what |= {"renderer": RENDERER, "precision": precision}
    identity = hashlib.sha256(json.dumps([what, MODEL], sort_keys=True).encode()).hexdigest()[:12]
    state = options.cache / f"state-{identity}.safetensors"
    images = load_renders(options.cache, options.seed, options.images, options.workers)
    optimisation = Optimisation(
        steps=math.ceil(options.epochs * options.images / options.batch_size),
        batch_size=options.batch_size,
        seed=options.seed,
        weight_decay=0.05,
        device=device,
        precision=precision,
    )
    begun, clock = int(TensorFile(state).metadata["step"]) if state.exists() else 0, time.monotonic()
    encoder, history = pretrain(images, optimisation, options.lr, options.mask, state)
    recipe = {
        "script": "data_scripts.backbone",
        "stand_in_for": STAND_IN_FOR,
        "method": "masked autoencoder on unlabelled rendered rooms and streets",
        "model": MODEL,
        "arguments": what,
        "steps": optimisation.steps,
        "final_loss": history[-1]["image"],
        "device": device_name(device),
        "seconds": round(time.monotonic() - clock, 1),
        "seconds_from_step": begun,  # above 0 if an interrupted run was continued
        "versions": versions(),
    }
    save_checkpoint(options.out, {name: x.half() for name, x in encoder.state_dict().items()}, recipe)
    state.unlink()


def main(arguments=None):
    """Run the command line; return its exit status."""
    return exit_status(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
