"""simo.own: a user's files to a merged model and back to files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from simo import own
from simo.adapters import add_adapters
from simo.checkpoints import TensorFile, save_tensors
from simo.errors import SimoError
from simo.merging.moments import input_moments
from simo.models import MultiTaskModel, create_model
from simo.own import (
    ALPHAS,
    FILES,
    TOLERANCE,
    _check_onnx,
    _Outputs,
    export,
    export_onnx,
    load_expert,
    load_exported,
    merge_experts,
)

SETTINGS = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "blocks": [1, 2],
    "head": "linear",
    "head_options": {},
    "input_scale": "signed",
}

SCORES = {"segmentation": 31.25, "depth": 0.512, "normals": 20.5}


@pytest.fixture
def files(tmp_path, tasks):
    """A pretrained encoder and, for each task, an expert's encoder and head, as a user would have them."""
    base = create_model(tasks, 0, **SETTINGS)
    save_tensors(tmp_path / "pretrained.safetensors", base.encoder.backbone.state_dict())
    for seed, task in enumerate(tasks):
        expert = create_model([task], seed, **SETTINGS)
        torch.manual_seed(seed)
        encoder = {
            name: tensor + 0.05 * torch.randn_like(tensor)
            for name, tensor in base.encoder.backbone.state_dict().items()
        }
        save_tensors(tmp_path / f"{task.name}_encoder.safetensors", encoder)
        save_tensors(tmp_path / f"{task.name}_head.safetensors", expert.heads[task.name].state_dict())
    return tmp_path


def experts_of(files, tasks):
    paths = {t: [files / f"{t.name}_{part}.safetensors" for part in ("encoder", "head")] for t in tasks}
    return {task.name: load_expert(*paths[task], task, SETTINGS) for task in tasks}


def test_one_expert_at_one_is_itself(files, tasks):
    """Merging a single expert with α = 1 gives its predictions; α = 0 the pretrained encoder's state."""
    task = tasks[0]
    expert = experts_of(files, [task])
    pretrained = files / "pretrained.safetensors"
    merged = merge_experts(pretrained, expert, SETTINGS, "task_arithmetic", alpha=1.0)
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(merged(image)[task.name], expert[task.name](image)[task.name])
    merged = merge_experts(pretrained, expert, SETTINGS, "task_arithmetic", alpha=0.0)
    state = merged.encoder.backbone.state_dict()
    for name, tensor in TensorFile(pretrained).items():
        torch.testing.assert_close(state[name], tensor)


def test_mean_of_three_by_hand(files, tasks, same):
    """Average at α = 1 is the mean of the experts' tensors; heads stay theirs; experts are not changed."""
    experts = experts_of(files, tasks)
    merged = merge_experts(files / "pretrained.safetensors", experts, SETTINGS, "average", alpha=1.0)
    name = "backbone.blocks.1.attn.qkv.weight"
    mean = sum(expert.encoder.state_dict()[name] for expert in experts.values()) / 3
    torch.testing.assert_close(merged.encoder.state_dict()[name], mean)
    for task, fresh in experts_of(files, tasks).items():
        assert same(fresh.state_dict(), experts[task].state_dict())
        assert same(fresh.heads.state_dict(), merged.only([task]).heads.state_dict())


def test_methods_of_the_wider_field_are_called_by_name(files, tasks):
    """Those that look at images are given what they saw."""
    experts, pretrained = experts_of(files, tasks), files / "pretrained.safetensors"
    images = [{"image": torch.rand(8, 3, 16, 16)}]
    moments = [input_moments(expert.encoder, images) for expert in experts.values()]
    image = torch.rand(2, 3, 16, 16)
    for method, options in {"iso_c": {}, "dare": {"drop": 0.2}, "regmean": {"moments": moments}}.items():
        merged = merge_experts(pretrained, experts, SETTINGS, method, alpha=0.5, **options)
        assert merged(image).keys() == experts.keys()
    with pytest.raises(SimoError, match="of regmean: missing a required argument: 'moments'"):
        merge_experts(pretrained, experts, SETTINGS, "regmean", alpha=0.5)


@pytest.mark.parametrize(("copies", "alpha"), [(1, 1.0), (2, 0.5), (4, 0.25)])
def test_alpha_without_labels_is_right_where_it_is_known(files, tasks, copies, alpha, monkeypatch):
    """n copies of one expert sum to it at α = 1/n, where nothing that its head should receive is left out."""
    task, grid = tasks[1], (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5)
    monkeypatch.setattr("simo.own.ALPHAS", grid)
    expert = experts_of(files, [task])[task.name]
    experts = {"depth": expert}
    for number in range(1, copies):
        head = {f"depth{number}": expert.heads["depth"]}
        experts |= {f"depth{number}": MultiTaskModel(expert.encoder, head)}
    given = files / "pretrained.safetensors"
    images = [{"image": torch.rand(16, 3, 16, 16)} for _ in range(4)]
    chosen = merge_experts(given, experts, SETTINGS, "task_arithmetic", "auto", images)
    wanted = merge_experts(given, experts, SETTINGS, "task_arithmetic", alpha)
    assert all(torch.equal(a, b) for a, b in zip(chosen.parameters(), wanted.parameters(), strict=True))


def test_alpha_without_labels_leaves_experts_alone(files, tasks, monkeypatch):
    """They keep their mode, as they keep their weights: what they are asked is asked of copies."""
    monkeypatch.setattr("simo.own.ALPHAS", (0.0, 0.5))
    experts, images = experts_of(files, tasks), [{"image": torch.rand(4, 3, 16, 16)}]
    for expert in experts.values():
        expert.train()
    merge_experts(files / "pretrained.safetensors", experts, SETTINGS, "average", "auto", images)
    assert all(module.training for expert in experts.values() for module in expert.modules())


def test_alpha_without_labels_does_not_depend_on_the_order(files, tasks):
    """A loader that shuffles is iterated once: each α is judged by the same images, held out or not."""
    experts, images = experts_of(files, tasks), torch.rand(8, 3, 16, 16)
    asked = []

    class Shuffling:
        def __iter__(self):
            asked.append(1)
            return iter([{"image": images[torch.randperm(8)]}])

    merged = merge_experts(
        files / "pretrained.safetensors", experts, SETTINGS, "average", "auto", Shuffling()
    )
    assert len(asked) == 1
    assert merged.alpha in ALPHAS


def test_alpha_without_labels_is_asked_where_and_as_it_is_told(files, tasks, monkeypatch):
    """Device and precision reach the residual, and the merged model is on the CPU in single precision."""
    experts, images = experts_of(files, tasks), [{"image": torch.rand(8, 3, 16, 16)}]
    asked, solve = [], own.solve_heads
    monkeypatch.setattr(own, "solve_heads", lambda *given: asked.append(given[3:]) or solve(*given))
    given = files / "pretrained.safetensors", experts, SETTINGS, "average", [0.2, 0.4]
    merged = merge_experts(*given, images, device="cpu", precision="bfloat16")
    assert asked == [("cpu", "bfloat16")] * 2
    assert {tensor.dtype for tensor in merged.parameters()} == {torch.float32}


def test_an_alpha_that_overflows_is_not_chosen(files, tasks):
    """A large α may leave features that are no numbers, as of variances below 0: the others decide."""
    experts, images = experts_of(files, tasks), [{"image": torch.rand(8, 3, 16, 16)}]
    given = files / "pretrained.safetensors"
    merged = merge_experts(given, experts, SETTINGS, "average", np.array([0.5, 1e30]), images)
    assert merged.alpha == 0.5
    with pytest.raises(SimoError, match="no α of .*or NaN"):
        merge_experts(given, experts, SETTINGS, "average", [1e30], images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_experts_of_another_precision_are_merged_and_asked(files, tasks, dtype):
    """Images come in float32 whatever the weights are of."""
    experts, images = experts_of(files, tasks), torch.rand(8, 3, 16, 16)
    for expert in experts.values():
        expert.to(dtype)
    given = files / "pretrained.safetensors"
    merged = merge_experts(given, experts, SETTINGS, "average", "auto", [{"image": images}])
    assert merged.alpha in ALPHAS
    for name, expert in experts.items():
        assert expert(images)[name].dtype == dtype


def test_a_grid_of_ones_own_is_tried(files, tasks, monkeypatch, capsys):
    """The α that was taken is the model's; where it is the grid's last, a longer one may have a better."""
    left = {0.5: 0.9, 1.5: 0.4, 3: 0.2}
    monkeypatch.setattr("simo.own.solve_heads", lambda *a: (None, {"depth": next(residuals)}))
    experts, images = {"depth": experts_of(files, tasks)["depth"]}, [{"image": torch.rand(4, 3, 16, 16)}]
    given = (files / "pretrained.safetensors", experts, SETTINGS, "average")
    residuals = iter(left.values())
    assert merge_experts(*given, list(left), images).alpha == 3
    assert (
        "α = 3.0 leaves the least residual of 3 values, the largest that was tried" in capsys.readouterr().out
    )
    residuals = iter([0.2, 0.4])
    assert merge_experts(*given, [0.5, 1.5], images).alpha == 0.5
    assert "tried" not in capsys.readouterr().out
    residuals = iter([1.7, 2.4])
    with pytest.raises(SimoError, match=r"no α of \[0.5, 1.5\] says more of outputs than their mean"):
        merge_experts(*given, [0.5, 1.5], images)


def test_experts_of_half_precision_give_a_model_that_runs(files, tasks):
    """Encoder and heads of a merged model are of one type, whatever the experts were stored in."""
    experts = {name: expert.half() for name, expert in experts_of(files, tasks).items()}
    merged = merge_experts(files / "pretrained.safetensors", experts, SETTINGS, "average", 1.0)
    assert all(torch.isfinite(output).all() for output in merged(torch.rand(2, 3, 16, 16)).values())


def test_scales_of_half_precision_are_the_settings(files, tasks):
    """Rounded to 16 bits, ImageNet's means are those of the settings still; others are not."""
    settings = SETTINGS | {"input_scale": "imagenet"}
    paths = files / "depth_encoder.safetensors", files / "depth_head.safetensors"
    given = files / "pretrained.safetensors", {"depth": load_expert(*paths, tasks[1], settings).half()}
    merge_experts(*given, settings, "average", 1.0)
    with pytest.raises(
        SimoError, match="expert 'depth' is of other blocks or input_scale: expected those of"
    ):
        merge_experts(*given, SETTINGS, "average", 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_another_precision_are_exported_as_float32(merged, tasks, tmp_path, no_onnx, dtype):
    """Weights that others load are of the type that images come in."""
    export(merged.to(dtype), tmp_path / "out", SETTINGS, tasks, (16, 16), SCORES, {})
    model, _ = load_exported(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_task_that_hardly_varies_does_not_choose_alpha_alone(files, tasks, monkeypatch, capsys):
    """Residuals of 3 and 2 at one task count as 1: the other two decide, against the plain sum."""
    left = {0.2: (0.2, 0.2, 3.0), 0.6: (0.6, 0.6, 2.0)}
    monkeypatch.setattr("simo.own.ALPHAS", tuple(left))
    given = iter(left.values())
    names = [task.name for task in tasks]
    monkeypatch.setattr("simo.own.solve_heads", lambda *a: (None, dict(zip(names, next(given), strict=True))))
    experts, images = experts_of(files, tasks), [{"image": torch.rand(4, 3, 16, 16)}]
    merge_experts(files / "pretrained.safetensors", experts, SETTINGS, "average", "auto", images)
    assert "α = 0.2 leaves the least residual of 2 values" in capsys.readouterr().out


def test_alpha_without_labels_needs_images(files, tasks):
    """Nothing else is there to choose it by."""
    with pytest.raises(SimoError, match="images is None: expected batches"):
        merge_experts(files / "pretrained.safetensors", experts_of(files, tasks), SETTINGS, "ties", "auto")


def test_head_of_another_shape_is_refused(files, tasks):
    """The message names the file and the tensor."""
    encoder, head = files / "depth_encoder.safetensors", files / "segmentation_head.safetensors"
    with pytest.raises(SimoError, match=r"segmentation_head.safetensors is of another architecture"):
        load_expert(encoder, head, tasks[1], SETTINGS)


@pytest.mark.parametrize(("head", "size"), [("linear", (16, 16)), ("linear", (20, 28)), ("dpt", (24, 16))])
def test_onnx_computes_what_the_model_does(tmp_path, tasks, head, size):
    """Both heads, padded sizes and grids other than the pretrained one, on another number of images."""
    import onnxruntime

    options = {"channels": [2, 3, 4, 5], "width": 4} if head == "dpt" else {}
    depth = {"depth": 4} if head == "dpt" else {}
    settings = SETTINGS | {
        "head": head,
        "head_options": options,
        "backbone_args": SETTINGS["backbone_args"] | depth,
        "blocks": [1, 2, 3, 4] if head == "dpt" else [1, 2],
    }
    model = create_model(tasks, 0, **settings).eval().requires_grad_(False)
    names = [task.name for task in tasks]
    assert export_onnx(model, names, size, tmp_path / "model.onnx") <= TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    image = torch.rand(5, 3, *size)
    for name, found in zip(names, session.run(names, {"image": image.numpy()}), strict=True):
        wanted = model(image)[name].numpy()
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE * np.abs(wanted).max())


def test_a_model_is_traced_at_the_first_attempt(tasks):
    """Torch's exporter tries the strict way second, at twice the time, if the number of images gets fixed."""
    model = create_model(tasks, 0, **SETTINGS)
    outputs = _Outputs(model.eval(), [task.name for task in tasks])
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(outputs, (torch.rand(2, 3, 20, 28),), dynamic_shapes=batch, strict=False)
    assert [x.shape[0] for x in program.module()(torch.rand(5, 3, 20, 28))] == [5] * len(tasks)


LARGE = "torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD"


def test_weights_beside_an_onnx_file(merged, tasks, tmp_path, monkeypatch):
    """Above 1.5 GiB torch writes them to a second file: it is moved along, loads, and goes when stale."""
    import onnx
    import onnxruntime

    folder, plan = tmp_path / "out", (SETTINGS, tasks, (16, 16), SCORES, {})
    with monkeypatch.context() as patch:
        patch.setattr(LARGE, 0)
        export(merged, folder, *plan)
    assert contents(folder).keys() == set(FILES)
    stored = onnx.load(folder / "model.onnx", load_external_data=False)
    assert {entry.value for each in stored.graph.initializer for entry in each.external_data} >= {
        "model.onnx.data"
    }
    image = torch.rand(3, 3, 16, 16)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for found, task in zip(session.run(None, {"image": image.numpy()}), tasks, strict=True):
        np.testing.assert_allclose(found, merged(image)[task.name].detach(), atol=1e-3)
    (folder / "model.onnx.data").rename(tmp_path / "away")
    with pytest.raises(SimoError, match=r"onnxruntime cannot run .*model\.onnx: .*model\.onnx\.data"):
        _check_onnx(lambda image: tuple(merged(image).values()), (16, 16), folder / "model.onnx")
    (tmp_path / "away").rename(folder / "model.onnx.data")
    export(merged, folder, *plan)
    assert contents(folder).keys() == set(FILES) - {"model.onnx.data"}


def test_an_export_into_a_link(merged, tasks, tmp_path, no_onnx):
    """The files are where the link leads, with nothing hidden beside them."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export(merged, tmp_path / "link", SETTINGS, tasks, (16, 16), SCORES, {})
    assert contents(tmp_path / "real").keys() == set(FILES) - {"model.onnx.data"}
    assert (tmp_path / "link").is_symlink()


def test_a_refused_onnx_file_is_not_kept(tmp_path, tasks, monkeypatch):
    """What was there before stays, nothing lies beside it, and the model is still in training."""
    model = create_model(tasks, 0, **SETTINGS).train()
    (tmp_path / "model.onnx").write_bytes(b"old")
    monkeypatch.setattr("simo.own.TOLERANCE", -1.0)
    with pytest.raises(SimoError, match="the ONNX model's outputs differ by .*, more than -1"):
        export_onnx(model, [task.name for task in tasks], (16, 16), tmp_path / "model.onnx")
    assert contents(tmp_path) == {"model.onnx": b"old"}
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_export_writes_files_that_load(files, tasks, tmp_path, same):
    """Weights are the model's, the recipe says how, the card has the numbers; the model is not changed."""
    merged = merge_experts(
        files / "pretrained.safetensors", experts_of(files, tasks), SETTINGS, "ties", alpha=1.0, density=0.5
    )
    before = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    scores, made = SCORES, {"method": "ties", "alpha": 1.0}
    folder = tmp_path / "exported"
    export(merged, folder, SETTINGS, tasks, (16, 16), scores, made)
    assert same(before, merged.state_dict())
    assert same(before, dict(TensorFile(folder / "model.safetensors")))
    image = torch.rand(2, 3, 16, 16)
    restored, described = load_exported(folder)
    assert same(merged(image), restored(image))
    assert described == list(tasks)
    recipe = json.loads((folder / "model.json").read_text())
    assert (recipe["model"], recipe["made"], recipe["scores"]) == (SETTINGS, made, scores)
    card = (folder / "README.md").read_text()
    for row in ("| segmentation | 13 | mIoU | 31.25 % |", "| depth | 1 | aErr | 0.512 m |"):
        assert row in card
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "model.json",
        "model.onnx",
        "model.safetensors",
    ]


def test_without_the_packages_nothing_is_written(files, tasks, tmp_path, monkeypatch):
    """The message says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    merged = merge_experts(
        files / "pretrained.safetensors", experts_of(files, tasks), SETTINGS, "average", alpha=1.0
    )
    with pytest.raises(
        SimoError, match=r"needs onnx, onnxscript, onnxruntime: pip install '.\[onnx\]' in simo's folder"
    ):
        export(merged, tmp_path / "out", SETTINGS, tasks, (16, 16), SCORES, {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("adapter", ["paper", "released", "lora"])
def test_adapters_are_exported_too(merged, tasks, tmp_path, same, adapter):
    """A model with realigned representation is read back with its adapters, of whatever kind."""
    for weight in add_adapters(merged.encoder, 2, adapter):
        torch.nn.init.normal_(weight)
    export(merged, tmp_path / "out", SETTINGS, tasks, (16, 16), SCORES, {})
    image = torch.rand(2, 3, 16, 16)
    assert same(merged.eval()(image), load_exported(tmp_path / "out")[0](image))


def test_tasks_are_those_of_the_heads(merged, tasks, tmp_path):
    """One that is left out would be missing in the recipe, and the weights would not load."""
    message = r"tasks is \['segmentation', 'depth'\]: expected those of the heads, .*'normals'"
    with pytest.raises(SimoError, match=message):
        export(merged, tmp_path / "out", SETTINGS, tasks[:2], (16, 16), SCORES, {})
    assert not (tmp_path / "out").exists()


@pytest.fixture
def merged(files, tasks):
    """A merged model."""
    return merge_experts(
        files / "pretrained.safetensors", experts_of(files, tasks), SETTINGS, "average", alpha=1.0
    )


@pytest.fixture
def no_onnx(monkeypatch):
    """Exports write an empty ONNX file, in seconds less, where a test is about the other files."""
    monkeypatch.setattr("simo.own.export_onnx", lambda model, names, size, path: path.write_bytes(b"") or 0.0)
    monkeypatch.setattr("simo.own._check_onnx", lambda outputs, size, path: 0.0)


def contents(folder):
    """Names and bytes of the files of a folder, or None if there is none."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


@pytest.mark.parametrize(
    ("settings", "made", "message"),
    [
        ({"input_scale": "imagenet"}, {}, "with these settings the exported weights' outputs differ by"),
        ({}, {"alpha": torch.tensor(0.3)}, "Tensor is not JSON serializable"),
        ({"backbone_args": {"img_size": float("nan")}}, {}, "not JSON compliant"),
        ({"temperature": 1}, {}, "settings: expected the keys"),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_a_refused_export_changes_nothing(merged, tasks, tmp_path, no_onnx, settings, made, message, before):
    """Neither a new folder nor an earlier export: settings not the model's, values that JSON cannot hold."""
    folder = tmp_path / "out"
    if before:
        export(merged, folder, SETTINGS, tasks, (16, 16), SCORES, {})
    found = contents(folder)
    with pytest.raises(SimoError, match=message):
        export(merged, folder, SETTINGS | settings, tasks, (16, 16), SCORES, made)
    assert contents(folder) == found
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == ({"out"} if before else set())


def test_a_file_of_something_else_is_not_overwritten(merged, tasks, tmp_path):
    """A project's README.md stays what it was."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project/README.md").write_text("mine")
    with pytest.raises(SimoError, match=r"project has a README.md that is of no export"):
        export(merged, tmp_path / "project", SETTINGS, tasks, (16, 16), SCORES, {})
    assert contents(tmp_path / "project") == {"README.md": b"mine"}


def test_files_with_the_same_names_are_not_overwritten(merged, tasks, tmp_path, no_onnx):
    """All four, but the model.json is none of ours."""
    (tmp_path / "project").mkdir()
    for name in FILES:
        (tmp_path / "project" / name).write_text("mine")
    with pytest.raises(SimoError, match=r"project has a model.json that is of no export"):
        export(merged, tmp_path / "project", SETTINGS, tasks, (16, 16), SCORES, {})
    assert contents(tmp_path / "project") == dict.fromkeys(FILES, b"mine")


@pytest.mark.parametrize("moved", [1, 2, 3])
@pytest.mark.parametrize("before", [False, True])
def test_an_export_that_was_cut_short_is_completed(
    merged, tasks, tmp_path, monkeypatch, no_onnx, same, moved, before
):
    """After one to three files the disk fails: what is there does not load, until the next export."""
    plan = tmp_path / "out", SETTINGS, tasks, (16, 16), SCORES, {}
    if before:
        export(merged, *plan)
        torch.nn.init.ones_(merged.heads["depth"].project.bias)
    left, replace = iter(range(moved)), os.replace

    def fail(source, target):
        if Path(target).parent == tmp_path / "out" and next(left, None) is None:
            raise OSError("the disk is gone")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(SimoError, match="cannot write .*out: the disk is gone"):
            export(merged, *plan)
    with pytest.raises(SimoError, match="does not exist|is not what its recipe describes"):
        load_exported(tmp_path / "out")
    export(merged, *plan)
    assert same(load_exported(tmp_path / "out")[0].state_dict(), merged.state_dict())
    assert contents(tmp_path / "out").keys() == set(FILES) - {"model.onnx.data"}


def test_an_export_is_replaced(merged, tasks, tmp_path, no_onnx):
    """The second one is what loads."""
    for alpha in (0.1, 0.2):
        export(merged, tmp_path / "out", SETTINGS, tasks, (16, 16), SCORES, {"alpha": alpha})
    assert json.loads((tmp_path / "out/model.json").read_text())["made"] == {"alpha": 0.2}


def test_loading_draws_no_random_numbers(merged, tasks, tmp_path, no_onnx):
    """A user's seed is not touched."""
    export(merged, tmp_path / "out", SETTINGS, tasks, (16, 16), SCORES, {})
    before = torch.get_rng_state()
    load_exported(tmp_path / "out")
    assert torch.equal(before, torch.get_rng_state())


def test_names_that_begin_with_more_are_shown(files, tasks):
    """A state saved with a prefix is refused with both names."""
    state = {
        f"model.{name}": tensor for name, tensor in TensorFile(files / "depth_encoder.safetensors").items()
    }
    save_tensors(files / "prefixed.safetensors", state)
    message = r"lacks 'blocks.0.attn.proj.bias' and has 'model.blocks.0.attn.proj.bias'"
    with pytest.raises(SimoError, match=message):
        load_expert(files / "prefixed.safetensors", files / "depth_head.safetensors", tasks[1], SETTINGS)


def test_a_weight_that_is_not_finite_is_named(files, tasks):
    """File and tensor, before anything is merged with it."""
    state = dict(TensorFile(files / "depth_encoder.safetensors").items())
    state["cls_token"][0, 0, 3] = float("nan")
    save_tensors(files / "broken.safetensors", state)
    with pytest.raises(
        SimoError, match=r"broken.safetensors: cls_token has 1 values that are NaN, infinite or too large"
    ):
        load_expert(files / "broken.safetensors", files / "depth_head.safetensors", tasks[1], SETTINGS)
