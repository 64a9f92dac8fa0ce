"""Encoders f_enc(x; θ): a pretrained vision backbone whose chosen blocks' features heads read."""

from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import nn

from simo.checkpoints import TensorFile, load_into
from simo.errors import SimoError


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
