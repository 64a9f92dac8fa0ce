"""Fetch or convert the paper's pretrained encoder, DINOv2 ViT-B/14 without registers, to safetensors.

    python -m data_scripts.dinov2 --out dinov2_vitb14.safetensors --weights timm

Weights come from timm's hub entry (downloaded), from a safetensors file in timm's or Meta's names, or from
Meta's official `dinov2_vitb14_pretrain.pth`, whose names are timm's but for a mask token, which is dropped.
For rehearsals they are random. Beside the file lies a recipe that says which. Code and weights of DINOv2 are
under the Apache licence 2.0 (github.com/facebookresearch/dinov2).
"""

import argparse
import hashlib
import json
import pickle
import re
import sys
from pathlib import Path

import torch

from data_scripts.commands import exit_status
from simo.checkpoints import TensorFile, load_into, save_checkpoint, versions
from simo.encoders import create_encoder
from simo.errors import SimoError
from simo.models import count_parameters

MODEL = {"backbone": "vit_base_patch14_dinov2.lvd142m", "backbone_args": {}}
OFFICIAL_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth"
OFFICIAL_SHA256 = "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"


def convert(tensors, source):
    """Rename a state in Meta's names to timm's; one in timm's names stays as it is.

    They differ in two things: Meta's holds a `mask_token` for pretraining, which has no part in features, and
    numbers blocks within chunks (`blocks.0.5.norm1.weight`) where a model was trained in such.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    source : str or Path
        Where they come from, for the message.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    SimoError
        If it is no mapping of names to tensors.
    """
    try:
        named = all(isinstance(name, str) and torch.is_tensor(x) for name, x in tensors.items())
    except AttributeError:
        named = False
    if not named:
        raise SimoError(f"{source} holds no state of a model: expected names with a tensor each")
    renamed = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): x for name, x in tensors.items()}
    return {name: tensor for name, tensor in renamed.items() if name != "mask_token"}


def read_pth(path):
    """Read a PyTorch file without running anything that it may contain.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    object
        What it holds: tensors, and plain Python containers of them.

    Raises
    ------
    SimoError
        If it is missing, damaged, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise SimoError(f"{path} cannot be read as PyTorch weights: {reason}") from error


def download(vit):
    """Fill a model from timm's hub entry of its name; say first what is fetched, and how large it is.

    Parameters
    ----------
    vit : nn.Module
        The model as timm creates it without weights.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    SimoError
        If the download fails, naming another way.
    """
    import timm  # not before simo, which makes torchvision fit torch

    size = sum(tensor.nbytes for tensor in vit.state_dict().values()) / 1e6
    print(
        f"downloading timm/{MODEL['backbone']} from the Hugging Face hub: {size:.0f} MB, unless it is cached"
    )
    try:
        filled = timm.create_model(
            MODEL["backbone"], pretrained=True, num_classes=0, **MODEL["backbone_args"]
        )
    except Exception as error:  # each layer below, from sockets to the hub's client, has its own kinds
        reason = str(error).split("\n")[0].rstrip(".")
        raise SimoError(
            f"timm cannot fetch {MODEL['backbone']}: {reason}. Where the hub is out of reach, download "
            f"{OFFICIAL_URL} by other means and give it as --weights"
        ) from error
    return filled.state_dict()


def load_weights(weights, seed, backbone_args=None):
    """Load the encoder from one of its sources.

    Parameters
    ----------
    weights : str
        `timm`, `random`, or the path of a `.safetensors` or `.pth` file.
    seed : int
        Of random weights.
    backbone_args : dict, optional
        What is smaller than in ViT-B/14, for tests of the pipeline; random weights only.

    Returns
    -------
    (nn.Module, dict)
        timm's model, and what the recipe says of the source: `source`, `source_sha256` (of the file given,
        None otherwise), and `seed` of random weights.
    """
    torch.manual_seed(seed)
    vit = create_encoder(MODEL["backbone"], backbone_args or MODEL["backbone_args"], blocks=[1]).backbone
    if weights == "random":
        print("random weights: for rehearsals only, they have seen no image")
        return vit, {"source": "random", "source_sha256": None, "seed": seed}
    if weights == "timm":
        load_into(vit, convert(download(vit), "timm"), "timm")
        return vit, {"source": f"timm/{MODEL['backbone']}", "source_sha256": None}
    path = Path(weights)
    if not path.is_file():
        raise SimoError(f"--weights {weights}: expected timm, random, or a file, and no such file exists")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    is_pth = path.suffix == ".pth"
    load_into(vit, convert(read_pth(path) if is_pth else TensorFile(path), path), path)
    if is_pth and digest != OFFICIAL_SHA256:
        print(
            f"warning: {path} is not Meta's official file: its sha256 is {digest}, "
            f"expected {OFFICIAL_SHA256}",
            file=sys.stderr,
        )
    return vit, {"source": path.name, "source_sha256": digest}


def parse(arguments):
    """Read the command line; SimoError for values that cannot be used."""
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m data_scripts.dinov2", description=summary)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--weights", required=True, help="timm, random, or a .safetensors or .pth file")
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    parser.add_argument(
        "--backbone-args", type=json.loads, default={}, help="of random weights: a smaller model, as JSON"
    )
    options = parser.parse_args(arguments)
    if options.out.suffix != ".safetensors":
        raise SimoError(f"--out {options.out}: expected a name that ends in .safetensors")
    if options.backbone_args and options.weights != "random":
        raise SimoError(
            f"--backbone-args {options.backbone_args}: only random weights can be of another size than "
            f"{MODEL['backbone']}"
        )
    known = options.weights in ("timm", "random")
    if not known and Path(options.weights).suffix not in (".safetensors", ".pth"):
        raise SimoError(f"--weights {options.weights}: expected timm, random, or a .safetensors or .pth file")
    return options


def run(options):
    """Load the weights, and write them with their recipe."""
    vit, source = load_weights(options.weights, options.seed, options.backbone_args)
    model = {**MODEL, "backbone_args": options.backbone_args}
    recipe = {"kind": "backbone", "script": "data_scripts.dinov2", "model": model, **source}
    recipe |= {"parameters": count_parameters(vit.parameters()), "versions": versions()}
    save_checkpoint(options.out, vit.state_dict(), recipe)
    print(f"{options.out}: {recipe['parameters']:,} parameters from {source['source']}")


def main(arguments=None):
    """Run the command line; return its exit status."""
    return exit_status(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
