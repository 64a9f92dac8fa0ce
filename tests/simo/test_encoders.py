"""simo.encoders beyond the plain ViT: families of timm's models, each small, from features to an export."""

import copy
from dataclasses import dataclass

import pytest
import timm
import torch
import torch.nn.functional as F

from report.mechanism import compare_features
from simo.adapters import AdaptedBlock, add_adapters
from simo.checkpoints import save_tensors
from simo.datasets import PreparedDataset
from simo.encoders import Encoder, PlainViT, block_number, create_encoder
from simo.errors import SimoError
from simo.merging.field import lines
from simo.merging.moments import input_moments
from simo.merging.task_vectors import TaskVector
from simo.models import create_model
from simo.own import export, load_expert, load_exported, merge_experts
from simo.realignment.closedform import realign_closed_form
from simo.realignment.trained import realign_heads, realign_representation
from simo.tasks import tasks_of
from simo.training import Optimisation

DEPTH, NORMALS = tasks_of("nyuv2")[1:]
BUDGET = Optimisation(steps=2, batch_size=2, seed=0)
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2}
SHALLOW = VIT | {"depth": 1}
SWIN = {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}
CONVNEXT = {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}
LITE0 = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class Family:
    """A model of a family, what it is, and what cannot be done with it."""

    backbone: str
    args: dict
    blocks: tuple
    dims: tuple  # widths of the taps
    stride: int  # of the finest
    classes: bool = False  # whether class tokens come with the patches
    adapters: int = 0  # how many fit around blocks; 0: representation realignment is refused
    lora: int = 0  # how many linear layers; 0: refused
    moments: bool = True  # whether RegMean and LOT have layers to look into; otherwise refused
    onnx: bool = True  # whether torch exports it; otherwise refused
    any_size: bool = True  # whether images may have any size; otherwise that of img_size, 64 here


FAMILIES = {
    "ViT": Family("vit_tiny_patch16_224", VIT, (1, 2), (16, 16), 16, True, adapters=2, lora=8),
    "ViT without class token": Family(
        "vit_base_patch16_gap_224", VIT, (1, 2), (16, 16), 16, adapters=2, lora=8
    ),
    "DINOv2 with registers": Family(
        "vit_small_patch14_reg4_dinov2", VIT, (1, 2), (16, 16), 14, True, adapters=2, lora=8
    ),
    # of EVA's class q, k and v come from one weight that is not called as a layer, if it has biases
    "DINOv3": Family("vit_small_plus_patch16_dinov3", VIT, (1, 2), (16, 16), 16, True, adapters=2, lora=10),
    "EVA-02": Family("eva02_tiny_patch14_224", SHALLOW, (1,), (16,), 14, True, adapters=1, lora=3),
    "SigLIP": Family("vit_base_patch16_siglip_224", VIT, (2,), (16,), 16, adapters=2, lora=8),
    "DeiT, distilled": Family(
        "deit_tiny_distilled_patch16_224", SHALLOW, (1,), (16,), 16, True, adapters=1, lora=4
    ),
    "BEiT": Family(
        "beitv2_base_patch16_224", VIT | {"img_size": 64}, (1, 2), (16, 16), 16, True, 2, 6, any_size=False
    ),
    "Swin": Family("swin_tiny_patch4_window7_224", SWIN, (1, 2), (8, 16), 4, adapters=3, lora=12),
    "Swin V2": Family("swinv2_tiny_window8_256", SWIN | {"depths": (1, 1)}, (1, 2), (8, 16), 4, False, 2, 10),
    "Hiera": Family(
        "hiera_tiny_224", {"embed_dim": 8, "stages": (1, 1, 1, 1), "img_size": 64}, (1, 4), (8, 64), 4,
        adapters=1, lora=19, onnx=False, any_size=False,
    ),
    "MaxViT": Family("test_maxvit", {"img_size": 64}, (2, 3), (32, 64), 4, lora=32, any_size=False),
    "ConvNeXt": Family("convnext_tiny", CONVNEXT, (1, 3, 4), (8, 16, 16), 4, adapters=5, lora=10),
    "ConvNeXt V2": Family("convnextv2_tiny", CONVNEXT, (2, 3), (8, 16), 8, adapters=5, lora=10),
    "EfficientNet": Family(LITE0, {}, (3, 4, 5), (40, 112, 320), 8, adapters=9, moments=False),
    "ResNet": Family("test_resnet", {}, (3, 5), (48, 96), 8, adapters=1, moments=False),
}  # fmt: skip
by_name = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def settings_of(family, head="linear"):
    """What `create_model` needs."""
    options = {"dpt": {"channels": [2, 3, 4, 5], "width": 4}, "linear": {}}[head]
    return {
        "backbone": family.backbone, "backbone_args": family.args, "blocks": list(family.blocks),
        "head": head, "head_options": options, "input_scale": "signed",
    }  # fmt: skip


def encoder_of(family):
    return create_encoder(family.backbone, family.args, family.blocks)


@pytest.fixture(scope="module")
def val(tmp_path_factory, write_nyuv2):
    """Images of 64×64, which every family takes, with depth and normals."""
    root = write_nyuv2(tmp_path_factory.mktemp("data") / "nyuv2", train=1, val=3, test=1, size=(64, 64))
    return PreparedDataset(root, "nyuv2", "val", ["depth", "normals"])


@by_name
def test_features_of_a_family(family):
    """Widths, grid and class tokens are as the table says, and every tap teaches the first layer."""
    encoder = encoder_of(family)
    height, width = (52, 88) if family.any_size else (64, 64)
    image = torch.rand(2, 3, height, width)
    features = encoder(image)
    grid = -(-height // family.stride), -(-width // family.stride)
    assert encoder.dims == list(family.dims)
    maps = features.maps(encoder.dims)
    assert [tuple(x.shape) for x in maps] == [(2, dim, *grid) for dim in family.dims]
    assert encoder.classes == family.classes
    assert features.classes.shape[::2] == (2, family.dims[0] if family.classes else 0)
    first = next(p for p in encoder.parameters() if p.ndim == 4)
    for tap in maps:
        (gradient,) = torch.autograd.grad((tap * torch.rand_like(tap)).sum(), first, retain_graph=True)
        assert gradient.any()
    assert type(encoder) is (PlainViT if family is FAMILIES["ViT"] else Encoder)


@by_name
def test_a_size_that_is_not_taken_is_named(family):
    """Any size, down to a pixel, or one message with the size that it must be."""
    encoder = encoder_of(family).eval()
    if family.any_size:
        assert encoder(torch.rand(1, 3, 1, 40)).patches.shape[-2:] == (1, -(-40 // family.stride))
    else:
        with pytest.raises(
            SimoError,
            match=r"size of images is \(64, 65\): expected \(64, 64\), which is all that this .* takes",
        ):
            encoder(torch.rand(1, 3, 64, 65))


def test_a_size_that_a_family_has_no_positions_for_is_not_taken():
    """MViT looks positions up in tables, at a small size beyond their end: then it takes its own alone."""
    encoder = create_encoder("mvitv2_tiny", {"img_size": 64}, [1])
    assert encoder.size == (64, 64)


@by_name
def test_a_family_from_experts_to_an_export(family, val, tmp_path, same):
    """Experts are merged, realigned in all ways, exported and read back; what cannot be done is refused."""
    settings, tasks = settings_of(family), [DEPTH, NORMALS]
    base = create_model(tasks, 0, **settings)
    save_tensors(tmp_path / "base", base.encoder.backbone.state_dict())
    experts = {}
    for task in tasks:
        moved = {
            name: x + 0.02 * torch.randn_like(x).abs() if x.is_floating_point() else x + 1
            for name, x in base.encoder.backbone.state_dict().items()
        }
        save_tensors(tmp_path / "encoder", moved)
        save_tensors(tmp_path / "head", base.heads[task.name].state_dict())
        experts[task.name] = load_expert(tmp_path / "encoder", tmp_path / "head", task, settings)
    merged = merge_experts(tmp_path / "base", experts, settings, "task_arithmetic", alpha=0.3)
    encoders = {name: expert.encoder for name, expert in experts.items()}
    batches = [{"image": torch.stack([val[index]["image"] for index in range(3)])}]

    heads, _ = realign_heads(merged, val, tasks, BUDGET, 0.01)
    assert same(heads.encoder.state_dict(), merged.encoder.state_dict())
    assert not same(heads.heads.state_dict(), merged.heads.state_dict())
    closed = realign_closed_form(merged, encoders, batches)
    assert all(x.isfinite().all() for x in closed(batches[0]["image"]).values())
    for adapter, count in (("paper", family.adapters), ("lora", family.lora)):
        arguments = merged, val, tasks, BUDGET, 2, 0.01, 0.01, None, adapter
        if count:
            adapted, _ = realign_representation(*arguments)
            found = [module for module in adapted.modules() if isinstance(module, AdaptedBlock)]
            assert len(found) == count
            assert any(module.up.weight.any() for module in found)
            plain = {n.replace(".block.", "."): x for n, x in adapted.encoder.state_dict().items()}
            assert all(torch.equal(plain[n], x) for n, x in merged.encoder.state_dict().items())
        else:
            with pytest.raises(SimoError, match=rf": the list of places for '{adapter}' is \[\]: expected "):
                realign_representation(*arguments)

    vectors = [
        TaskVector.between(merged.encoder.state_dict(), each.state_dict()) for each in encoders.values()
    ]
    deepest = max(vectors[0], key=block_number)
    factor = 1 if family.args is SHALLOW else 2  # the only block is the first one, too
    torch.testing.assert_close(lines(vectors[:1])[deepest], factor * vectors[0][deepest])
    if family.moments:
        options = {"moments": [input_moments(each, batches) for each in encoders.values()]}
        assert merge_experts(tmp_path / "base", experts, settings, "lot", alpha=0.3, **options)
    else:
        with pytest.raises(SimoError, match="has no linear layers"):
            input_moments(merged.encoder, batches)

    model, scores = adapted if family.lora else heads, {"depth": 1.0, "normals": 2.0}
    arguments = model, tmp_path / "out", settings, tasks, (64, 64), scores, {}
    if family.onnx:
        export(*arguments)
        restored, _ = load_exported(tmp_path / "out")
        assert same(restored(batches[0]["image"]), model.eval()(batches[0]["image"]))
    else:
        with pytest.raises(
            SimoError, match=f"torch cannot export this {type(base.encoder.backbone).__name__}"
        ):
            export(*arguments)
        assert not (tmp_path / "out").exists()


def test_levels_are_those_of_timms_feature_extractor():
    """At strides 8, 16 and 32, of images that are no multiple of 32: levels of the padded image, cropped."""
    encoder = create_encoder(LITE0, {}, [3, 4, 5]).eval()
    theirs = timm.create_model(LITE0, features_only=True, out_indices=(2, 3, 4)).eval()
    theirs.load_state_dict(encoder.backbone.state_dict(), strict=False)
    image = torch.rand(1, 3, 144, 192)
    found = encoder(image)
    levels = theirs(F.pad(2 * image - 1, (0, 0, 8, 8)))
    assert [x.shape[-2:] for x in levels] == [(20, 24), (10, 12), (5, 6)]
    for ours, level in zip(found.maps(encoder.dims), levels, strict=True):
        level = F.interpolate(level, (20, 24), mode="bilinear", align_corners=False)
        torch.testing.assert_close(ours, level[:, :, 1:-1])
    assert found.patches.shape == (1, 1, 40 + 112 + 320, 18, 24)


@pytest.mark.parametrize("size", [(32, 64), (33, 64), (48, 95)])
def test_padding_is_what_images_are_given(size):
    """What a notebook says of it is what the encoder does."""
    encoder, image = create_encoder(LITE0, {}, [3, 4, 5]), torch.ones(1, 3, *size)
    rows, columns = encoder.padding(size)
    assert encoder.pad(image).shape[-2:] == (size[0] + rows, size[1] + columns)
    assert encoder.pad(image).count_nonzero() == image.numel()


@pytest.mark.parametrize("name", ["DINOv2 with registers", "DINOv3", "SigLIP"])
def test_tokens_are_timms(name):
    """At the size of the positions patches and class token are timm's, bit for bit, without registers."""
    family = FAMILIES[name]
    encoder = encoder_of(family).eval()
    size = encoder.backbone.patch_embed.img_size
    tokens = []
    encoder.backbone.blocks[-1].register_forward_hook(lambda *call: tokens.append(call[2]))
    features = encoder(torch.rand(1, 3, *size))
    prefix, grid = encoder.backbone.num_prefix_tokens, features.patches.shape[-2:]
    assert torch.equal(features.patches[:, -1].flatten(2).mT, tokens[0][:, prefix:])
    assert grid[0] * grid[1] == tokens[0].shape[1] - prefix
    if family.classes:
        assert torch.equal(features.classes[:, -1], tokens[0][:, 0])


@pytest.mark.parametrize("name", ["Swin", "ConvNeXt"])
def test_dpt_heads_read_pyramids(name, val):
    """A DPT head projects each level from its own width, and closed form solves each projection."""
    family = FAMILIES[name]
    deep = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)} if name == "Swin" else {}
    settings = settings_of(family, "dpt") | {"backbone_args": family.args | deep, "blocks": [1, 2, 3, 4]}
    model = create_model([DEPTH], 0, **settings).eval()
    assert [x.in_channels for x in model.heads["depth"].projects] == model.encoder.dims
    image = torch.stack([val[index]["image"] for index in range(3)])
    realigned = realign_closed_form(model, {"depth": copy.deepcopy(model.encoder)}, [{"image": image}])
    torch.testing.assert_close(realigned(image)["depth"], model(image)["depth"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["Swin", "ConvNeXt"])
def test_adapters_add_a_product_along_the_channels(name):
    """f(x) + B A x at every place of the map, whether channels come last (Swin) or first (ConvNeXt)."""
    encoder = encoder_of(FAMILIES[name]).eval()
    for weight in add_adapters(encoder, 3):
        torch.nn.init.normal_(weight)
    adapted = [module for module in encoder.modules() if isinstance(module, AdaptedBlock)]
    seen = []
    for module in adapted:
        module.register_forward_hook(lambda *call: seen.append((call[0], call[1][0], call[2])))
    encoder(torch.rand(1, 3, 64, 96))
    equation = {"Swin": "or,ri,bhwi->bhwo", "ConvNeXt": "or,ri,bihw->bohw"}[name]
    for module, x, y in seen:
        up, down = module.up.weight.flatten(1), module.down.weight.flatten(1)
        torch.testing.assert_close(y, module.block(x) + torch.einsum(equation, up, down, x))
    assert len(seen) == len(adapted) == FAMILIES[name].adapters


def test_every_level_is_compared():
    """Against itself a pyramid is explained fully at each of its levels, whatever their widths."""
    encoder = create_encoder("test_convnext", {}, [4]).eval()
    images = torch.rand(4, 3, 64, 64)
    rows = compare_features(
        encoder, {"depth": copy.deepcopy(encoder)}, [{"image": images[:2]}], [{"image": images[2:]}]
    )
    assert [row["block"] for row in rows] == [1, 2, 3, 4]
    assert all(row["nothing"] == pytest.approx(1) for row in rows)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("backbone.blocks.11.attn.qkv.weight", (11,)),
        ("backbone.layers.1.blocks.2.norm1.bias", (1, 2)),
        ("backbone.stages.2.downsample.0.weight", (2,)),
        ("backbone.stages.0.blocks.1.mlp.fc1.weight", (0, 1)),
        ("backbone.blocks.4.0.conv_pw.weight", (4, 0)),
        ("backbone.layer2.1.bn1.running_var", (2, 1)),
        ("backbone.cls_attn_blocks.0.norm1.weight", ()),
        ("backbone.attn_pool.mlp.fc1.weight", ()),
        ("backbone.pos_embed", ()),
    ],
)
def test_blocks_are_found_by_their_names(name, number):
    """Stage and block, in timm's various spellings."""
    assert block_number(name) == number


def test_blocks_under_other_names_are_not_guessed():
    """RegNet calls its blocks s1.b1: it can be merged, but LiNeS and adapters say that they find none."""
    encoder = create_encoder("regnetx_002", {}, [2, 3, 4, 5])
    assert encoder(torch.rand(1, 3, 64, 64)).patches.shape == (1, 1, 24 + 56 + 152 + 368, 16, 16)
    state = encoder.state_dict()
    with pytest.raises(SimoError, match="expected some with numbers"):
        lines([TaskVector.between(state, state)])
    for adapter in ("paper", "lora"):
        with pytest.raises(SimoError, match=rf"RegNet: the list of places for '{adapter}' is \[\]"):
            add_adapters(encoder, 2, adapter)


def test_a_level_that_does_not_exist_is_refused():
    """Levels are counted from 1 to those of timm's feature_info."""
    with pytest.raises(
        SimoError, match=r"blocks is \[3, 6\]: expected increasing numbers from 1 to 5, the depth"
    ):
        create_encoder(LITE0, {}, [3, 6])


def test_a_model_that_cannot_be_tapped_is_refused(monkeypatch):
    """The message says what is expected of timm's model."""
    monkeypatch.setattr(timm, "create_model", lambda name, **_: torch.nn.Identity())
    with pytest.raises(
        SimoError, match="'new' is a .*: expected one with forward_intermediates, feature_info"
    ):
        create_encoder("new", {}, [1])
