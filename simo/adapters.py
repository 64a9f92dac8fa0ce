"""Low-rank adapters beside the blocks of an encoder, which representation realignment trains."""

import math

import torch.nn.functional as F
from torch import nn


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
