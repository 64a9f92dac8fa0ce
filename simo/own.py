"""Your own experts: from their files to a merged, realigned model, and from that to files for others.

Example::

    experts = {t.name: load_expert(f"{t.name}_encoder.safetensors", f"{t.name}_head.safetensors", t, settings)
               for t in tasks}
    merged = merge_experts("pretrained.safetensors", experts, settings, "task_arithmetic", "auto", images)
    encoders = {name: expert.encoder for name, expert in experts.items()}
    realigned = realign_closed_form(merged, encoders, images)
    scores = evaluate(realigned, labelled, tasks)
    export(realigned, "exported", settings, tasks, (224, 224), scores, {"method": "task_arithmetic"})
"""

import copy
import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from simo.adapters import ADAPTERS, AdaptedBlock
from simo.checkpoints import TensorFile, load_into, load_recipe, save_checkpoint
from simo.encoders import create_encoder
from simo.errors import SimoError, require
from simo.files import decoding, reason
from simo.heads import create_head
from simo.merging.field import METHODS
from simo.merging.methods import merge
from simo.merging.task_vectors import TaskVector
from simo.metrics import create_metric
from simo.models import MODEL, MultiTaskModel, restore_model
from simo.realignment.closedform import NotFinite, solve_heads
from simo.tasks import Task, names_of

# that "auto" tries: methods that average want more than 1
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 1.75, 2.0)
TOLERANCE = 1e-3  # largest difference between ONNX and eager outputs, relative to the outputs' largest value
# put in place in this order: an export that was cut short is known by the first, and does not load
FILES = ("model.json", "README.md", "model.onnx.data", "model.onnx", "model.safetensors")
ONNX_DATA = ".data"  # what torch adds to the name of an ONNX file for the weights, if these exceed 1.5 GiB


def load_expert(encoder_file, head_file, task, settings):
    """An expert from the state of a timm model and that of a head of `simo.heads`.

    Parameters
    ----------
    encoder_file, head_file : str or Path
        Safetensors, with the names of timm's model (without classifier) and of the head. If yours begin with
        more, ``save_tensors(path, TensorFile(yours, "model."))`` of `simo.checkpoints` writes them without.
    task : Task
        Your own: ``Task("depth", "", 1, "l1", "aErr", "m", non_negative=True)``.
    settings : dict
        `backbone`, `backbone_args`, `blocks`, `head`, `head_options`, `input_scale`, see `create_model`.

    Returns
    -------
    MultiTaskModel
        In eval mode.

    Raises
    ------
    SimoError
        For settings with other keys, a file that does not fit them, naming the tensor, or an unknown metric.
    """
    names_of([task])
    create_metric(task)
    encoder = _encoder(encoder_file, settings)
    head = create_head(settings["head"], task, encoder.dims, encoder.classes, settings["head_options"])
    load_into(head, TensorFile(head_file), head_file)
    return MultiTaskModel(encoder, {task.name: head}).eval()


def merge_experts(
    pretrained_file, experts, settings, method, alpha, images=None, device="cpu", precision="float32",
    **options,
):  # fmt: skip
    """Merge experts' encoders under their heads, by any method of `simo.merging.field.METHODS`.

    Parameters
    ----------
    pretrained_file : str or Path
        The timm model that all experts started from.
    experts : dict of str to MultiTaskModel
        By task name, from `load_expert`; not changed.
    settings : dict
        As for `load_expert`.
    method : str
        Such as `task_arithmetic` or `ties`; `FROM_IMAGES` of that module need `moments`, see `input_moments`.
    alpha : float or "auto" or sequence of float
        The merging coefficient. With labelled images, `evaluate` a few and take the best. "auto" needs none:
        of `ALPHAS`, or of the list, it takes that from whose features the experts' outputs can be told best,
        by the held-out residual summed over tasks, each at most 1, see `solve_heads` of closed form.
    images : iterable of dict, optional
        For "auto": batches of `image` `(B, 3, H, W)` in `[0, 1]`, some hundred; all are kept in memory.
    device, precision : str
        For "auto": what to compute on and in, see `simo.training.pick_device`.
    **options
        Of the method, such as `density=0.2`.

    Returns
    -------
    MultiTaskModel
        In eval mode, on the CPU; its `alpha` is the one that was taken.

    Raises
    ------
    SimoError
        For experts of another architecture, as tensors' shapes tell it (not of other numbers of attention
        heads, say), or with other `blocks` or `input_scale` than the settings', one
        without a head of its name, what `merge` refuses, and "auto" without images, or with too few to tell.
    """
    encoder = _encoder(pretrained_file, settings)
    base = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    require("what holds experts", type(experts), isinstance(experts, Mapping), "a dict by tasks' names")
    heads, vectors = {}, []
    for name, expert in experts.items():
        found = list(expert.heads) if isinstance(expert, MultiTaskModel) else [type(expert).__name__]
        require(f"the list of heads of expert {name!r}", found, name in found, "a MultiTaskModel's, with it")
        heads[name] = copy.deepcopy(expert.heads[name])
        load_into(heads[name], expert.heads[name].state_dict(), f"the head of {name}")  # checked by it
        heads[name].float().cpu()
        vectors.append(TaskVector.between(base, expert.encoder.state_dict(), name))
        alike = torch.allclose(expert.encoder.mean.float().cpu(), encoder.mean, rtol=0.01)  # of 16 bits, too
        alike = alike and expert.encoder.taps == encoder.taps
        require(f"expert {name!r}", "of other blocks or input_scale", alike, "those of the settings")
    model, vector = MultiTaskModel(encoder, heads).eval(), merge(method, vectors, METHODS, **options)
    grid = ALPHAS if isinstance(alpha, str) and alpha == "auto" else alpha
    if np.ndim(grid):
        vector, grid = vector.compute(), [_number(each, "alpha") for each in grid]  # once for all
        alpha = _least_residual(grid, model, base, vector, experts, images, device, precision)
    model.alpha = _number(alpha, "alpha")
    vector.load_into(encoder, base, model.alpha)
    return model


def _least_residual(grid, model, base, vector, experts, images, device, precision):
    """The α of a grid that leaves the least residual, summed over tasks."""
    require("images", images, images is not None, 'batches without labels that alpha="auto" can choose on')
    encoders = {name: copy.deepcopy(expert.encoder) for name, expert in experts.items()}
    images = list(images)  # the same for every α, also of a loader that shuffles

    def residual(alpha):
        vector.load_into(model.encoder, base, alpha)
        # 1 is that of a head that learns the mean alone: more if outputs hardly vary, or images are few
        with suppress(NotFinite):  # batch norm's variances may end below 0
            left = solve_heads(model, encoders, images, device, precision)[1]
            return sum(min(own, 1.0) for own in left.values())
        return math.inf

    found = {alpha: residual(alpha) for alpha in grid}
    if min(found.values(), default=math.inf) >= len(encoders):
        raise SimoError(f"no α of {grid} says more of outputs than their mean (or NaN): give more images")
    best = min(found, key=lambda alpha: found[alpha])
    edge = ", the largest that was tried" * (len(grid) > 1 and best == max(grid))
    print(f"α = {best} leaves the least residual of {len(grid)} values{edge}")
    return best


def export(model, folder, settings, tasks, size, scores, made):
    """Write a model for others: weights with recipe, ONNX checked against the model, and a model card.

    Parameters
    ----------
    model : MultiTaskModel
        Not changed.
    folder : str or Path
        Gets `FILES`, all or none: new, or with an earlier export, which is replaced. If moving them there is
        cut short, `load_exported` refuses the folder, and exporting again completes it. `model.onnx.data`
        is only there for more than 1.5 GiB of weights, which `model.onnx` then reads from it.
    settings : dict
        As for `load_expert`.
    tasks : sequence of Task
        Those of the model's heads.
    size : (int, int)
        Height and width of the images that the ONNX model takes; any number of them at a time.
    scores : dict of str to float
        By task name, as `evaluate` returns them; NumPy's and torch's scalars are numbers, too.
    made : dict
        How, from what, α and whatever else a user should know, as JSON can hold it.

    Returns
    -------
    float
        Largest difference between ONNX and eager outputs, relative to the outputs' largest value.

    Raises
    ------
    SimoError
        If that is above `TOLERANCE`, or what `load_exported` reads computes something else (heads must be
        those of `simo.heads`); if tasks are not the heads', a score is missing, the packages for ONNX are not
        installed, or the folder holds other files of these names. Nothing is written then.
    """
    names = names_of(tasks)
    require("tasks", names, sorted(names) == sorted(model.heads), f"those of the heads, {list(model.heads)}")
    scores = scores if isinstance(scores, Mapping) else {}
    scores = {name: _number(scores.get(name), f"the score of {name}, which the card shows") for name in names}
    size = _checked_size(size)
    folder, recipe = Path(folder), Path(folder) / FILES[0]
    with decoding(folder):
        found = [name for name in FILES if (folder / name).exists()]
    if found and not (recipe.is_file() and b'"kind": "exported"' in recipe.read_bytes()):
        raise SimoError(f"{folder} has a {found[0]} that is of no export: choose another folder")
    model, fresh = copy.deepcopy(model).cpu().float().eval().requires_grad_(False), not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # within: the folder may be a link, or another disk
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export") as new:
            difference = _write(model, Path(new), settings, tasks, size, scores, made)
            _move(FILES, Path(new), folder)
    except OSError as error:
        raise SimoError(f"cannot write {folder}: {reason(error)}") from error
    finally:
        if fresh and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    _check_onnx(_Outputs(model, names), size, folder / "model.onnx")
    print(f"{folder.name}: ONNX differs from PyTorch by {difference:.1e} at most, relatively")
    return difference


def _move(names, source, folder):
    """Move files in their order; what is not there, but was in the folder, goes."""
    for name in names:
        if (source / name).exists():
            os.replace(source / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _write(model, folder, settings, tasks, size, scores, made):
    """Write `FILES`, and check that they compute what the model does; return ONNX's difference."""
    recipe = {"kind": "exported", "tasks": [asdict(task) for task in tasks], "model": settings}
    recipe |= {"made": made, "scores": scores, "adapter_rank": 0}
    for module in model.encoder.modules():
        if isinstance(module, AdaptedBlock):  # all are of one kind and rank
            kind = next(kind for kind, own in ADAPTERS.items() if type(module) is own)
            kind = "lora" if isinstance(module.block, nn.Linear) else kind
            recipe |= {"adapter_rank": len(module.down.weight), "adapter": kind}
    save_checkpoint(folder / "model.safetensors", model.state_dict(), recipe)
    image = torch.rand(2, 3, *size)
    restored, wanted = load_exported(folder)[0](image), model(image)
    difference = _difference([restored[name] for name in wanted], wanted.values())
    if not difference <= TOLERANCE:
        what = f"differ by {difference:.1e} from the model's: expected its settings, and no NaN"
        raise SimoError(f"with these settings the exported weights' outputs {what}")
    difference = export_onnx(model, [task.name for task in tasks], size, folder / "model.onnx")
    card = model_card(model, settings, tasks, size, scores, made, difference)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return difference


def load_exported(folder):
    """The model that `export` wrote.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    (MultiTaskModel, list of Task)
        The model in eval mode.

    Raises
    ------
    SimoError
        If the folder holds no export, or one that is unfinished or was changed.
    """
    path = Path(folder) / "model.safetensors"
    recipe = load_recipe(path, kind="exported")
    with decoding(path.with_suffix(".json"), "export the model again"):
        tasks = [Task(**task | {"classes": tuple(task["classes"])}) for task in recipe["tasks"]]
        adapters = recipe["adapter_rank"], recipe.get("adapter", "paper")
        return restore_model(path, tasks, _checked(recipe["model"]), *adapters), tasks


def export_onnx(model, names, size, path):
    """Write a model as ONNX, checked against it: `image` `(batch, 3, *size)` in [0, 1] to one output a task.

    Parameters
    ----------
    model : MultiTaskModel
        On any device; not changed.
    names : sequence of str
        Of the tasks, and of the outputs in their order.
    size : (int, int)
        Height and width of the images.
    path : str or Path
        The file, which is replaced, with one of the same name and `.data` beside it for more than 1.5 GiB of
        weights. A model that is refused leaves what was there.

    Returns
    -------
    float
        Largest difference between ONNX and eager outputs, relative to the outputs' largest value.

    Raises
    ------
    SimoError
        If that is above `TOLERANCE`, torch cannot export the encoder, or the packages for ONNX are not
        installed.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise SimoError(f"ONNX needs {', '.join(missing)}: pip install '.[onnx]' in simo's folder")
    path, size = Path(path), _checked_size(size)
    outputs = _Outputs(copy.deepcopy(model).cpu().float(), names).eval().requires_grad_(False)
    try:
        program = torch.onnx.export(
            outputs, (torch.rand(2, 3, *size),), dynamo=True, verbose=False,
            input_names=["image"], output_names=names, dynamic_shapes=[{0: "batch"}],
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:  # its text is a report of many lines
        kind = type(model.encoder.backbone).__name__
        raise SimoError(f"torch cannot export this {kind} to ONNX: {error.__cause__ or error}") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}") as new:
            program.save(Path(new) / path.name)  # under its name: it holds that of the file of its weights
            difference = _check_onnx(outputs, size, Path(new) / path.name)
            _move((path.name + ONNX_DATA, path.name), Path(new), path.parent)
    except OSError as error:
        raise SimoError(f"cannot write {path}: {reason(error)}") from error
    return difference


def _check_onnx(outputs, size, path):
    """How far an ONNX file's outputs, where it lies, are from a module's, relatively; refuse a difference."""
    import onnxruntime

    image = torch.rand(3, 3, *size)  # another number of images than it was traced with
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(None, {"image": image.numpy()})
    except Exception as error:  # onnxruntime has a dozen kinds
        raise SimoError(f"onnxruntime cannot run {path}: {reason(error)}; is it a task's name?") from error
    with torch.no_grad():
        difference = _difference(map(torch.from_numpy, found), outputs(image))
    if not difference <= TOLERANCE:
        raise SimoError(f"the ONNX model's outputs differ by {difference:.1e}, more than {TOLERANCE:g}")
    return difference


def _difference(found, wanted):
    """Largest difference of outputs, relative to the largest value of each; NaN if any is."""
    pairs = zip(found, wanted, strict=True)
    return torch.stack([(a - b).abs().max() / b.abs().max().clamp(min=1e-12) for a, b in pairs]).max().item()


def model_card(model, settings, tasks, size, scores, made, difference):
    """Markdown that says what a model is, how it was made, and how good it was found to be."""
    rows = [f"| {t.name} | {t.channels} | {t.metric} | {scores[t.name]:.4g} {t.unit} |" for t in tasks]
    values = {"names": ", ".join(task.name for task in tasks), "count": len(tasks), "rows": "\n".join(rows)}
    values |= {"parameters": sum(weight.numel() for weight in model.parameters()), "difference": difference}
    values |= {"size": "{}, {}".format(*size), "made": json.dumps(made, indent=1, ensure_ascii=False)}
    card = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    return card.format(backbone=settings["backbone"], **values)


class _Outputs(nn.Module):
    """A model whose outputs are a tuple in a given order."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, image):
        return tuple(map(self.model(image).get, self.names))


def _encoder(path, settings):
    TensorFile(path)  # without a file, the weights would be random
    own = {name: value for name, value in _checked(settings).items() if not name.startswith("head")}
    return create_encoder(**own, weights=path)


def _checked(settings):
    """Settings, if they have all keys and no others."""
    if not isinstance(settings, Mapping) or settings.keys() != set(MODEL):
        found = sorted(map(str, settings)) if isinstance(settings, Mapping) else type(settings).__name__
        raise SimoError(f"settings: expected the keys {sorted(MODEL)}, found {found}")
    return settings


def _checked_size(size):
    """A size as two whole numbers above 0."""
    try:
        height, width = (int(length) for length in size if length == int(length) > 0)
    except (TypeError, ValueError) as error:
        raise SimoError(f"size {size!r}: expected height and width in pixels, such as (224, 224)") from error
    return height, width


def _number(value, what):
    """A finite number as a float, also of NumPy's or torch's scalars."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise SimoError(f"{what}: expected a finite number, found {value!r:.60}")
    return float(value)
