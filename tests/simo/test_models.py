"""simo.models: features and adapters against hooks on timm's model, formulas, the paper's counts."""

import copy
import itertools

import pytest
import timm
import torch
from torch import nn

from simo.adapters import AdaptedBlock, ReleasedAdapter, add_adapters, called_blocks
from simo.checkpoints import save_checkpoint
from simo.encoders import create_encoder
from simo.errors import SimoError
from simo.models import count_parameters, create_model, load_model
from simo.tasks import TASKS

_, _, NORMALS = TASKS["nyuv2"]


@pytest.fixture
def image():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def record_outputs(modules):
    """Outputs of modules at each call, in order."""
    outputs = []
    for module in modules:
        module.register_forward_hook(lambda *arguments: outputs.append(arguments[2].detach()))
    return outputs


@pytest.mark.parametrize("blocks", [[1], [2], [1, 2]])
def test_features_are_the_blocks_outputs(settings, image, blocks):
    """Taps are raw outputs of the numbered blocks, counted from 1, without the encoder's final norm."""
    encoder = create_encoder(settings["backbone"], settings["backbone_args"], blocks).eval()
    outputs = record_outputs(encoder.backbone.blocks)
    patches, classes = encoder(image)
    assert patches.shape == (2, len(blocks), 16, 2, 2)
    for place, block in enumerate(blocks):
        tokens = outputs[block - 1]  # (B, 1 + h·w, D)
        torch.testing.assert_close(classes[:, place], tokens[:, 0])
        for row, column in itertools.product(range(2), range(2)):
            torch.testing.assert_close(patches[:, place, :, row, column], tokens[:, 1 + 2 * row + column])


def test_image_is_scaled_and_padded_symmetrically(settings):
    """Pixels become 2x - 1; zeros around fill up to whole patches, the odd one at the right or below."""
    args = {**settings["backbone_args"], "img_size": (24, 32)}
    encoder = create_encoder(settings["backbone"], args, [1])
    seen = []
    encoder.backbone.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 3, 21, 27)
    patches, _ = encoder(image)
    (padded,) = seen
    assert padded.shape == (1, 3, 24, 32)
    torch.testing.assert_close(padded[:, :, 1:22, 2:29], 2 * image - 1)
    padded[:, :, 1:22, 2:29] = 0
    assert not padded.any()
    assert patches.shape[-2:] == (3, 4)


def test_imagenet_scale_is_an_option(settings, image):
    """The paper deviates from the statistics that DINOv2 was pretrained with; they can be had."""
    args = (settings["backbone"], settings["backbone_args"], [1])
    encoder = create_encoder(*args, input_scale="imagenet")
    seen = []
    encoder.backbone.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(image)
    for channel, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        torch.testing.assert_close(seen[0][:, channel], (image[:, channel] - mean) / deviation)
    with pytest.raises(SimoError, match=r"unknown input_scale 'none': expected .*'imagenet', 'signed'"):
        create_encoder(*args, input_scale="none")


def test_native_size_is_timms(settings, image):
    """At the size of the position embedding, features are those of timm's own forward pass, bit for bit."""
    encoder = create_encoder(settings["backbone"], settings["backbone_args"], [1, 2]).eval()
    patches, classes = encoder(image)
    theirs = encoder.backbone.forward_intermediates(
        2 * image - 1, indices=[0, 1], return_prefix_tokens=True, norm=False, intermediates_only=True
    )
    for tap, (maps, prefix) in enumerate(theirs):
        assert torch.equal(patches[:, tap], maps)
        assert torch.equal(classes[:, tap], prefix[:, 0])


def test_other_sizes_leave_the_positions_as_they_are(settings):
    """Models trained at different sizes have task vectors of one shape, and the positions learn at each."""
    encoder = create_encoder(settings["backbone"], settings["backbone_args"], [2])
    names = encoder.state_dict().keys()
    patches, classes = encoder(torch.rand(2, 3, 24, 41))
    assert patches.shape == (2, 1, 16, 3, 6)
    (patches.square().sum() + classes.square().sum()).backward()
    positions = encoder.backbone.pos_embed
    assert positions.shape == positions.grad.shape == (1, 1 + 2 * 2, 16)
    assert (positions.grad != 0).any(dim=2).all()
    assert encoder.state_dict().keys() == names == {f"backbone.{n}" for n in encoder.backbone.state_dict()}


def test_whole_patches_are_not_padded(settings, image):
    """An image that fits is not touched at its border."""
    encoder = create_encoder(settings["backbone"], settings["backbone_args"], [1])
    seen = []
    encoder.backbone.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(image)
    torch.testing.assert_close(seen[0], 2 * image - 1)


def test_paper_encoder_and_adapters_have_the_papers_size():
    """DINOv2 ViT-B/14 has 86.6 M parameters, counted by hand, and rank-16 adapters on its blocks 0.3 M."""
    block = 4 * 768 + 769 * (3 * 768) + 769 * 768 + 769 * 3072 + 3073 * 768 + 2 * 768  # norms to LayerScale
    patches, positions = (3 * 14 * 14 + 1) * 768, (1 + 37 * 37) * 768
    with torch.device("meta"):
        encoder = create_encoder("vit_base_patch14_dinov2", {}, [3, 6, 9, 12])
        total = count_parameters(encoder.parameters())
        assert total == 12 * block + patches + 768 + positions + 2 * 768 == 86_579_712
        assert round(total / 1e6, 1) == 86.6
        assert count_parameters(add_adapters(encoder, rank=16)) == 12 * 2 * 768 * 16 == 294_912


def test_one_encoder_pass_serves_all_heads(model, tasks, image):
    """What makes a merged model worth having: the encoder runs once, whatever the number of tasks."""
    calls = record_outputs([model.encoder.backbone.patch_embed])
    predictions = model(image)
    assert len(calls) == 1
    assert {name: tuple(x.shape) for name, x in predictions.items()} == {
        task.name: (2, task.channels, 16, 16) for task in tasks
    }


def test_prediction_has_the_images_size(tasks, settings):
    """Padding leaves no trace in the output's size."""
    model = create_model(tasks, seed=0, **settings)
    assert {x.shape[-2:] for x in model(torch.rand(1, 3, 20, 27)).values()} == {(20, 27)}


def test_head_init_depends_on_seed_and_task_only(tasks, settings, model):
    """An expert and joint training start from the same head; another seed is another start."""

    def weight(tasks, seed):
        return create_model(tasks, seed, **settings).heads["normals"].project.weight

    alone = weight([NORMALS], 0)
    assert torch.equal(alone, weight(tasks, 0))
    assert not torch.equal(alone, weight([NORMALS], 1))
    assert not torch.equal(alone[0], model.heads["segmentation"].project.weight[0])


def test_new_adapters_change_nothing(model, image):
    """Representation realignment starts exactly from the merged model."""
    before = model(image)
    adapters = add_adapters(model.encoder, rank=3)
    assert [tuple(p.shape) for p in adapters] == [(3, 16), (16, 3)] * 2
    assert all(torch.equal(before[name], after) for name, after in model(image).items())


def test_adapted_block_by_formula():
    """The adapter is the paper's: linear, low rank, beside the block and on its input, f(x) + B A x."""
    block = nn.Sequential(nn.Linear(6, 6), nn.GELU())
    adapted = AdaptedBlock(block, width=6, rank=2)
    nn.init.normal_(adapted.up.weight)
    x = torch.randn(2, 5, 6)
    expected = block(x) + torch.einsum("or,ri,bni->bno", adapted.up.weight, adapted.down.weight, x)
    torch.testing.assert_close(adapted(x), expected)


def test_released_adapter_by_formula():
    """The released code's adapter: nonlinear, on the block's output, subtracted, h − B relu(A h)."""
    block = nn.Sequential(nn.Linear(6, 6), nn.GELU())
    adapted = ReleasedAdapter(block, width=6, rank=2)
    x = torch.randn(2, 5, 6)
    assert torch.equal(adapted(x), block(x))  # before training
    nn.init.normal_(adapted.up.weight)
    hidden = torch.einsum("ri,bni->bnr", adapted.down.weight, block(x)).clamp(min=0)
    assert (hidden == 0).any()
    expected = block(x) - torch.einsum("or,bnr->bno", adapted.up.weight, hidden)
    torch.testing.assert_close(adapted(x), expected)


def test_part_of_a_model_predicts_the_same(model, image):
    """A model of some heads shares the encoder and predicts their tasks as the whole does."""
    part, whole = model.only(["depth"])(image), model(image)
    assert part.keys() == {"depth"}
    assert torch.equal(part["depth"], whole["depth"])


def test_adapters_act_in_every_block(model, image):
    """Each block's output changes by B A x of its own input, and the heads see it."""
    adapters = add_adapters(model.encoder, rank=3)
    for up in adapters[1::2]:
        nn.init.normal_(up)
    inputs, outputs = [], record_outputs(model.encoder.backbone.blocks)
    plain = record_outputs([block.block for block in model.encoder.backbone.blocks])
    for block in model.encoder.backbone.blocks:
        block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    patches, classes = model.encoder(image)
    for number, (x, f_x, y) in enumerate(zip(inputs, plain, outputs, strict=True)):
        down, up = adapters[2 * number : 2 * number + 2]
        torch.testing.assert_close(y, f_x + x @ down.T @ up.T)
        torch.testing.assert_close(classes[:, number], y[:, 0])


def test_unknown_adapter_changes_nothing(model):
    """It is refused before a parameter is frozen or a block replaced."""
    with pytest.raises(SimoError, match=r"unknown adapter 'nope': expected one of \['lora', 'paper', 'rel"):
        add_adapters(model.encoder, 2, "nope")
    assert all(parameter.requires_grad for parameter in model.encoder.parameters())


def test_looking_for_blocks_leaves_no_trace(model, monkeypatch):
    """Modes are those of before, module by module, and no hook stays, even if the pass fails."""
    encoder = model.encoder.train()
    encoder.backbone.norm.eval()
    modes = [module.training for module in encoder.modules()]
    called_blocks(encoder)
    assert [module.training for module in encoder.modules()] == modes
    monkeypatch.setattr(encoder.backbone.blocks[1], "forward", lambda *x: (_ for _ in ()).throw(KeyError))
    with pytest.raises(KeyError):
        called_blocks(encoder)
    assert [module.training for module in encoder.modules()] == modes
    assert not any(module._forward_hooks for module in encoder.modules())


def test_adapters_alone_are_trainable(model):
    """Representation realignment must not fine-tune the merged encoder."""
    adapters = add_adapters(model.encoder, rank=3)
    trainable = [p for p in model.encoder.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in adapters}


@pytest.mark.parametrize("blocks", [[0], [3], [1, 3], [-1], [], [2, 1], [1, 1]])
def test_block_that_does_not_exist_is_refused(settings, blocks):
    """Block numbers count from 1; 0 and negative ones do not silently mean the last block."""
    with pytest.raises(SimoError, match=r"blocks .*expected increasing numbers from 1 to 2"):
        create_encoder(settings["backbone"], settings["backbone_args"], blocks)


@pytest.mark.parametrize(
    ("backbone", "args", "message"),
    [
        ("vit_tiny_patch17", {}, "timm cannot create 'vit_tiny_patch17'"),
        ("vit_tiny_patch16_224", {"depht": 3}, "timm cannot create .*depht"),
        (
            "vit_tiny_patch16_224",
            {"depth": 1, "dynamic_img_size": True},
            "dynamic_img_size is True: expected none",
        ),
        ("vit_tiny_patch16_224", {"depth": 1, "in_chans": 4}, "expected a model of RGB images"),
        ("vit_tiny_patch16_224", {"depth": 1, "num_heads": 5}, "timm cannot create .*num_heads"),
        (
            "vit_tiny_patch16_224",
            {"depth": 1, "patch_size": (16, 8)},
            "grid is .*: expected",
        ),  # half an image
        ("pit_ti_224", {}, r"grid is \(27, 27\): expected \(28, 28\), as of a stride of 8"),
        ("mobilevit_xxs", {"in_chans": 1}, "'mobilevit_xxs' .*expected a model of RGB images"),
    ],
)
def test_unusable_backbone_is_refused(backbone, args, message):
    """A misspelt model or argument, and a model that this encoder cannot read, are named."""
    with torch.device("meta"), pytest.raises(SimoError, match=message):
        create_encoder(backbone, args, [1])


def test_pretrained_weights_are_loaded(settings, tmp_path, same):
    """The encoder holds what the file holds, not what timm drew at random."""
    vit = timm.create_model(settings["backbone"], num_classes=0, **settings["backbone_args"])
    save_checkpoint(tmp_path / "vit.safetensors", vit.state_dict(), {})
    encoder = create_encoder(
        settings["backbone"], settings["backbone_args"], [1], tmp_path / "vit.safetensors"
    )
    assert same(encoder.backbone.state_dict(), vit.state_dict())


@pytest.mark.parametrize(
    ("change", "message"), [({"depth": 3}, "it lacks 'blocks.2"), ({"embed_dim": 32}, "has shape")]
)
def test_weights_of_another_architecture_are_refused(settings, tmp_path, change, message):
    """The message names the file and the first tensor that does not fit."""
    vit = timm.create_model(settings["backbone"], num_classes=0, **settings["backbone_args"])
    save_checkpoint(tmp_path / "vit.safetensors", vit.state_dict(), {})
    other = {**settings["backbone_args"], **change}
    with pytest.raises(SimoError, match=f"vit.safetensors is of another architecture: .*{message}"):
        create_encoder(settings["backbone"], other, [1], tmp_path / "vit.safetensors")


def test_heads_draw_from_no_shared_stream(tasks, settings):
    """What is drawn after a model was made depends on its encoder, and not on how many heads it has."""
    drawn = []
    for count in (1, 3):
        torch.manual_seed(0)
        create_model(tasks[:count], 5, **settings)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(("rank", "kind"), [(0, "paper"), (3, "paper"), (3, "released"), (3, "lora")])
def test_checkpoint_gives_the_same_model(model, tasks, settings, image, tmp_path, rank, kind):
    """Predictions survive saving and loading, with and without adapters, in eval mode; nothing is drawn."""
    if rank:
        for parameter in add_adapters(model.encoder, rank, kind):
            nn.init.normal_(parameter)
    recipe = {"dataset": "nyuv2", "tasks": [t.name for t in tasks], "model": settings, "adapter_rank": rank}
    recipe |= {"adapter": kind} if kind != "paper" else {}
    save_checkpoint(tmp_path / "m.safetensors", model.state_dict(), recipe)
    before = torch.get_rng_state()
    loaded = load_model(tmp_path / "m.safetensors", settings, dataset="nyuv2")
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert all(torch.equal(x, loaded(image)[name]) for name, x in model(image).items())


@pytest.mark.parametrize(
    ("settings_change", "expected", "message"),
    [
        ({"blocks": [1]}, {}, "model of .*m.safetensors is .*: expected"),
        (
            {},
            {"tasks": ["depth"]},
            r"tasks of .* is \['segmentation', 'depth', 'normals'\]: expected \['depth'\]",
        ),
        ({}, {"kind": "expert"}, "kind of .* is None: expected 'expert'"),
    ],
)
def test_checkpoint_of_another_kind_is_refused(
    model, tasks, settings, tmp_path, settings_change, expected, message
):
    """A checkpoint made with other settings, or for other tasks, is not silently reinterpreted."""
    recipe = {"dataset": "nyuv2", "tasks": [t.name for t in tasks], "model": settings}
    save_checkpoint(tmp_path / "m.safetensors", model.state_dict(), recipe)
    with pytest.raises(SimoError, match=message):
        load_model(tmp_path / "m.safetensors", {**settings, **settings_change}, **expected)


def test_lora_adds_a_product_to_every_linear_layer(model, image):
    """Nothing changes at first; with B set, the model is the one whose layers are W + B A."""
    expected = copy.deepcopy(model)
    names = [
        n for n, layer in model.encoder.named_modules() if ".blocks." in n and isinstance(layer, nn.Linear)
    ]
    adapters = add_adapters(model.encoder, rank=2, adapter="lora")
    for name, prediction in model(image).items():
        torch.testing.assert_close(prediction, expected(image)[name])
    with torch.no_grad():
        for up in adapters[1::2]:
            up.normal_(std=0.1)
        for name in names:
            lora = model.encoder.get_submodule(name)
            expected.encoder.get_submodule(name).weight += lora.up.weight @ lora.down.weight
    for name, prediction in model(image).items():
        torch.testing.assert_close(prediction, expected(image)[name], rtol=1e-4, atol=1e-5)
    assert len(adapters) == 2 * len(names) == 2 * 4 * len(model.encoder.backbone.blocks)
    assert {id(p) for p in model.encoder.parameters() if p.requires_grad} == {id(p) for p in adapters}


def test_lora_of_rank_2_is_as_large_as_the_paper_s_adapters(settings, tasks):
    """Equal parameters at an MLP ratio of 4: 2 · 16 · D a block."""
    models = [create_model(tasks, 0, **settings) for _ in range(2)]
    paper = count_parameters(add_adapters(models[0].encoder, 16))
    assert count_parameters(add_adapters(models[1].encoder, 2, "lora")) == paper
