"""The paper's two fixes of a merged model, both on validation images with labels.

Head realignment keeps the merged encoder frozen and fine-tunes each head on its features, which are
computed once. Representation realignment adds low-rank adapters f(x) + B A x to the encoder's blocks
and trains adapters and heads jointly.
"""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset

from simo.datasets import evaluation_batches
from simo.models import Features, add_adapters
from simo.training import autocast, fit, progress


class FeatureDataset(Dataset):
    """Features and targets of a whole split in memory, computed in one encoder pass.

    Parameters
    ----------
    encoder : Encoder
        Frozen by the caller; put into eval mode.
    dataset : PreparedDataset
        Read without augmentation.
    batch_size : int
        Images an encoder pass.
    device, precision : str
        See `simo.training.pick_device`.
    """

    def __init__(self, encoder, dataset, batch_size, device="cpu", precision="float32"):
        encoder.eval()
        parts = []
        with torch.no_grad(), autocast(device, precision):
            for batch in progress(evaluation_batches(dataset, batch_size), label="features"):
                patches, classes = encoder(batch.pop("image").to(device))
                parts.append({"patches": patches.cpu(), "classes": classes.cpu(), **batch})
        self.size = dataset.size
        self.tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def __len__(self):
        """Return the number of images."""
        return len(self.tensors["patches"])

    def __getitem__(self, index):
        """Read `(index, key)`: a dict of `patches`, `classes` and targets; the key is not used."""
        index, _ = index
        return {name: tensor[index] for name, tensor in self.tensors.items()}


def realign_heads(model, dataset, tasks, optimisation, learning_rate, resume=None):
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
        Folder for the state of unfinished training.

    Returns
    -------
    (MultiTaskModel, dict of str to list)
        A realigned copy, and the loss history by task.
    """
    model = copy.deepcopy(model).to(optimisation.device).requires_grad_(False)
    features = FeatureDataset(
        model.encoder, dataset, optimisation.batch_size, optimisation.device, optimisation.precision
    )
    histories = {}
    for task in tasks:
        head = model.heads[task.name].train().requires_grad_(True)

        def predict(batch, task=task, head=head):
            return {task.name: head(Features(batch["patches"], batch["classes"]), features.size)}

        histories[task.name] = fit(
            head,
            predict,
            [(list(head.parameters()), learning_rate)],
            features,
            [task],
            replace(optimisation, workers=0),  # features are in memory
            resume and Path(resume) / f"head_{task.name}.safetensors",
        )
    return model.eval(), histories


def realign_representation(model, dataset, tasks, optimisation, rank, adapter_rate, head_rate, resume=None):
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
        Peak learning rates.
    resume : str or Path, optional
        Folder for the state of unfinished training.

    Returns
    -------
    (MultiTaskModel, list of dict)
        A realigned copy whose blocks are `AdaptedBlock`s, and the loss history.
    """
    model = copy.deepcopy(model)
    torch.manual_seed(optimisation.seed)  # of the adapters, so that a resumed run begins with the same
    adapters = add_adapters(model.encoder, rank)
    model.to(optimisation.device).encoder.eval()
    heads = list(model.heads.train().requires_grad_(True).parameters())
    history = fit(
        model,
        lambda batch: model(batch["image"]),
        [(adapters, adapter_rate), (heads, head_rate)],
        dataset,
        tasks,
        optimisation,
        resume and Path(resume) / "representation.safetensors",
    )
    return model.eval(), history
