"""The one training loop, used for experts, joint training and realignment, and resumable in each.

Everything random in a step (which images, their augmentation, dropout) is a function of seed and step,
so a run that was interrupted and continued ends with the same weights as one that was not.

Each step trains on `batch_size` images, in `accumulate` micro-batches of which only one is in memory at a
time. The gradient is the mean of the micro-batches' gradients. It is that of the whole batch where all
micro-batches have equally many valid pixels; where they differ, pixels of sparsely labelled images count a
little more. Batch norm sees micro-batches, not batches.
"""

import json
import math
import platform
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import default_collate
from tqdm import tqdm

from simo.balancing import BY_GRADIENT, balancing, equal
from simo.checkpoints import TensorFile, load_into, save_tensors
from simo.datasets import check_batch, check_keys, training_batches
from simo.errors import SimoError, require, require_known
from simo.files import decoding


@dataclass(frozen=True)
class Optimisation:
    """How to train: AdamW under a one-cycle learning rate, gradients clipped by norm."""

    steps: int  # optimiser steps
    batch_size: int  # images a step
    seed: int  # decides order, augmentation and dropout
    weight_decay: float = 0.0  # AdamW's, on all trained tensors
    warmup: float = 0.05  # fraction of the steps in which the learning rate rises: the paper's 5 %
    clip: float = 25.0  # largest norm of the gradient over all trained tensors: the paper's 25
    device: str = "cpu"  # where to train
    precision: str = "float32"  # "bfloat16" computes the forward pass in mixed precision
    accumulate: int = 1  # micro-batches a step, for cards that are too small for all its images at once
    compile: bool = False  # fuse the forward pass by torch.compile: a minute's start for faster steps
    workers: int = 0  # processes that load data; 0 loads in this one
    save_seconds: float = 20.0  # least time between saved states, which go with rows of the history

    def __post_init__(self):
        """Refuse numbers out of range, and a batch that cannot be cut into equal micro-batches."""
        parts = self.accumulate
        require("warmup", self.warmup, 0 <= self.warmup <= 1, "a fraction in [0, 1]")
        require("clip", self.clip, self.clip > 0, "a norm above 0; infinity does not clip")
        divides = 1 <= parts <= self.batch_size and self.batch_size % parts == 0
        require("accumulate", parts, divides, f"a divisor of batch_size, {self.batch_size}, of 1 or more")

    @property
    def micro_batch(self):
        """Images that are in memory at a time."""
        return self.batch_size // self.accumulate


class OwnLoss(NamedTuple):
    """Stands for a task in `fit` of which `predict` gives the loss itself: no target is read.

    Attributes
    ----------
    name : str
        Of the loss, in the predictions and the history.
    """

    name: str

    def compute_loss(self, prediction, target):
        """Return the prediction."""
        return prediction


def one_cycle(step, steps, warmup):
    """Factor of the learning rate: a cosine from 1/25 up to 1, then one down to 1/250000.

    Parameters
    ----------
    step, steps : int
        `0 <= step < steps`.
    warmup : float
        Fraction of the steps that rise.

    Returns
    -------
    float
        In `(0, 1]`.
    """
    peak = warmup * steps
    low, part = (1 / 25, step / peak) if step < peak else (1 / 250_000, (steps - 1 - step) / (steps - peak))
    return low + (1 - low) * (1 - math.cos(math.pi * min(1.0, part))) / 2


def fit(
    model, predict, learning_rates, dataset, tasks, optimisation, *, label=None, resume=None, backward=equal,
    beside=(),
):  # fmt: skip
    """Minimise the tasks' losses: their unweighted mean, unless told otherwise.

    Parameters
    ----------
    model : nn.Module
        Moved to the device and trained in place. Its modules' train or eval mode is left as it is.
    predict : callable
        From a batch (dict of tensors on the device) to predictions by task name.
    learning_rates : list of (list of Parameter, float)
        What to train, and the peak learning rate of each group; everything else must be frozen.
    dataset : Dataset
        `dataset[index, key]` is a dict of tensors, see `simo.datasets`.
    tasks : sequence of Task or OwnLoss
        Tasks' targets must be in the batches.
    optimisation : Optimisation
    label : str, optional
        What is trained, such as "head depth": prints a line that says how much memory it needs. A state is
        continued under the same label only.
    resume : str or Path, optional
        Where to keep the state of unfinished (and finished) training; continued from if it exists.
    backward : callable
        How the tasks are brought together, see `simo.balancing`.
    beside : sequence of nn.Module
        What else predictions depend on, such as a frozen encoder: tells trainings apart, as the model does.

    Returns
    -------
    list of dict
        100 to 199 rows, or one a step: `step`, `learning_rate` (factor) and by task name the mean loss since
        the last row.

    Raises
    ------
    SimoError
        If a loss is not finite, a batch lacks a target, the first image is not as it should be, or `resume`
        is the state of another training: of another model or one that is not as it was when training began,
        of other tasks, steps, learning rates or another label; of what decides the result, data, device and
        precision are not told apart. A model that was trained in place is not as it was: make it anew. One
        that closed form solves anew may differ in its last digits on another kind of processor.
    """
    settings, asked = optimisation, hasattr(dataset, "__getitem__") and not isinstance(dataset, list | tuple)
    require("the data set", type(dataset).__name__, asked, "one with [index, key], as `PreparedDataset`")
    sample = default_collate([dataset[0, 0]])
    (check_batch if "image" in sample else check_keys)(sample, [])
    learning_rates = [(list(parameters), rate) for parameters, rate in learning_rates]
    model.to(settings.device)
    if label:
        print(f"memory for {label}: {memory_need(model, predict, learning_rates, dataset, tasks, settings)}")
    groups = [{"params": parameters, "lr": rate} for parameters, rate in learning_rates]
    optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    trained = [parameter for parameters, _ in learning_rates for parameter in parameters]
    what = _told(label, tasks, settings, learning_rates, [model, *beside])
    start, history = _load_state(resume, model, optimiser, what)
    first, last = start * settings.accumulate, settings.steps * settings.accumulate  # in micro-batches
    order = first, last, settings.seed
    batches = iter(training_batches(dataset, settings.micro_batch, *order, settings.workers))
    predict = torch.compile(predict) if settings.compile else predict  # the model keeps its names
    interval = max(1, settings.steps // 100)
    sums, saved = 0, time.monotonic()
    for step in progress(range(start, settings.steps), start, settings.steps):
        for part in range(settings.accumulate):
            torch.manual_seed(settings.seed * 1_000_003 + step * settings.accumulate + part)  # dropout
            losses = _losses(predict, next(batches), tasks, settings)
            backward(losses, history, 1 / settings.accumulate)
            sums = sums + losses.detach() / settings.accumulate
        torch.nn.utils.clip_grad_norm_(trained, settings.clip)
        factor = one_cycle(step, settings.steps, settings.warmup)
        for group, (_, rate) in zip(optimiser.param_groups, learning_rates, strict=True):
            group["lr"] = rate * factor
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

        if (step + 1) % interval == 0 or step + 1 == settings.steps:
            count = step % interval + 1
            row = {"step": step + 1, "learning_rate": factor}
            history.append(row | _mean_losses(tasks, sums / count, step))
            sums = 0
            # only here, so that sums need not be saved
            if resume and (time.monotonic() - saved > settings.save_seconds or step + 1 == settings.steps):
                _save_state(resume, model, optimiser, step + 1, history, what)
                saved = time.monotonic()
    return history


def probe_then_finetune(
    model, dataset, tasks, probe, finetune, encoder_rate, head_rate, resume=None, balance="equal"
):
    """Train heads on the frozen pretrained encoder first, then everything: the paper's two phases.

    Parameters
    ----------
    model : MultiTaskModel
        Trained in place, for one task (an expert) or for all (joint training).
    dataset : PreparedDataset
        The training split.
    tasks : sequence of Task
    probe, finetune : Optimisation
        Budget of the two phases.
    encoder_rate, head_rate : float
        Peak learning rates; the heads' is the same in both phases.
    resume : str or Path, optional
        Folder for the state of unfinished training.
    balance : str
        How joint training brings the tasks together: a name for `simo.balancing.balancing`.

    Returns
    -------
    dict of str to list
        Loss history of `probe` and `finetune`, see `fit`.

    Raises
    ------
    SimoError
        As of `fit`; for an unknown `balance`.
    """
    heads, encoder = list(model.heads.parameters()), list(model.encoder.parameters())
    rates = {"probe": [(heads, head_rate)], "finetune": [(encoder, encoder_rate), (heads, head_rate)]}
    histories, backward = {}, balancing(balance, encoder)
    for phase, optimisation in {"probe": probe, "finetune": finetune}.items():
        model.encoder.requires_grad_(phase == "finetune")
        model.train()
        model.encoder.train(phase == "finetune")  # frozen, it keeps its batch norm statistics, too
        state = resume and Path(resume) / f"{phase}.safetensors"
        if balance in BY_GRADIENT and phase == "finetune":
            held = 2 * len(tasks) * _bytes(encoder)  # each task's gradient, and, for PCGrad, a changed copy
            print(f"memory for {balance}: up to {held / 2**30:.1f} GiB more")
        plan = (model, lambda batch: model(batch["image"]), rates[phase], dataset, tasks, optimisation)
        histories[phase] = fit(*plan, label=f"{phase}, {balance}", resume=state, backward=backward)
    return histories


@dataclass(frozen=True)
class MemoryNeed:
    """What training holds in memory, in bytes; as text, "about 5.3 GiB (weights 0.3, ...)"."""

    weights: int  # of the model, buffers included
    optimiser: int  # AdamW's two moments and its step count
    gradients: int  # of what is trained
    activations: int  # what the forward pass keeps for the backward pass
    images: int  # that are in memory at a time

    def __str__(self):
        """Say it in the largest unit of which the total fills one."""
        parts = {name: getattr(self, name) for name in ("weights", "optimiser", "gradients", "activations")}
        total = sum(parts.values())
        units = ((2**30, "GiB"), (2**20, "MiB"))
        unit, name = next((unit for unit in units if total >= unit[0]), (2**10, "KiB"))
        details = ", ".join(f"{part} {value / unit:.1f}" for part, value in parts.items())
        images = f"{self.images} image{'s' if self.images > 1 else ''}"
        return f"about {total / unit:.1f} {name} ({details} for {images})"


def memory_need(model, predict, learning_rates, dataset, tasks, optimisation):
    """How much memory `fit` with these arguments will need, found without training and in little of it.

    Weights, gradients and optimiser are counted. Activations are what the autograd graph keeps of forward
    passes of 2 and of 3 copies of the first sample: they grow linearly with the images. What operations
    need in passing, such as a convolution's workspace, comes on top, and what `simo.balancing` may hold.

    Nothing that training depends on changes: random streams and batch norm statistics are put back.

    Returns
    -------
    MemoryNeed
    """
    device = torch.device(optimisation.device)
    trained = [parameter for parameters, _ in learning_rates for parameter in parameters]
    sample = default_collate([dataset[0, 0]])
    kept = model.state_dict()  # without what a forward pass only reads, such as all experts' task vectors
    buffers = [(buffer, buffer.clone()) for name, buffer in model.named_buffers() if name in kept]
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        two, three = (_saved_bytes(predict, sample, copies, tasks, optimisation, own) for copies in (2, 3))
    for buffer, before in buffers:
        buffer.copy_(before)
    gradients = _bytes(trained)
    return MemoryNeed(
        weights=_bytes([*model.parameters(), *model.buffers()]),
        optimiser=2 * gradients + 4 * len(trained),
        gradients=gradients,
        activations=max(0, two + (optimisation.micro_batch - 2) * (three - two)),
        images=optimisation.micro_batch,
    )


@contextmanager
def autocast(device, precision):
    """Mixed precision where `precision` is "bfloat16"; nothing for "float32"; SimoError for another.

    Nothing is torch's default: on CUDA, convolutions in float32 round their inputs to TF32.

    In bfloat16 on the CPU attention is computed as plain products of matrices: at some hundred tokens,
    PyTorch's fused kernel takes as long for its backward pass as all of the encoder's linear layers.
    """
    require_known("precision", precision, ("float32", "bfloat16"), "(pick_device resolves auto) ")
    kind, mixed = torch.device(device).type, precision == "bfloat16"
    with torch.autocast(kind, torch.bfloat16, enabled=mixed):
        if not (mixed and kind == "cpu"):
            yield
            return
        before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # of the CPU, too
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # else these products are in float32
        try:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def pick_device(device="auto", precision="auto"):
    """Resolve "auto": the GPU if there is one, and bfloat16 if it computes in it.

    Apple's GPU (`mps`) is never chosen: it has no float64, in which metrics and closed form sum and matrices
    are decomposed, and nothing was measured on one.

    Returns
    -------
    (str, str)
        Device and precision.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        # emulation, which newer torch counts as support, too, is slower than float32
        able = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if able else "float32"
    return device, precision


def device_name(device):
    """Name of the GPU if one is used, otherwise of the processor, its vector instructions and the threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")  # by Linux, and not of every processor
    names = re.findall(r"^model name\s*: (.+)$", told.read_text() if told.is_file() else "", re.MULTILINE)
    name = [*names, platform.machine()][0]
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"


def progress(iterable, start=0, total=None, label=None):
    """Wrap an iterable in a progress bar with the time left."""
    return tqdm(iterable, label, initial=start, total=total, mininterval=1, ncols=90)


def images_of(batches, device, label):
    """Yield the images `(B, 3, H, W)` of batches, checked, on a device, behind a progress bar.

    Parameters
    ----------
    batches : iterable of dict
        Of `image` `(B, 3, H, W)` in `[0, 1]`; nothing else is read.
    device, label : str
        Where to put them, and what they are for.

    Raises
    ------
    SimoError
        For a batch that does not hold what it should, or none, as of a generator that has been iterated.
    """
    batch = None
    for batch in progress(batches, label=label):
        check_batch(batch)
        yield batch["image"].to(device, non_blocking=True)
    require(f"the number of batches for {label}", 0, batch is not None, "at least one")


def _losses(predict, batch, tasks, settings):
    """Losses of a batch by task, `(T,)`, computed on the device."""
    check_keys(batch, [])
    batch = {n: x.to(settings.device, non_blocking=True) for n, x in batch.items() if torch.is_tensor(x)}
    with autocast(settings.device, settings.precision):
        predictions = predict(batch)
    # only now: `predict` may add targets that it makes up
    check_keys(batch, [task.name for task in tasks if not isinstance(task, OwnLoss)])
    return torch.stack([task.compute_loss(predictions[task.name], batch.get(task.name)) for task in tasks])


def _saved_bytes(predict, sample, copies, tasks, settings, without):
    """Bytes that a forward pass of copies of a sample keeps, but for storages at the addresses `without`."""
    kept = {}  # the tensors themselves, so that no address is used twice
    batch = {n: x.repeat(copies, *[1] * (x.ndim - 1)) for n, x in sample.items() if torch.is_tensor(x)}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(id(x), x), lambda x: x):
        _losses(predict, batch, tasks, settings)
    sizes = {own.data_ptr(): own.nbytes() for own in map(torch.Tensor.untyped_storage, kept.values())}
    return sum(size for address, size in sizes.items() if address not in without)


def _bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _mean_losses(tasks, means, step):
    values = dict(zip([task.name for task in tasks], means.tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            what = f"the loss of {name} became {value} at step {step + 1} or shortly before"
            raise SimoError(f"{what}: lower its learning rate, or look for extreme values in its data")
    return values


def _trained_state(model):
    """What training changes of a model: trainable parameters, and buffers (batch norm statistics)."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def _told(label, tasks, settings, learning_rates, modules):
    """What decides a training's result, but for data, as text; of tensors at its start, their sizes alone."""
    names = ("steps", "batch_size", "accumulate", "seed", "weight_decay", "warmup", "clip")
    rates = [[len(parameters), rate] for parameters, rate in learning_rates]
    own = {name: getattr(settings, name) for name in names}
    tensors = [tensor.detach().cpu() for each in modules for tensor in (*each.parameters(), *each.buffers())]
    sizes = [place * tensor.double().abs().sum().item() for place, tensor in enumerate(tensors, 1)]
    own["start"] = f"{sum(sizes):.9g}"  # threads add in another order
    return json.dumps({"label": label, "tasks": [task.name for task in tasks], "rates": rates} | own)


def _save_state(path, model, optimiser, step, history, what):
    tensors = {f"model.{name}": tensor for name, tensor in _trained_state(model).items()}
    for number, values in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": torch.as_tensor(value) for name, value in values.items()}
    save_tensors(path, tensors, {"step": str(step), "history": json.dumps(history), "training": what})


def _load_state(path, model, optimiser, what):
    """Restore model and optimiser in place; return the next step and the history so far."""
    if path is None or not Path(path).exists():
        return 0, []
    file = TensorFile(path)
    own = _trained_state(model)
    saved = TensorFile(path, "model.")
    same = own.keys() == saved.keys() and file.metadata.get("training") == what
    advice = "the model, tasks and budget of its beginning: make the model anew, or delete the file and do so"
    require(path, "the state of another training", same, advice)
    state = {}
    with decoding(f"{path}, the state of a training,", "delete it to start afresh"):
        for key in TensorFile(path, "optimiser."):
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = file[f"optimiser.{key}"]
        step, history = int(file.metadata["step"]), list(json.loads(file.metadata["history"]))
    load_into(model, {**model.state_dict(), **saved}, path)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return step, history
