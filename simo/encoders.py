"""Encoders f_enc(x; θ): a pretrained vision backbone whose chosen blocks' features heads read."""

import inspect
import re
from contextlib import suppress
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, to_2tuple
from torch import nn

from simo.checkpoints import TensorFile, load_into
from simo.errors import SimoError, require, require_known
from simo.files import reason

# how timm's models number their blocks: blocks.3, layers.1.blocks.2, stages.0.blocks.1, blocks.4.0, layer2.1
BLOCK = re.compile(
    r"(?:^|\.)(?:(?:blocks|layers|stages|transformers)\.|layer)(\d+)(?:\.(?:blocks\.)?(\d+))?(?=\.|$)"
)
# what lets a family of timm's models take images of any size; a family knows one of them, or none
ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class Features(NamedTuple):
    """What heads see of an image: the tokens of each tapped block, before the encoder's final norm.

    Attributes
    ----------
    patches : Tensor
        `(B, L, D, h, w)`: patch tokens of L blocks as maps. Levels of a pyramid, which differ in width, lie
        one behind the other as a single one: `(B, 1, Σ D_l, h, w)`.
    classes : Tensor
        `(B, L, D)`: their class tokens; `(B, L, 0)` of a backbone without.
    """

    patches: torch.Tensor
    classes: torch.Tensor

    def maps(self, dims):
        """Patches as a list of maps `(B, D_l, h, w)`, one a tap, of the widths `dims`."""
        alike = self.patches.shape[1] == len(dims)
        return list(self.patches.unbind(1) if alike else self.patches[:, 0].split(dims, dim=1))


# mean and deviation of the channels, by which images in [0, 1] are shifted and scaled: "signed" gives
# [-1, 1], as the paper does; "imagenet" is what DINOv2 was pretrained with, from which the paper deviates
INPUT_SCALES = {
    "signed": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Encoder(nn.Module):
    """A timm backbone as a dense feature extractor, by timm's own `forward_intermediates`.

    Parameters
    ----------
    backbone : nn.Module
        A timm model with `forward_intermediates`.
    blocks : sequence of int
        Which blocks' outputs to return, counted from 1 as in the paper (3, 6, 9, 12). Of a pyramid (Swin,
        ConvNeXt, EfficientNet ...): which levels of timm's `feature_info`, counted from 1.
    input_scale : str
        A key of `INPUT_SCALES`.

    Attributes
    ----------
    dims : list of int
        Width of each tap.
    classes : bool
        Whether class tokens come with the patches. Other prefix tokens (registers ...) are left out.
    size : (int, int) or None
        Height and width of images, where the backbone takes no others.

    Raises
    ------
    SimoError
        For a block that does not exist, or an unknown input scale.
    """

    def __init__(self, backbone, blocks, input_scale="signed"):
        super().__init__()
        depth = len(backbone.feature_info)
        whole = isinstance(blocks, list | tuple) and all(type(block) is int for block in blocks)
        rising = whole and blocks and list(blocks) == sorted({b for b in blocks if 1 <= b <= depth})
        require("the list of blocks", blocks, rising, f"increasing numbers from 1 to {depth}, the depth")
        require_known("input_scale", input_scale, INPUT_SCALES)
        self.backbone, self.taps, self.size = backbone, [block - 1 for block in blocks], None
        self.strides = [level["reduction"] for level in backbone.feature_info]
        takes = inspect.signature(backbone.forward_intermediates).parameters
        self.classes = getattr(backbone, "cls_token", None) is not None and "return_prefix_tokens" in takes
        for name, values in zip(("mean", "deviation"), INPUT_SCALES[input_scale], strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @property
    def dims(self):
        """Width of each tap, see above."""
        return [self.backbone.feature_info[tap]["num_chs"] for tap in self.taps]

    def blank(self):
        """A black image `(1, 3, H, W)` of a size that the backbone takes."""
        height, width = self.size or (2 * max(self.strides), 3 * max(self.strides))
        return self.mean.new_zeros(1, 3, height, width)

    def forward(self, image):
        """Extract features, on the grid of the finest tap, to which others are resized bilinearly.

        Scaled images are zero-padded symmetrically to multiples of the coarsest stride (unless there is but
        one `size`), the odd pixel at the right or below. Of the grid, what covers the image is returned.

        Parameters
        ----------
        image : Tensor
            `(B, 3, H, W)` in `[0, 1]`.

        Returns
        -------
        Features
            With `h = ceil(H / stride)`, `w = ceil(W / stride)`, the stride that of the finest tap.

        Raises
        ------
        SimoError
            For a size that the backbone does not take, or a finest tap that does not lie as its stride says.
        """
        size, kind = tuple(image.shape[-2:]), f"this {type(self.backbone).__name__}"
        wanted = f"{self.size}, which is all that {kind} takes: set img_size in backbone_args"
        require("size of images", size, not self.size or size == self.size, wanted)
        options = {"return_prefix_tokens": True} if self.classes else {}
        padded = self.pad(image)
        taps = self.backbone.forward_intermediates(
            padded, indices=self.taps, norm=False, intermediates_only=True, **options
        )
        maps, prefixes = zip(*taps, strict=True) if self.classes else (taps, ())
        grid, stride = maps[0].shape[-2:], self.strides[self.taps[0]]
        whole, (h, w) = (tuple(-(-length // stride) for length in x.shape[-2:]) for x in (padded, image))
        require("the finest tap's grid", tuple(grid), grid == whole, f"{whole}, as of a stride of {stride}")
        top, left = (grid[0] - h) // 2, (grid[1] - w) // 2
        maps = [F.interpolate(x, grid, mode="bilinear", align_corners=False) for x in maps]
        patches = torch.cat(maps, dim=1)[..., top : top + h, left : left + w]
        patches = patches.unflatten(1, (len(maps) if len(set(self.dims)) == 1 else 1, -1))
        classes = [prefix[:, 0] for prefix in prefixes]  # a class token comes first
        return Features(patches, torch.stack(classes, dim=1) if classes else patches[:, :, :0, 0, 0])

    def padding(self, size):
        """Rows and columns of zeros that images of a size `(H, W)` are given, see `forward`."""
        stride = 1 if self.size else max(self.strides)
        return tuple(-length % stride for length in size)

    def pad(self, image):
        """Scale images, and pad them with zeros, see `forward`."""
        bottom, right = self.padding(image.shape[-2:])
        padding = (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2)
        return F.pad(((image - self.mean) / self.deviation).to(self.mean.dtype), padding)


class PlainViT(Encoder):
    """The paper's kind of encoder: a `VisionTransformer` with one class token and learned positions.

    Positions are interpolated as in DINOv2's code, which differs a little from timm's way.
    """

    def __init__(self, backbone, blocks, input_scale="signed"):
        super().__init__(backbone, blocks, input_scale)
        backbone.patch_embed.strict_img_size = False  # `add_positions` takes any grid

    def forward(self, image):
        """Extract features, see `Encoder.forward`."""
        image = self.pad(image)  # (B, 3, h·patch, w·patch)
        grid = tuple(length // self.strides[0] for length in image.shape[-2:])
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
        classes = self.backbone.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([classes, patches], dim=1) + positions


def create_encoder(backbone, backbone_args, blocks, weights=None, input_scale="signed"):
    """Create an encoder over a timm backbone, without classifier.

    Images of any size are taken, unless the backbone can only take its own, see `Encoder.size`.

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

    Returns
    -------
    Encoder
        A `PlainViT`, if the backbone is one.

    Raises
    ------
    SimoError
        For an unknown model, one that cannot be tapped or is not for RGB images, or weights that do not fit.
    """
    try:
        model = timm.create_model(backbone, num_classes=0, **backbone_args)
    except Exception as error:  # its models check little of what they are given
        raise SimoError(f"timm cannot create {backbone!r} with {backbone_args}: {reason(error)}") from error
    plain = _is_plain(model)
    fixed = not (plain and model.dynamic_img_size)
    require(f"{backbone!r}: dynamic_img_size", True, fixed, "none: a ViT takes images of any size anyway")
    taps = hasattr(model, "forward_intermediates") and getattr(model, "feature_info", None)
    require(repr(backbone), f"a {type(model).__name__}", taps, "one with forward_intermediates, feature_info")
    if not plain:
        model = _of_any_size(backbone, backbone_args)
    if weights is not None:
        load_into(model, TensorFile(weights), weights)
    encoder = (PlainViT if plain else Encoder)(model, blocks, input_scale)
    if not plain:
        own = to_2tuple(backbone_args.get("img_size", model.pretrained_cfg["input_size"][-2:]))
        _try_sizes(encoder, own, f"{backbone!r} with {backbone_args}")
    return encoder


def block_number(name):
    """Numbers of the stage and block that a module or tensor belongs to, in order of depth; `()` if none.

    `blocks.3.attn` is in (3,), `stages.1.blocks.2.norm` in (1, 2), `stages.1.downsample` in (1,), before it.
    """
    found = BLOCK.search(name)
    return tuple(int(number) for number in found.groups() if number) if found else ()


def _is_plain(model):
    """Whether a model is what `PlainViT` computes."""
    return (
        isinstance(model, timm.models.VisionTransformer)
        and model.cls_token is not None
        and model.num_prefix_tokens == 1
        and not (model.pos_embed is None or model.no_embed_class)
        and type(model.patch_embed) is PatchEmbed
        and model.patch_embed.proj.in_channels == 3
        and len(set(model.patch_embed.patch_size)) == 1
    )


def _of_any_size(backbone, backbone_args):
    """A timm model that takes images of any size, if its family has an option for that."""
    for option in ANY_SIZE:
        with suppress(TypeError):  # an option that the family does not know
            return timm.create_model(backbone, num_classes=0, **backbone_args | option)


@torch.no_grad()
def _try_sizes(encoder, own, name):
    """Find out whether an encoder takes images of any size or only of its `own`; SimoError if neither."""
    anything = encoder.blank()
    anything = anything.mT if anything.shape[-2:] == own else anything
    encoder.eval()
    for image, size in ((anything, None), (encoder.mean.new_zeros(1, 3, *own), own)):
        encoder.size = size
        try:
            encoder(image).maps(encoder.dims)
        except (RuntimeError, AssertionError, TypeError, ValueError, LookupError) as error:
            found = reason(error)
        else:
            encoder.train()
            return
    raise SimoError(f"{name}: expected a model of RGB images whose blocks give maps, found {found}")
