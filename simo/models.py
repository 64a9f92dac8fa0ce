"""The shared-bottom model: a ViT encoder whose chosen blocks feed one head a task.

Z = f_enc(x; θ), y_t = g_t(Z; φ_t). θ is everything in `Encoder`, φ_t everything in the task's head.
"""

import math
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import nn

from simo.checkpoints import TensorFile, load_into, load_recipe
from simo.errors import SimoError
from simo.heads import create_head
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


# mean and deviation of the channels, by which images in [0, 1] are shifted and scaled: "signed" gives
# [-1, 1], as the paper does; "imagenet" is what DINOv2 was pretrained with, from which the paper deviates
INPUT_SCALES = {
    "signed": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Encoder(nn.Module):
    """A timm vision transformer as a dense feature extractor, for images of any size.

    Parameters
    ----------
    backbone : nn.Module
        A timm `VisionTransformer` with one class token and learned positions.
    blocks : sequence of int
        Which blocks' outputs to return, counted from 1 as in the paper (3, 6, 9, 12).
    input_scale : str
        A key of `INPUT_SCALES`.

    Raises
    ------
    SimoError
        For a block that does not exist, or an unknown input scale.
    """

    def __init__(self, backbone, blocks, input_scale="signed"):
        super().__init__()
        depth = len(backbone.blocks)
        if not blocks or list(blocks) != sorted({block for block in blocks if 1 <= block <= depth}):
            raise SimoError(
                f"blocks {list(blocks)}: expected increasing numbers from 1 to {depth}, the depth"
            )
        if input_scale not in INPUT_SCALES:
            raise SimoError(f"unknown input_scale {input_scale!r}: expected one of {sorted(INPUT_SCALES)}")
        self.backbone, self.taps = backbone, [block - 1 for block in blocks]
        self.dim, self.patch = backbone.embed_dim, backbone.patch_embed.patch_size[0]
        backbone.patch_embed.strict_img_size = False  # `add_positions` takes any grid
        for name, values in zip(("mean", "deviation"), INPUT_SCALES[input_scale], strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, image):
        """Extract features.

        Scaled images are zero-padded symmetrically to multiples of the patch size, the odd pixel at the
        right or below.

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
        image = F.pad((image - self.mean) / self.deviation, padding)  # (B, 3, h·patch, w·patch)
        grid = tuple(length // self.patch for length in image.shape[-2:])
        vit = self.backbone
        tokens = self.add_positions(vit.patch_embed(image), grid)  # (B, 1 + h·w, D)
        tokens = vit.norm_pre(vit.patch_drop(vit.pos_drop(tokens)))
        outputs = []
        for number, block in enumerate(vit.blocks):
            tokens = block(tokens)
            if number in self.taps:
                outputs.append(tokens)
        tapped = torch.stack(outputs, dim=1)  # (B, L, 1 + h·w, D)
        return Features(tapped[:, :, 1:].mT.unflatten(-1, grid), tapped[:, :, 0])

    def add_positions(self, patches, grid):
        """Put the class token before the patch tokens, and add the positions, interpolated to the grid.

        The position embedding stays one parameter of the pretrained size, so that task vectors of models
        trained at different image sizes fit each other. As in DINOv2's code, other grids get it by bicubic
        interpolation without antialiasing, at sampling positions that a scale enlarged by 0.1 patches gives
        (`interpolate_offset`; it moves them by up to .1 / h of the grid, and the pretrained weights are
        evaluated like this everywhere).

        Parameters
        ----------
        patches : Tensor
            `(B, h·w, D)`.
        grid : (int, int)
            h and w.

        Returns
        -------
        Tensor
            `(B, 1 + h·w, D)`.
        """
        native, positions = self.backbone.patch_embed.grid_size, self.backbone.pos_embed  # (1, 1 + n, D)
        if grid != tuple(native):
            scale = [(new + 0.1) / old for new, old in zip(grid, native, strict=True)]
            maps = positions[:, 1:].mT.unflatten(-1, native).float()  # bfloat16 would blur the grid
            maps = F.interpolate(maps, scale_factor=scale, mode="bicubic")  # (1, D, h, w)
            positions = torch.cat([positions[:, :1], maps.flatten(2).mT.to(positions.dtype)], dim=1)
        classes = self.backbone.cls_token.expand(len(patches), -1, -1)
        return torch.cat([classes, patches], dim=1) + positions


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

    def only(self, names):
        """Return a model with the same encoder and the heads named, which spares computing the others."""
        return MultiTaskModel(self.encoder, {name: self.heads[name] for name in names})


class AdaptedBlock(nn.Module):
    """A transformer block, or a linear layer of one, with a low-rank adapter beside it: f(x) + B A x.

    Around a block it is the paper's adapter, around a linear layer it is LoRA (Hu et al., 2022).

    Parameters
    ----------
    block : nn.Module
        f, on tokens `(B, N, D)`.
    width, rank : int
        A is `(rank, width)`, B is `(outputs, rank)` and starts at 0, so that nothing changes at first.
    outputs : int, optional
        Width of f(x), if it is not that of x.
    """

    def __init__(self, block, width, rank, outputs=None):
        super().__init__()
        self.block = block
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, outputs or width, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x, **options):
        """Apply block and adapter to tokens `(B, N, D)`."""
        return self.block(x, **options) + self.up(self.down(x))


class ReleasedAdapter(AdaptedBlock):
    """The adapter of the paper's released code, at the block's output h = f(x): h − B relu(A h)."""

    def forward(self, x, **options):
        """Apply block, then adapter, to tokens `(B, N, D)`."""
        out = self.block(x, **options)
        return out - self.up(F.relu(self.down(out)))


ADAPTERS = {"paper": AdaptedBlock, "released": ReleasedAdapter}  # around blocks; "lora" is inside them


def add_adapters(encoder, rank, adapter="paper"):
    """Put adapters into the encoder, in place; return the adapters' parameters.

    Parameters
    ----------
    encoder : Encoder
        All its own parameters are frozen.
    rank : int
        16 in the paper: 2 · 16 · D parameters a block. LoRA has as many with 2.
    adapter : str
        A key of `ADAPTERS`, one around every block; or `lora`, one around every linear layer of the blocks.

    Returns
    -------
    list of Parameter
        2 an adapter, trainable.
    """
    encoder.requires_grad_(False)
    blocks, width = encoder.backbone.blocks, encoder.backbone.embed_dim
    if adapter == "lora":
        layers = {name: layer for name, layer in blocks.named_modules() if isinstance(layer, nn.Linear)}
        adapted = []
        for name, layer in layers.items():
            parent, _, own = name.rpartition(".")
            adapted.append(AdaptedBlock(layer, layer.in_features, rank, layer.out_features))
            setattr(blocks.get_submodule(parent), own, adapted[-1])
    else:
        adapted = [ADAPTERS[adapter](block, width, rank) for block in blocks]
        encoder.backbone.blocks = nn.Sequential(*adapted)
    return [module.weight for each in adapted for module in (each.down, each.up)]


def create_encoder(backbone, backbone_args, blocks, weights=None, input_scale="signed"):
    """Create an encoder over a timm backbone, without classifier.

    Parameters
    ----------
    backbone : str
        A timm model name.
    backbone_args : dict
        Further arguments of `timm.create_model`, such as `img_size`, the size of the position embedding.
    blocks, input_scale
        See `Encoder`.
    weights : str or Path, optional
        A safetensors file of the backbone's state; random weights if not given.

    Raises
    ------
    SimoError
        For an unknown model, one without class token or square patches, or weights that do not fit.
    """
    try:
        vit = timm.create_model(backbone, num_classes=0, **backbone_args)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise SimoError(f"timm cannot create {backbone!r} with {backbone_args}: {error}") from error
    known = isinstance(vit, timm.models.VisionTransformer) and vit.num_prefix_tokens == 1
    if not known or vit.pos_embed is None or vit.no_embed_class:
        raise SimoError(f"{backbone!r}: expected a ViT with exactly one class token and learned positions")
    embed = vit.patch_embed
    plain = type(embed) is PatchEmbed and embed.proj.in_channels == 3 and len(set(embed.patch_size)) == 1
    if not plain or vit.dynamic_img_size:
        raise SimoError(
            f"{backbone!r} with {backbone_args}: expected square patches of RGB images, without "
            "dynamic_img_size: images of any size are taken anyway"
        )
    if weights is not None:
        load_into(vit, TensorFile(weights), weights)
    return Encoder(vit, blocks, input_scale)


def create_model(tasks, seed, backbone, backbone_args, blocks, head, head_options, input_scale, weights=None):
    """Create a model with the pretrained encoder and fresh heads.

    Parameters
    ----------
    tasks : sequence of Task
    seed : int
        A head's initial weights depend on it and on the task's name only, so that an expert and joint
        training start from the same head.
    backbone, backbone_args, blocks, input_scale, weights
        See `create_encoder`.
    head : str
        A key of `simo.heads.HEADS`, the same for all tasks.
    head_options : dict
        See `simo.heads.create_head`.

    Returns
    -------
    MultiTaskModel

    Raises
    ------
    SimoError
        For a name or an option that is not known, or weights that do not fit.
    """
    encoder = create_encoder(backbone, backbone_args, blocks, weights, input_scale)
    heads = {}
    for task in tasks:
        torch.manual_seed(seed * 1_000_003 + sum(map(ord, task.name)))
        heads[task.name] = create_head(head, task, len(blocks), encoder.dim, head_options)
    return MultiTaskModel(encoder, heads)


def load_model(path, settings, **expected):
    """Load a checkpoint of an expert, a merged or a realigned model.

    Parameters
    ----------
    path : str or Path
        The `.safetensors` file; its recipe says which tasks' heads and which adapters it holds.
    settings : dict
        `backbone`, `backbone_args`, `blocks`, `head`, `head_options`, `input_scale`: must be those it was
        made with.
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
