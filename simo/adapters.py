"""Low-rank adapters beside the blocks of an encoder, which representation realignment trains."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from simo.encoders import BLOCK
from simo.errors import require, require_known


class AdaptedBlock(nn.Module):
    """A block, or a linear layer of one, with a low-rank adapter beside it: f(x) + B A x.

    Around a block it is the paper's adapter, around a linear layer it is LoRA (Hu et al., 2022).

    Parameters
    ----------
    block : nn.Module
        f, on tokens `(B, N, D)` or maps `(B, H, W, D)`, or on maps `(B, D, H, W)`.
    width, rank : int
        A is `(rank, width)`, B is `(outputs, rank)` and starts at 0, so that nothing changes at first.
    outputs : int, optional
        Width of f(x), if it is not that of x.
    maps : bool
        Whether x is `(B, D, H, W)`: A and B are 1×1 convolutions then.
    """

    def __init__(self, block, width, rank, outputs=None, maps=False):
        super().__init__()
        layer = partial(nn.Conv2d, kernel_size=1) if maps else nn.Linear
        self.block = block
        self.down = layer(width, rank, bias=False)
        self.up = layer(rank, outputs or width, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x, *others, **options):
        """Apply block and adapter to x; whatever else the block takes is passed on."""
        return self.block(x, *others, **options) + self.up(self.down(x))


class ReleasedAdapter(AdaptedBlock):
    """The adapter of the paper's released code, at the block's output h = f(x): h − B relu(A h)."""

    def forward(self, x, *others, **options):
        """Apply block, then adapter; whatever else the block takes is passed on."""
        out = self.block(x, *others, **options)
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
        A key of `ADAPTERS`, one around every block whose output has the shape of its input (of a transformer,
        all); or `lora`, one around every linear layer of the blocks that is called as a module.

    Returns
    -------
    list of Parameter
        2 an adapter, trainable.

    Raises
    ------
    SimoError
        For an unknown adapter, a rank below 1, or an encoder that has no such block or layer.
    """
    require_known("adapter", adapter, (*ADAPTERS, "lora"))
    require("rank", rank, rank >= 1, "1 or more")
    encoder.requires_grad_(False)
    blocks, adapted = _blocks(encoder), []
    height, width = encoder.blank().shape[-2:]
    for name, module, inputs, outputs in _calls(encoder, blocks):
        if adapter == "lora":
            inside = any(name.startswith(f"{block}.") for block in blocks)
            if not (inside and isinstance(module, nn.Linear)):
                continue
            new = AdaptedBlock(module, module.in_features, rank, module.out_features)
        elif name in blocks and inputs == outputs:
            maps = len(inputs) == 4 and inputs[2] * width == inputs[3] * height  # the image's aspect ratio
            new = ADAPTERS[adapter](module, inputs[1 if maps else -1], rank, maps=maps)
        else:
            continue
        encoder.set_submodule(name, new)
        adapted.append(new)
    what = "linear layers inside blocks" if adapter == "lora" else "blocks that keep their input's shape"
    require(f"{type(encoder.backbone).__name__}: the list of places for {adapter!r}", [], adapted, what)
    return [module.weight for each in adapted for module in (each.down, each.up)]


def called_blocks(encoder):
    """Names of the blocks that a pass calls, in order of depth."""
    blocks = _blocks(encoder)
    return [name for name, *_ in _calls(encoder, blocks) if name in blocks]


def _blocks(encoder):
    """Names of an encoder's blocks: the numbered modules that hold no numbered ones, as stages do."""
    names = [name for name, _ in encoder.named_modules()]
    names = [name for name in names if (found := BLOCK.search(name)) and found.end() == len(name)]
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


@torch.no_grad()
def _calls(encoder, blocks):
    """Names, modules, input and output shapes of the blocks and linear layers that a pass calls."""
    shapes, modes = {}, [(module, module.training) for module in encoder.modules()]

    def note(module, inputs, output):
        shapes[module] = inputs[0].shape, getattr(output, "shape", None)

    named = [each for each in encoder.named_modules() if each[0] in blocks or isinstance(each[1], nn.Linear)]
    handles = [module.register_forward_hook(note) for _, module in named]
    try:
        encoder.eval()(encoder.blank())
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return [(name, module, *shapes[module]) for name, module in named if module in shapes]
