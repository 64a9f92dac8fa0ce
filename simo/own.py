"""Your own experts: from their files to a merged, realigned model, and from that to files for others.

experts = {t.name: load_expert(f"{t.name}_encoder.safetensors", f"{t.name}_head.safetensors", t, settings)
           for t in tasks}
merged = merge_experts("pretrained.safetensors", experts, settings, "task_arithmetic", alpha=0.3)
encoders = {name: expert.encoder for name, expert in experts.items()}
realigned = realign_closed_form(merged, encoders, images)
scores = evaluate(realigned, labelled, tasks)
export(realigned, "exported", settings, tasks, (224, 224), scores, {"method": "task_arithmetic"})
"""

import copy
import importlib.util
import json
from pathlib import Path

import torch
from torch import nn

from simo.checkpoints import TensorFile, load_into, load_recipe, save_checkpoint
from simo.errors import SimoError
from simo.files import atomic_path
from simo.heads import create_head
from simo.merging import TaskVector, merge
from simo.models import (
    AdaptedBlock,
    MultiTaskModel,
    add_adapters,
    count_parameters,
    create_encoder,
    create_model,
)

TOLERANCE = 1e-3  # largest difference between ONNX and eager outputs, relative to the outputs' largest value


def load_expert(encoder_file, head_file, task, settings):
    """An expert from the state of a timm ViT and that of a head of `simo.heads`.

    Parameters
    ----------
    encoder_file, head_file : str or Path
        Safetensors, with the names of timm's model (without classifier) and of the head.
    task : Task
        Your own: `Task("depth", "", 1, "l1", "aErr", "m", non_negative=True)`.
    settings : dict
        `backbone`, `backbone_args`, `blocks`, `head`, `head_options`, `input_scale`, see `create_model`.

    Returns
    -------
    MultiTaskModel
        In eval mode.
    """
    encoder = _encoder(encoder_file, settings)
    options = settings["head_options"]
    head = create_head(settings["head"], task, len(settings["blocks"]), encoder.dim, options)
    load_into(head, TensorFile(head_file), head_file)
    return MultiTaskModel(encoder, {task.name: head}).eval()


def merge_experts(pretrained_file, experts, settings, method, alpha, **options):
    """Merge experts' encoders under their heads, by any method of `simo.merging`.

    Parameters
    ----------
    pretrained_file : str or Path
        The timm ViT that all experts started from.
    experts : dict of str to MultiTaskModel
        By task name, from `load_expert`; not changed.
    settings : dict
        As for `load_expert`.
    method : str
        Such as `task_arithmetic` or `ties`.
    alpha : float
        The merging coefficient; `simo.evaluation.scan_alpha` finds one.
    **options
        Of the method, such as `density=0.2`.

    Returns
    -------
    MultiTaskModel
        In eval mode, on the CPU.
    """
    encoder = _encoder(pretrained_file, settings)
    base = encoder.state_dict()
    vectors = []
    for name, expert in experts.items():  # on the CPU, wherever they were used before
        state = {tensor: value.cpu() for tensor, value in expert.encoder.state_dict().items()}
        vectors.append(TaskVector.between(base, state, name))
    merged = merge(method, vectors, **options).apply(base, alpha)
    load_into(encoder, dict(merged), f"encoder merged by {method}")
    heads = {name: copy.deepcopy(expert.heads[name]).cpu() for name, expert in experts.items()}
    return MultiTaskModel(encoder, heads).eval()


def export(model, folder, settings, tasks, size, scores, made):
    """Write a model for others: weights with recipe, ONNX checked against the model, and a model card.

    Parameters
    ----------
    model : MultiTaskModel
        Not changed.
    folder : str or Path
        Gets `model.safetensors`, `model.json`, `model.onnx` and `README.md`.
    settings : dict
        As for `load_expert`.
    tasks : sequence of Task
    size : (int, int)
        Height and width of the images that the ONNX model takes; any number of them at a time.
    scores : dict of str to float
        By task name, as `evaluate` returns them.
    made : dict
        JSON-able: how, from what, α and whatever else a user should know.

    Returns
    -------
    float
        Largest difference between ONNX and eager outputs, relative to the outputs' largest value.

    Raises
    ------
    SimoError
        If that is above `TOLERANCE`, a score is missing, or the packages for ONNX are not installed. Nothing
        is written then.
    """
    missing = [task.name for task in tasks if task.name not in scores]
    if missing:
        raise SimoError(f"scores of {', '.join(missing)} are missing: the model card has one of every task")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    names = [task.name for task in tasks]
    with atomic_path(folder / "model.onnx") as path:
        difference = export_onnx(model, names, size, path)
    ranks = [module.down.out_features for module in model.modules() if isinstance(module, AdaptedBlock)]
    recipe = {"kind": "exported", "tasks": names, "model": settings, "made": made, "scores": scores}
    recipe["adapter_rank"] = ranks[0] if ranks else 0
    save_checkpoint(folder / "model.safetensors", model.state_dict(), recipe)
    with atomic_path(folder / "README.md") as path:
        path.write_text(model_card(model, settings, tasks, size, scores, made, difference), encoding="utf-8")
    print(f"{folder.name}: ONNX differs from PyTorch by {difference:.1e} at most, relatively")
    return difference


def load_exported(folder, tasks):
    """The model that `export` wrote.

    Parameters
    ----------
    folder : str or Path
    tasks : sequence of Task
        Those that it was exported with.

    Returns
    -------
    MultiTaskModel
        In eval mode.
    """
    path = Path(folder) / "model.safetensors"
    recipe = load_recipe(path, kind="exported", tasks=[task.name for task in tasks])
    model = create_model(tasks, seed=0, **recipe["model"])
    if recipe["adapter_rank"]:
        add_adapters(model.encoder, recipe["adapter_rank"])
    load_into(model, TensorFile(path), path)
    return model.eval()


def export_onnx(model, names, size, path):
    """Write a model as ONNX: `image` `(batch, 3, *size)` in [0, 1] to one output a task; see `export`."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise SimoError(f"exporting to ONNX needs {', '.join(missing)}: pip install 'simo[onnx]'")
    import onnxruntime

    outputs = _Outputs(model, names).eval()
    program = torch.onnx.export(
        outputs, (torch.rand(2, 3, *size),), dynamo=True, verbose=False,
        input_names=["image"], output_names=names, dynamic_shapes=[{0: "batch"}],
    )  # fmt: skip
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = torch.rand(3, 3, *size)  # another number of images
    found = session.run(None, {"image": image.numpy()})
    wanted = outputs(image)
    differences = [
        (torch.from_numpy(ours) - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)
        for ours, theirs in zip(found, wanted, strict=True)
    ]
    difference = torch.stack(differences).max().item()  # NaN if any is
    if not difference <= TOLERANCE:
        raise SimoError(f"the ONNX model's outputs differ by {difference:.1e}, more than {TOLERANCE:g}")
    return difference


def model_card(model, settings, tasks, size, scores, made, difference):
    """Markdown that says what a model is, how it was made, and how good it was found to be."""
    rows = [f"| {t.name} | {t.channels} | {t.metric} | {scores[t.name]:.4g} {t.unit} |" for t in tasks]
    parameters = count_parameters(model.parameters())
    return "\n".join(
        [
            f"# {settings['backbone']} for {', '.join(task.name for task in tasks)}",
            "",
            f"One encoder for {len(tasks)} dense tasks, merged from experts and realigned with simo, the "
            "companion to [Single-Input Multi-Output Model Merging](https://arxiv.org/abs/2504.11268): "
            f"{parameters:,} parameters, one encoder pass an image.",
            "",
            "| task | channels | metric | score |",
            "|---|---|---|---|",
            *rows,
            "",
            "## Files",
            "",
            "- `model.safetensors`, with its recipe `model.json`: weights for `simo.own.load_exported`.",
            f"- `model.onnx`: from `image`, float32 `(batch, 3, {size[0]}, {size[1]})` in [0, 1], to one "
            f"output `(batch, channels, {size[0]}, {size[1]})` a task; class scores are logits. It differs "
            f"from PyTorch by {difference:.1e} at most, relatively, on random images.",
            "",
            "## How it was made",
            "",
            "```json",
            json.dumps(made, indent=1),
            "```",
            "",
        ]
    )


class _Outputs(nn.Module):
    """A model whose outputs are a tuple in a given order."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, image):
        outputs = self.model(image)
        return tuple(outputs[name] for name in self.names)


def _encoder(path, settings):
    names = ("backbone", "backbone_args", "blocks")
    return create_encoder(*(settings[name] for name in names), path, settings["input_scale"])
