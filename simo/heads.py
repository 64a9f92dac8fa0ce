"""Heads g_t: from the encoder's tapped blocks to a map of predictions, by the name a profile gives them.

`linear` is the paper's head for NYUv2, `dpt` the small dense prediction transformer (Ranftl et al., 2021)
of its Cityscapes and Taskonomy experiments. Where the paper is silent, details follow the released code.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import nn

from simo.errors import SimoError, require, require_known


class LinearHead(nn.Module):
    """The paper's linear head: patch and class tokens of all taps, joined, then one 1×1 convolution.

    Maps that may be negative (classes' scores, normals, edges ...) pass a batch norm first. Depth and
    disparity have none; theirs is enlarged ×4 and clamped at 0 (`clamp_low`) before the final resize. (The
    released code enlarges before the convolution; a 1×1 convolution and a bilinear resize commute, and this
    order is 16 times cheaper.)

    Parameters
    ----------
    task : Task
        Gives the output channels, and whether they are non-negative.
    dims : sequence of int
        Width of each tap.
    classes : bool
        Whether class tokens come with the patches: 2 Σ dims input channels, otherwise Σ dims.
    expand : int
        Predictions a patch along each side (pixel shuffle). 1 in the paper; the miniature's few, coarse
        patches use more.

    Raises
    ------
    SimoError
        If `expand` is not a whole number above 0.
    """

    def __init__(self, task, dims, classes, expand=1):
        super().__init__()
        _check_sizes("linear", "expand", [expand])
        channels = (1 + classes) * sum(dims)
        self.non_negative = task.non_negative
        self.norm = nn.Identity() if task.non_negative else nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, task.channels * expand**2, kernel_size=1)
        self.shuffle = nn.PixelShuffle(expand)

    def forward(self, features, size):
        """Predict `(B, C, *size)` from `Features`."""
        (joined,) = self.inputs(features)
        out = self.shuffle(self.project(self.norm(joined)))  # (B, C, h·expand, w·expand)
        if self.non_negative:
            out = clamp_low(F.interpolate(out, scale_factor=4, mode="bilinear", align_corners=False))
        return F.interpolate(out, tuple(size), mode="bilinear", align_corners=False)

    def inputs(self, features):
        """Return a list of the one map `(B, channels, h, w)` that `project` reads: 2 Σ dims, or Σ dims."""
        patches, classes = features.patches, features.classes[..., None, None]
        classes = classes.expand(*classes.shape[:3], *patches.shape[-2:])
        return [torch.cat([patches, classes], dim=2).flatten(1, 2)]

    @torch.no_grad()
    def first_layers(self):
        """Weight `(o, d)` and bias `(o,)` of the linear layer on each input, with batch norm, in float64."""
        weight, bias = self.project.weight.flatten(1).double(), self.project.bias.double()
        if not self.non_negative:
            norm = self.norm
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            bias = bias + weight @ (norm.bias.double() - scale * norm.running_mean.double())
            weight = weight * scale
        return [(weight, bias)]

    @torch.no_grad()
    def set_first_layers(self, layers, statistics):
        """Replace them, in place.

        Parameters
        ----------
        layers : list of (Tensor, Tensor)
            As `first_layers` returns them.
        statistics : list of (Tensor, Tensor)
            Mean and variance `(d,)` of the inputs. A batch norm takes them for its own, so that training
            the head further starts from the same function.
        """
        ((weight, bias),), ((mean, variance),) = layers, statistics
        if not self.non_negative:
            self.norm.weight.fill_(1)
            self.norm.bias.zero_()
            self.norm.running_mean.copy_(mean)
            self.norm.running_var.copy_(variance)
            weight, bias = weight * (variance + self.norm.eps).sqrt(), bias + weight @ mean
        _set_layers([self.project], [(weight, bias)])


class DPTHead(nn.Module):
    """The paper's small DPT with additive readout: four taps become a pyramid, fused from coarse to fine.

    Each tap's patch tokens plus its class token are projected to `channels` and brought to 4, 2, 1 and ½
    times the patch grid, then to a common `width`. Four fusions lead from the coarsest to the finest map
    and on to 8 times the grid, where the output convolutions follow: one branch for maps that may be
    negative, one for depth and disparity.

    The defaults are the paper's: 3,412,337 parameters for depth, 3,467,760 + 129 C for C other channels.

    Parameters
    ----------
    task : Task
        Gives the output channels, and whether they are non-negative.
    dims : sequence of int
        Width of each tap, of which there must be 4.
    classes : bool
        Not used: class tokens are added to the patches where there are any.
    channels : sequence of int
        Of the reassembled taps, finest first.
    width : int
        Channels of the fusions; the depth branch goes on with a half and a quarter of them.

    Raises
    ------
    SimoError
        If there are not four taps and channels, or a size is not a whole number large enough.
    """

    def __init__(self, task, dims, classes, channels=(24, 48, 96, 192), width=128):
        super().__init__()
        found = (len(dims), len(channels))
        require("head dpt: the pair (blocks, channels)", found, found == (4, 4), "(4, 4)")
        _check_sizes("dpt", "channels", channels)
        _check_sizes("dpt", "width", [width], least=4)
        a, b, c, d = channels
        self.dims = list(dims)
        pairs = zip(dims, channels, strict=True)
        self.projects = nn.ModuleList(nn.Conv2d(dim, n, kernel_size=1) for dim, n in pairs)
        up = [nn.ConvTranspose2d(n, n, kernel_size=scale, stride=scale) for n, scale in ((a, 4), (b, 2))]
        down = nn.Conv2d(d, d, kernel_size=3, stride=2, padding=1)
        self.resizes = nn.ModuleList([*up, nn.Identity(), down])
        self.widen = nn.ModuleList(_convolution(n, width, bias=False) for n in channels)
        self.fusions = nn.ModuleList(Fusion(width, first) for first in (True, False, False, False))
        self.smooth = _convolution(width, width)
        self.non_negative = task.non_negative
        output = depth_branch if task.non_negative else map_branch
        self.output = output(width, task.channels)

    def forward(self, features, size):
        """Predict `(B, C, *size)` from `Features` of four taps."""
        levels = zip(self.inputs(features), self.projects, self.resizes, self.widen, strict=True)
        maps = [widen(resize(project(tap))) for tap, project, resize, widen in levels]
        h, w = maps[0].shape[-2:]
        sizes = [(2 * h, 2 * w), *(level.shape[-2:] for level in maps[:-1])]  # what each is enlarged to
        path = 0
        for fusion, level, target in zip(self.fusions, maps[::-1], sizes[::-1], strict=True):
            path = fusion(path, level, target)
        out = self.output(self.smooth(path).relu())  # (B, C, 8·h, 8·w), depth twice that
        out = clamp_low(out) if self.non_negative else out
        return F.interpolate(out, tuple(size), mode="bilinear", align_corners=False)

    def inputs(self, features):
        """Return the list of maps `(B, D_l, h, w)` that `projects` read: patch + class token of each tap."""
        if features.classes.shape[-1]:
            features = features._replace(patches=features.patches + features.classes[..., None, None])
        return features.maps(self.dims)

    @torch.no_grad()
    def first_layers(self):
        """Weight `(o, d)` and bias `(o,)` of the 1×1 convolution on each input, in float64."""
        return [(project.weight.flatten(1).double(), project.bias.double()) for project in self.projects]

    @torch.no_grad()
    def set_first_layers(self, layers, statistics):
        """Replace them, in place; see `LinearHead.set_first_layers`. No batch norm stands before them."""
        _set_layers(self.projects, layers)


class Fusion(nn.Module):
    """Add a finer level to the path from the coarser ones, refine the sum, and enlarge it.

    The enlarging comes after the 1×1 projection, with which it commutes, so that the projection costs a
    quarter. It goes to the size of the next level instead of ×2: the same where the grid is even, and where
    it is odd (10×19 patches) that level fits without the resize that the released code gives it.

    Parameters
    ----------
    width : int
        Channels.
    first : bool
        Whether nothing coarser precedes; then the level enters without a residual unit of its own.
    """

    def __init__(self, width, first):
        super().__init__()
        self.enter = nn.Identity() if first else ResidualUnit(width)
        self.refine = ResidualUnit(width)
        self.project = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, path, level, size):
        """From path (0 at first) and level, both `(B, W, h, w)`, to `(B, W, *size)`."""
        out = self.project(self.refine(path + self.enter(level)))
        return F.interpolate(out, tuple(size), mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """Two 3×3 convolutions without bias, each after a ReLU, beside the identity: maps `(B, W, h, w)`."""

    def __init__(self, width):
        super().__init__()
        self.first = _convolution(width, width, bias=False)
        self.second = _convolution(width, width, bias=False)

    def forward(self, x):
        """Return x + conv(relu(conv(relu(x))))."""
        return x + self.second(self.first(x.relu()).relu())


def map_branch(width, channels):
    """Output of the DPT head for maps that may be negative: classes' scores, normals, edges, colours."""
    return nn.Sequential(
        _convolution(width, width, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(width, channels, kernel_size=1),
    )  # fmt: skip


def depth_branch(width, channels):
    """Output of the DPT head for maps that are at least 0: depth, disparity. Twice the input's size."""
    return nn.Sequential(
        _convolution(width, width // 2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        _convolution(width // 2, width // 4), nn.ReLU(),  # 32 channels in the paper
        nn.Conv2d(width // 4, channels, kernel_size=1),
    )  # fmt: skip


def clamp_low(x):
    """Clamp a map at 0, as depth and disparity need, but let the gradient pass.

    The paper's code has a ReLU there. Where its argument falls below 0, be it everywhere at the start or in
    a region during training, a ReLU has no gradient, and what is 0 stays 0: small disparities, an expert's
    whole map on some seeds. The forward pass is the same.
    """
    return x + (x.relu() - x).detach()


HEADS = {"linear": LinearHead, "dpt": DPTHead}


def create_head(head, task, dims, classes, options):
    """Create a head with fresh weights from the process's random numbers.

    Parameters
    ----------
    head : str
        A key of `HEADS`.
    task : Task
    dims, classes
        Widths of the taps, and whether class tokens come with them, as the `Encoder` says.
    options : dict
        Further arguments of the head: `expand` of `linear`; `channels` and `width` of `dpt`.

    Returns
    -------
    nn.Module
        `head(features, size)` predicts `(B, C, *size)`.

    Raises
    ------
    SimoError
        For an unknown head or option, or a value that the head refuses.
    """
    require_known("head", head, HEADS)
    known = list(inspect.signature(HEADS[head]).parameters)[3:]
    if unknown := [name for name in options if name not in known]:
        raise SimoError(f"head {head} has no option {unknown[0]!r}: expected some of {known} in head_options")
    return HEADS[head](task, dims, classes, **options)


def _convolution(inputs, outputs, bias=True):
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=bias)


def _set_layers(convolutions, layers):
    """Copy weights `(o, d)` and biases into 1×1 convolutions, rounded to their type."""
    for convolution, (weight, bias) in zip(convolutions, layers, strict=True):
        convolution.weight.copy_(weight.view_as(convolution.weight))
        convolution.bias.copy_(bias)


def _check_sizes(head, option, values, least=1):
    for value in values:
        fits = isinstance(value, int) and value >= least
        require(f"head {head}: {option}", repr(value), fits, f"a whole number, at least {least}")
