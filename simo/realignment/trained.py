"""The paper's two fixes of a merged model, both on validation images with labels.

Head realignment keeps the merged encoder frozen and fine-tunes each head on its features, which are
computed once. Representation realignment adds low-rank adapters f(x) + B A x to the encoder's blocks
and trains adapters and heads jointly.
"""

import copy
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.data import Dataset

from simo.adapters import add_adapters
from simo.datasets import evaluation_batches
from simo.encoders import Features
from simo.errors import SimoError, require
from simo.training import autocast, fit, progress


class FeatureDataset(Dataset):
    """Features and targets of a whole split, computed in one encoder pass and kept in memory-mapped files.

    Files, because the features of the paper's 4,000 validation images of Taskonomy are 17.7 GB in single
    precision. What of them memory has room for, the operating system keeps there.

    Parameters
    ----------
    encoder : Encoder
        Frozen by the caller; put into eval mode.
    dataset : PreparedDataset
        Read without augmentation.
    folder : str or Path
        Where the files go, one a tensor; the caller deletes it.
    optimisation : Optimisation
        Of the heads: its batch size, device, precision, in which features are stored, and workers.
    teacher : callable, optional
        From images to targets by task name, instead of those of the data set.

    Raises
    ------
    SimoError
        For another data set, or if the disk has no room for the files.
    """

    def __init__(self, encoder, dataset, folder, optimisation, teacher=None):
        able = hasattr(dataset, "tasks") and hasattr(dataset, "size")
        require("the data set", type(dataset).__name__, able, "a `PreparedDataset`")
        encoder.eval()
        device, precision = optimisation.device, optimisation.precision
        self.size, self.length, self.tensors = dataset.size, len(dataset), {}
        self.names = ("patches", "classes", *(task.name for task in dataset.tasks))
        batches = evaluation_batches(dataset, optimisation.batch_size, optimisation.workers)
        filled = 0
        for batch in progress(batches, label="features"):
            image = batch.pop("image").to(device, non_blocking=True)
            with torch.no_grad(), autocast(device, precision):
                patches, classes = encoder(image)
                if teacher:
                    batch |= {name: target.cpu() for name, target in teacher(image).items()}
            dtype = getattr(torch, precision)
            batch |= {"patches": patches.to("cpu", dtype), "classes": classes.to("cpu", dtype)}
            if not filled:
                self.tensors = _map_files(Path(folder), self.length, batch)
            stop = filled + len(patches)
            for name, tensor in self.tensors.items():
                tensor[filled:stop] = batch[name]
            filled = stop

    def of(self, task):
        """Return the same data set with the targets of one task only, which spares reading the others'."""
        other = copy.copy(self)
        other.names = ("patches", "classes", task.name)
        return other

    def __len__(self):
        """Return the number of images."""
        return self.length

    def __getitem__(self, index):
        """Read `(index, key)`: a dict of `patches`, `classes` and targets; the key is not used."""
        index, _ = index
        return {name: self.tensors[name][index] for name in self.names}


def realign_heads(model, dataset, tasks, optimisation, learning_rate, resume=None, teacher=None):
    """Fine-tune every head, each by itself, on the frozen encoder's features.

    Parameters
    ----------
    model : MultiTaskModel
        Not changed.
    dataset : PreparedDataset
        The validation split, with targets of all tasks.
    tasks : sequence of Task
    optimisation : Optimisation
        The budget of each head.
    learning_rate : float
        Peak.
    resume : str or Path, optional
        Folder for the state of unfinished training, and for the features while they are needed.
    teacher : callable, optional
        Gives targets in place of the data set's, see `expert_labels`: distillation.

    Returns
    -------
    (MultiTaskModel, dict of str to list)
        A realigned copy, and the loss history by task.

    Raises
    ------
    SimoError
        As of `FeatureDataset` and `simo.training.fit`.

    Examples
    --------
    >>> realigned, losses = realign_heads(model, data, tasks, budget, learning_rate=0.01)
    memory for head depth: ...
    >>> losses["depth"][-1]["depth"] < losses["depth"][0]["depth"]
    True
    """
    model = copy.deepcopy(model).to(optimisation.device).requires_grad_(False)
    histories = {}
    with _scratch_folder(resume) as folder:
        features = FeatureDataset(model.encoder, dataset, folder, optimisation, teacher)
        for task in tasks:
            head = model.heads[task.name].train().requires_grad_(True)

            def predict(batch, task=task, head=head):
                return {task.name: head(Features(batch["patches"], batch["classes"]), features.size)}

            rates = [(list(head.parameters()), learning_rate)]
            plan = (head, predict, rates, features.of(task), [task], optimisation)
            what = f"head {task.name}" + (" with labels that are made up" if teacher else "")
            state = resume and Path(resume) / f"head_{task.name}.safetensors"
            histories[task.name] = fit(*plan, label=what, resume=state, beside=[model.encoder])
    return model.eval(), histories


def expert_labels(experts, tasks):
    """What experts predict, as targets: the labels of distillation, which needs images only.

    Parameters
    ----------
    experts : dict of str to MultiTaskModel
        By task name; moved to the images' device and put into eval mode.
    tasks : sequence of Task

    Returns
    -------
    callable
        From images `(B, 3, H, W)` to targets by task name: the likeliest classes `(B, H, W)`, or values
        `(B, C, H, W)`. A value of exactly 0, which would mean no ground truth, becomes 1e-30.
    """
    classes = {task.name for task in tasks if task.is_segmentation}

    def targets(image):
        asked = {task.name: experts[task.name].to(image.device).eval() for task in tasks}
        found = {name: expert(image)[name].float() for name, expert in asked.items()}
        return {n: x.argmax(1) if n in classes else x.masked_fill(x == 0, 1e-30) for n, x in found.items()}

    return targets


def realign_representation(
    model, dataset, tasks, optimisation, rank, adapter_rate, head_rate, resume=None, adapter="paper"
):
    """Add an adapter to every block and train adapters and heads jointly; the encoder stays frozen.

    Parameters
    ----------
    model : MultiTaskModel
        Not changed.
    dataset : PreparedDataset
        The validation split, with targets of all tasks.
    tasks : sequence of Task
    optimisation : Optimisation
    rank : int
        Of the adapters; the paper's is 16.
    adapter_rate, head_rate : float
        Peak learning rates. Without a `head_rate`, None, heads stay as they are, as in the released code.
    resume : str or Path, optional
        Folder for the state of unfinished training.
    adapter : str
        See `simo.adapters.add_adapters`.

    Returns
    -------
    (MultiTaskModel, list of dict)
        A realigned copy with adapted blocks, and the loss history.

    Raises
    ------
    SimoError
        As of `add_adapters` and `simo.training.fit`.

    Examples
    --------
    >>> realigned, losses = realign_representation(
    ...     model, data, tasks, budget, rank=2, adapter_rate=0.01, head_rate=0.01
    ... )
    memory for representation, paper: ...
    >>> losses[-1]["depth"] < losses[0]["depth"]
    True
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    torch.manual_seed(optimisation.seed)  # of the adapters, so that a resumed run begins with the same
    rates = [(add_adapters(model.encoder, rank, adapter), adapter_rate)]
    if head_rate is not None:
        rates.append((list(model.heads.train().requires_grad_(True).parameters()), head_rate))
    plan = (model, lambda batch: model(batch["image"]), rates, dataset, tasks, optimisation)
    state = resume and Path(resume) / "representation.safetensors"
    history = fit(*plan, label=f"representation, {adapter}", resume=state)
    return model.eval(), history


@contextmanager
def _scratch_folder(resume):
    """Yield a folder for large files that is deleted in the end, or, after a kill, by the next run."""
    if resume is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder = Path(resume) / ".features_of_realign_heads"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _map_files(folder, length, batch):
    """Map files of `length` rows like those of a batch's tensors: a dict of tensors `(length, ...)`."""
    need = sum(length * tensor[0].nbytes for tensor in batch.values())
    free = shutil.disk_usage(folder).free
    if need > free:  # writing to a mapped file on a full disk would kill the process
        found = f"has {free / 2**30:.1f} GiB left: free some space, or put the checkpoints on another disk"
        wanted = f"{need / 2**30:.1f} GiB for the features of {length} images"
        raise SimoError(f"{folder} needs {wanted}, but its disk {found}")
    return {
        name: torch.from_file(
            str(folder / name), shared=True, size=length * tensor[0].numel(), dtype=tensor.dtype
        ).view(length, *tensor.shape[1:])
        if tensor.numel()
        else tensor.new_empty(length, *tensor.shape[1:])  # no class tokens: an empty file cannot be mapped
        for name, tensor in batch.items()
    }
