"""report.experts: experts as their notebook leaves them, checked before they are merged."""

from types import SimpleNamespace

import pytest
import torch

from report.experts import load_experts
from report.notebooks import ROOT
from simo.adapters import AdaptedBlock, add_adapters
from simo.checkpoints import TensorFile, load_recipe, save_checkpoint
from simo.encoders import create_encoder
from simo.errors import SimoError
from simo.evaluation import scan_alpha
from simo.files import read_json
from simo.merging.methods import METHODS, merge
from simo.models import count_parameters, create_model


@pytest.fixture
def expert_files(tmp_path, tasks, settings):
    """A pretrained backbone and three experts on the disk, as the expert notebook leaves them."""
    backbone = create_model(tasks, 0, **settings).encoder.backbone
    save_checkpoint(tmp_path / "backbone.safetensors", backbone.state_dict(), {})
    start = load_recipe(tmp_path / "backbone.safetensors")["sha256"]
    for seed, task in enumerate(tasks):
        expert = create_model([task], seed, **settings, weights=tmp_path / "backbone.safetensors")
        with torch.no_grad():
            for tensor in expert.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(0.02 * torch.randn_like(tensor).abs())
        recipe = {"kind": "expert", "dataset": "nyuv2", "tasks": [task.name], "model": settings}
        recipe |= {"hashes": {"backbone": start}}
        save_checkpoint(tmp_path / f"expert_{task.name}.safetensors", expert.state_dict(), recipe)
    return tmp_path


@pytest.mark.parametrize("method", METHODS)
def test_merged_model_keeps_the_experts_heads(expert_files, tasks, settings, val, method):
    """Through the merging notebook's path, heads stay byte for byte; the encoder is θ_0 + α τ."""
    weights = expert_files / "backbone.safetensors"
    model, base, task_vectors = load_experts(expert_files, "nyuv2", tasks, settings, weights)
    assert all(torch.equal(base[f"backbone.{name}"], x) for name, x in TensorFile(weights).items())
    merged = merge(method, list(task_vectors.values())).compute()
    batches = [{name: x[None] for name, x in val[0].items()}]
    baselines = {"segmentation": 10.0, "depth": 1.0, "normals": 90.0}
    alpha, _ = scan_alpha(model, base, merged, [0.4], batches, tasks, baselines)
    assert alpha == 0.4
    for task in tasks:
        head = TensorFile(expert_files / f"expert_{task.name}.safetensors", f"heads.{task.name}.")
        assert all(torch.equal(head[name], x) for name, x in model.heads[task.name].state_dict().items())
    experts = [TensorFile(expert_files / f"expert_{task.name}.safetensors", "encoder.") for task in tasks]
    scale = {"pretrained": 0, "average": 1 / 3, "task_arithmetic": 1}.get(method)
    for name, tensor in model.encoder.state_dict().items():
        if scale is not None:
            change = sum(expert[name] - base[name] for expert in experts)
            torch.testing.assert_close(tensor, base[name] + 0.4 * scale * change)
        else:
            assert not torch.equal(tensor, base[name])


def test_experts_of_other_settings_are_refused(expert_files, tasks, settings):
    """An expert with other blocks, or a file under another task's name, is not merged."""
    weights = expert_files / "backbone.safetensors"
    with pytest.raises(SimoError, match="model of checkpoint .*expert_segmentation.safetensors is "):
        load_experts(expert_files, "nyuv2", tasks, {**settings, "blocks": [2]}, weights)
    for suffix in (".safetensors", ".json"):
        (expert_files / f"expert_normals{suffix}").replace(expert_files / f"expert_depth{suffix}")
    with pytest.raises(SimoError, match=r"tasks of checkpoint .*expert_depth.safetensors is \['normals'\]"):
        load_experts(expert_files, "nyuv2", tasks, settings, weights)


def test_experts_of_another_start_are_refused(expert_files, tasks, settings):
    """A difference from weights that an expert did not start from is no task vector, whatever its shapes."""
    other = create_model(tasks, 1, **settings).encoder.backbone
    save_checkpoint(expert_files / "other.safetensors", other.state_dict(), {})
    with pytest.raises(SimoError, match="expert_segmentation.safetensors started from other weights"):
        load_experts(expert_files, "nyuv2", tasks, settings, expert_files / "other.safetensors")


@pytest.mark.parametrize("hashes", [None, {}, 3])
def test_recipes_without_the_hash_of_their_start_are_refused(expert_files, tasks, settings, hashes):
    """Whether the entry is missing, empty or no mapping: the file is named."""
    path = expert_files / "expert_depth.safetensors"
    recipe = {name: value for name, value in load_recipe(path).items() if name != "hashes"}
    recipe |= {} if hashes is None else {"hashes": hashes}
    save_checkpoint(path, dict(TensorFile(path)), recipe)
    with pytest.raises(
        SimoError, match="expert_depth.*(lacks the entry 'hashes'|started from other weights)"
    ):
        load_experts(expert_files, "nyuv2", tasks, settings, expert_files / "backbone.safetensors")


def test_adapters_are_folded_into_the_weights():
    """The lines of the expert's notebook that do it leave a plain encoder that computes the same."""
    cells = read_json(ROOT / "notebooks" / "compute" / "expert.ipynb")["cells"]
    source = next("".join(cell["source"]) for cell in cells if cell["id"] == "train-expert")
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    encoder = create_encoder("vit_tiny_patch16_224", arguments, [1, 2]).eval()
    names = encoder.state_dict().keys()
    adapters = add_adapters(encoder, 2, "lora")
    for weight in adapters:
        torch.nn.init.normal_(weight, std=0.1)
    image = torch.rand(1, 3, 32, 32)
    before = encoder(image).patches
    model = SimpleNamespace(encoder=encoder, parameters=encoder.parameters)
    place = {"model": model, "AdaptedBlock": AdaptedBlock, "count_parameters": count_parameters}
    exec(source[source.index("trained = ") :], place)
    assert place["trained"] == count_parameters(adapters)
    assert encoder.state_dict().keys() == names
    torch.testing.assert_close(encoder(image).patches, before, rtol=1e-4, atol=1e-5)
