"""States of pretrained encoders in their authors' names, renamed to timm's; nothing in a file is ever run.

Meta's DINOv2 (.pth), a DINOv2 with Hugging Face's names in an ONNX file, and EfficientNet-Lite0 as published
with a port of TensorFlow's weights (.pth).
"""

import importlib.util
import io
import re

import torch
import torch.nn.functional as F

from simo.errors import SimoError
from simo.files import decoding

TOLERANCE = 1e-4  # of tokens after the final norm, which are of the size 1; float32 gives about 1e-5
FINAL_TOKENS = "/backbone/layernorm/Add_1_output_0"
LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each


def read_pth(file, source):
    """Read a PyTorch file without running anything that it may contain.

    Parameters
    ----------
    file : str, Path or bytes
        Its path, or what it holds.
    source : str or Path
        What it is called in messages.

    Returns
    -------
    object
        What it holds: tensors, and plain Python containers of them.

    Raises
    ------
    SimoError
        If it is missing, damaged, or holds anything else.
    """
    with decoding(f"{source}, PyTorch weights,"):
        file = io.BytesIO(file) if isinstance(file, bytes) else file
        return torch.load(file, map_location="cpu", weights_only=True)


def check_named(tensors, source):
    """Raise a SimoError unless `tensors` is a mapping of names to tensors."""
    try:
        named = all(isinstance(name, str) and torch.is_tensor(x) for name, x in tensors.items())
    except AttributeError:
        named = False
    if not named:
        raise SimoError(f"{source} holds no state of a model: expected names with a tensor each")


def from_meta(tensors, source):
    """Rename a state of a DINOv2 in Meta's names to timm's; one in timm's names stays as it is.

    Meta's holds a `mask_token` for pretraining, which has no part in features; numbers blocks within chunks
    (`blocks.0.5.norm1.weight`) where a model was trained in such; calls the layers of the giant's gated MLP
    `w12` and `w3`; and gives the class token a position where there are registers, which timm adds to it.

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
    check_named(tensors, source)
    renamed = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        name = re.sub(r"\.mlp\.w(12|3)\.", lambda m: f".mlp.fc{1 if m[1] == '12' else 2}.", name)
        renamed[name] = tensor
    renamed.pop("mask_token", None)
    if {"register_tokens", "pos_embed", "cls_token"} <= renamed.keys():
        positions = renamed["pos_embed"]  # (1, 1 + n, D)
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def read_onnx(data, source):
    """Read an ONNX model from bytes; SimoError if it is none, or the packages for it are not installed."""
    missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise SimoError(
            f"reading {source} needs {', '.join(missing)}: pip install '.[onnx]' in the project's folder"
        )
    import onnx

    with decoding(f"{source}, an ONNX file,"):
        return onnx.load_model_from_string(data)


def from_onnx(model, source):
    """Rename the encoder in an ONNX file, a DINOv2 in Hugging Face's names, to timm's.

    The exporter kept the names of biases, norms, LayerScale and the class token. It stored the matrices of
    linear layers transposed and nameless, so that they are found through the nodes that multiply by them;
    and parted the positions into two constants, of the class token and of patches, which are found likewise.

    Parameters
    ----------
    model : onnx.ModelProto
    source : str or Path
        Where it comes from, for messages.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    SimoError
        Naming the first tensor that is not there.
    """
    from onnx import numpy_helper

    values = {each.name: each for each in model.graph.initializer}
    inputs = {node.name: list(node.input) for node in model.graph.node}

    def named(name):
        if name not in values:
            raise SimoError(f"{source} lacks the tensor {name!r}: it holds another encoder than expected")
        return torch.from_numpy(numpy_helper.to_array(values[name]).copy())

    def read_by(node, place):
        if len(inputs.get(node, [])) <= place:
            raise SimoError(
                f"{source} has no tensor at node {node!r}: it holds another encoder than expected"
            )
        return named(inputs[node][place])

    depth = sum(bool(re.fullmatch(r"backbone\.encoder\.layer\.\d+\.norm1\.weight", name)) for name in values)
    embeddings = "backbone.embeddings"
    positions = [read_by("/backbone/embeddings/Concat_6", 0), read_by("/backbone/embeddings/Reshape_1", 0)]
    state = {"cls_token": named(f"{embeddings}.cls_token"), "pos_embed": torch.cat(positions, dim=1)}
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = named(f"{embeddings}.patch_embeddings.projection.{kind}")
        state[f"norm.{kind}"] = named(f"backbone.layernorm.{kind}")
    for block in range(depth):
        state |= _block_from_onnx(named, read_by, block)
    return state


def _block_from_onnx(named, read_by, block):
    """State of one block, given the functions of `from_onnx` that read a tensor by its name or node."""
    theirs = f"backbone.encoder.layer.{block}"

    def matrix(layer):
        node = f"/backbone/encoder/layer.{block}/{layer.replace('.', '/')}/MatMul"
        return read_by(node, 1).T  # (in, out) for x @ W, where torch has (out, in)

    parts = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    state = {
        "attn.qkv.weight": torch.cat([matrix(part) for part in parts]),
        "attn.qkv.bias": torch.cat([named(f"{theirs}.{part}.bias") for part in parts]),
        "ls1.gamma": named(f"{theirs}.layer_scale1.lambda1"),
        "ls2.gamma": named(f"{theirs}.layer_scale2.lambda1"),
    }
    for kind in ("weight", "bias"):
        state |= {f"{norm}.{kind}": named(f"{theirs}.{norm}.{kind}") for norm in ("norm1", "norm2")}
    for ours, layer in {
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items():
        state |= {f"{ours}.weight": matrix(layer), f"{ours}.bias": named(f"{theirs}.{layer}.bias")}
    return {f"blocks.{block}.{name}": tensor for name, tensor in state.items()}


def final_tokens(vit, images):
    """Tokens after the final norm, with positions interpolated as in an ONNX file: plainly bicubic.

    DINOv2's own way, which `simo` follows, enlarges the scale by 0.1 patches; this exporter did not.

    Parameters
    ----------
    vit : nn.Module
        A timm `VisionTransformer` with one class token and learned positions.
    images : Tensor
        `(B, 3, H, W)`, scaled, sides multiples of the patch size.

    Returns
    -------
    Tensor
        `(B, 1 + h·w, D)`.
    """
    patches = vit.patch_embed.proj(images)  # (B, D, h, w)
    grid = vit.pos_embed[:, 1:].mT.unflatten(-1, vit.patch_embed.grid_size)
    grid = F.interpolate(grid, size=patches.shape[-2:], mode="bicubic", align_corners=False)
    classes = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(images), -1, -1)
    return vit.norm(vit.blocks(torch.cat([classes, (patches + grid).flatten(2).mT], dim=1)))


def check_against_onnx(vit, model, source, size=224):
    """Compare a ViT with the ONNX model that it was read from, as onnxruntime runs it.

    Parameters
    ----------
    vit : nn.Module
        As for `final_tokens`.
    model : onnx.ModelProto
        Its final tokens become an output.
    source : str or Path
        Where it comes from, for the message.
    size : int
        Height and width of the random images.

    Returns
    -------
    float
        The largest difference of the final tokens.

    Raises
    ------
    SimoError
        If that is above `TOLERANCE`.
    """
    import onnx
    import onnxruntime

    model.graph.output.append(onnx.helper.make_tensor_value_info(FINAL_TOKENS, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([FINAL_TOKENS], {model.graph.input[0].name: images.numpy()})
    with torch.no_grad():
        found = final_tokens(vit.eval(), images)
    difference = (found - torch.from_numpy(expected)).abs().max().item()
    if not difference <= TOLERANCE:
        raise SimoError(
            f"the encoder read from {source} gives other features than onnxruntime: they differ by "
            f"{difference:.1e}, expected at most {TOLERANCE:g}; nothing was written"
        )
    return difference


def from_lite0(tensors, source):
    """Rename a state of EfficientNet-Lite0 as its package has it to timm's, without the classifier.

    There blocks are numbered through, here within stages; a block's convolutions and norms are numbered
    from the one that widens it, which the first block lacks.

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
    check_named(tensors, source)
    places = [(stage, block) for stage, count in enumerate(LITE0_STAGES) for block in range(count)]
    wide = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    wide |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    narrow = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("_fc."):
            continue
        number, layer, kind = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(.*?)\.?([^.]*)", name).groups()
        if number is None:
            prefix, layers = "", outside
        elif int(number) < len(places):
            prefix = "blocks.{}.{}.".format(*places[int(number)])
            layers = wide if f"_blocks.{number}._expand_conv.weight" in tensors else narrow
        else:
            prefix, layers = f"_blocks.{number}.", {}
        renamed[f"{prefix}{layers.get(layer, layer)}.{kind}"] = tensor
    return renamed
