"""The shared-bottom model: a ViT encoder whose chosen blocks feed one head a task.

Z = f_enc(x; θ), y_t = g_t(Z; φ_t). θ is everything in `Encoder`, φ_t everything in the task's head.
"""

import math
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import nn

from simo.checkpoints import TensorFile, load_into, load_recipe
from simo.errors import SimoError
from simo.tasks import tasks_of


class Features(NamedTuple):
    """What heads see of an image: the tokens of each tapped block, before the encoder's final norm.

    Attributes
    ----------
    patches : Tensor
        `(B, L, D, h, w)`: patch tokens of L blocks as maps.
    classes : Tensor
        `(B, L, D)`: their class tokens.
    """

    patches: torch.Tensor
    classes: torch.Tensor


class Encoder(nn.Module):
    """A timm vision transformer as a dense feature extractor.

    Parameters
    ----------
    backbone : nn.Module
        A timm `VisionTransformer` with one class token.
    blocks : sequence of int
        Which blocks' outputs to return, counted from 1 as in the paper (3, 6, 9, 12).
    """

    def __init__(self, backbone, blocks):
        super().__init__()
        depth = len(backbone.blocks)
        if not blocks or list(blocks) != sorted({block for block in blocks if 1 <= block <= depth}):
            raise SimoError(
                f"blocks {list(blocks)}: expected increasing numbers from 1 to {depth}, the depth"
            )
        self.backbone, self.taps = backbone, [block - 1 for block in blocks]
        self.patch = backbone.patch_embed.patch_size[0]
        self.channels = 2 * len(blocks) * backbone.embed_dim

    def forward(self, image):
        """Extract features.

        Inputs are scaled to [-1, 1] as the paper does (not by ImageNet statistics), and zero-padded
        symmetrically to multiples of the patch size.

        Parameters
        ----------
        image : Tensor
            `(B, 3, H, W)` in `[0, 1]`.

        Returns
        -------
        Features
            With `h = ceil(H / patch)`, `w = ceil(W / patch)`.
        """
        bottom, right = (-image.shape[-2]) % self.patch, (-image.shape[-1]) % self.patch
        padding = (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2)
        image = F.pad(2 * image - 1, padding)  # (B, 3, h·patch, w·patch)
        outputs = self.backbone.forward_intermediates(
            image, indices=self.taps, return_prefix_tokens=True, norm=False, intermediates_only=True
        )
        patches = torch.stack([patch for patch, _ in outputs], dim=1)  # (B, L, D, h, w)
        classes = torch.stack([prefix[:, 0] for _, prefix in outputs], dim=1)  # (B, L, D)
        return Features(patches, classes)


class LinearHead(nn.Module):
    """The paper's linear head: patch and class tokens of all taps, joined, then one 1×1 convolution.

    Classes and normals pass a batch norm first. Depth has none; its map is enlarged ×4 and clamped at 0
    before the final resize. (The released code enlarges before the convolution; a 1×1 convolution and a
    bilinear resize commute, and this order is 16 times cheaper.)

    Parameters
    ----------
    task : Task
        Gives the output channels.
    channels : int
        Input channels: 2 · taps · width.
    expand : int
        Predictions a patch along each side (pixel shuffle). 1 in the paper; the miniature's few, coarse
        patches use more.
    """

    def __init__(self, task, channels, expand=1):
        super().__init__()
        self.non_negative = task.non_negative
        self.norm = nn.Identity() if task.non_negative else nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, task.channels * expand**2, kernel_size=1)
        self.shuffle = nn.PixelShuffle(expand)

    def forward(self, features, size):
        """Predict `(B, C, *size)` from `Features`."""
        classes = features.classes[..., None, None].expand_as(features.patches)
        joined = torch.cat([features.patches, classes], dim=2).flatten(1, 2)  # (B, 2·L·D, h, w)
        out = self.shuffle(self.project(self.norm(joined)))  # (B, C, h·expand, w·expand)
        if self.non_negative:
            out = F.interpolate(out, scale_factor=4, mode="bilinear", align_corners=False).relu()
        return F.interpolate(out, tuple(size), mode="bilinear", align_corners=False)


class MultiTaskModel(nn.Module):
    """One encoder and a head for each of some tasks; a single encoder pass serves all heads.

    Parameters
    ----------
    encoder : Encoder
    heads : dict of str to nn.Module
        By task name.
    """

    def __init__(self, encoder, heads):
        super().__init__()
        self.encoder, self.heads = encoder, nn.ModuleDict(heads)

    def forward(self, image):
        """Predict every task at the size of the image.

        Parameters
        ----------
        image : Tensor
            `(B, 3, H, W)` in `[0, 1]`.

        Returns
        -------
        dict of str to Tensor
            `(B, C, H, W)` by task name.
        """
        return self.predict(self.encoder(image), image.shape[-2:])

    def predict(self, features, size):
        """Predict every task from features computed before."""
        return {name: head(features, size) for name, head in self.heads.items()}


class AdaptedBlock(nn.Module):
    """A transformer block with the paper's low-rank adapter beside it: f(x) + B A x.

    Parameters
    ----------
    block : nn.Module
        f, on tokens `(B, N, D)`.
    width, rank : int
        A is `(rank, width)`, B is `(width, rank)` and starts at 0, so that nothing changes at first.
    """

    def __init__(self, block, width, rank):
        super().__init__()
        self.block = block
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x, **options):
        """Apply block and adapter to tokens `(B, N, D)`."""
        return self.block(x, **options) + self.up(self.down(x))


def add_adapters(encoder, rank):
    """Wrap every block of the encoder, in place, in an `AdaptedBlock`; return the adapters' parameters.

    Parameters
    ----------
    encoder : Encoder
        All its own parameters are frozen.
    rank : int
        16 in the paper: 2 · 16 · D parameters a block.

    Returns
    -------
    list of Parameter
        2 a block, trainable.
    """
    encoder.requires_grad_(False)
    width = encoder.backbone.embed_dim
    adapted = [AdaptedBlock(block, width, rank) for block in encoder.backbone.blocks]
    encoder.backbone.blocks = nn.Sequential(*adapted)
    return [module.weight for block in adapted for module in (block.down, block.up)]


def create_encoder(backbone, backbone_args, blocks, weights=None):
    """Create an encoder over a timm backbone, without classifier.

    Parameters
    ----------
    backbone : str
        A timm model name.
    backbone_args : dict
        Further arguments of `timm.create_model`, such as `img_size`.
    blocks : sequence of int
        See `Encoder`.
    weights : str or Path, optional
        A safetensors file of the backbone's state; random weights if not given.

    Raises
    ------
    SimoError
        For an unknown model, one without class token, or weights that do not fit.
    """
    try:
        vit = timm.create_model(backbone, num_classes=0, **backbone_args)
    except (RuntimeError, TypeError) as error:
        raise SimoError(f"timm cannot create {backbone!r} with {backbone_args}: {error}") from error
    if getattr(vit, "num_prefix_tokens", None) != 1:
        raise SimoError(f"{backbone!r}: expected a ViT with exactly one class token")
    if weights is not None:
        load_into(vit, TensorFile(weights), weights)
    return Encoder(vit, blocks)


def create_model(tasks, seed, backbone, backbone_args, blocks, head_expand, weights=None):
    """Create a model with the pretrained encoder and fresh heads.

    Parameters
    ----------
    tasks : sequence of Task
    seed : int
        A head's initial weights depend on it and on the task's name only, so that an expert and joint
        training start from the same head.
    backbone, backbone_args, blocks, weights
        See `create_encoder`.
    head_expand : int
        See `LinearHead`.

    Returns
    -------
    MultiTaskModel
    """
    encoder = create_encoder(backbone, backbone_args, blocks, weights)
    heads = {}
    for task in tasks:
        torch.manual_seed(seed * 1_000_003 + sum(map(ord, task.name)))
        heads[task.name] = LinearHead(task, encoder.channels, head_expand)
    return MultiTaskModel(encoder, heads)


def load_model(path, settings, **expected):
    """Load a checkpoint of an expert, a merged or a realigned model.

    Parameters
    ----------
    path : str or Path
        The `.safetensors` file; its recipe says which tasks' heads and which adapters it holds.
    settings : dict
        `backbone`, `backbone_args`, `blocks`, `head_expand`: must be those it was made with.
    **expected
        Further recipe entries to insist on, such as `dataset` or `tasks`.

    Returns
    -------
    MultiTaskModel
        In eval mode, on the CPU.
    """
    recipe = load_recipe(path, model=settings, **expected)
    model = create_model(tasks_of(recipe["dataset"], recipe["tasks"]), seed=0, **settings)
    if recipe.get("adapter_rank"):
        add_adapters(model.encoder, recipe["adapter_rank"])
    load_into(model, TensorFile(path), path)
    return model.eval()


def count_parameters(parameters):
    """Total number of values in an iterable of tensors."""
    return sum(parameter.numel() for parameter in parameters)
