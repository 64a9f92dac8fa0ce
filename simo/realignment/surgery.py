"""Representation surgery: low-rank modules for each task that bring merged features to the expert's.

No label is read: the expert's features of the same image are the target. Surgery (Yang et al., 2024) has a
module at the end of the encoder, SurgeryV2 (Yang et al., 2024) one behind every block. Both were read as
abstract and code. A module is h − B relu(A h), as in the paper's released code.

Variants: the features are those that heads read, at every tapped block, instead of one vector an image;
the loss is over all tokens alike instead of their mean, since a dense task needs every place; training has
the budget and the schedule of realignment.
"""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from simo.adapters import ReleasedAdapter, add_adapters
from simo.encoders import Features
from simo.training import OwnLoss, fit


class OperatedHead(nn.Module):
    """A head that reads features behind a module a tapped block, which patch and class tokens share.

    Parameters
    ----------
    head : nn.Module
    encoder : Encoder
        Whose features they are.
    rank : int
    """

    def __init__(self, head, encoder, rank):
        super().__init__()
        with torch.no_grad():
            _, levels, width, *_ = encoder(encoder.blank()).patches.shape
        self.head = head
        adapters = (ReleasedAdapter(nn.Identity(), width, rank, maps=True) for _ in range(levels))
        self.taps = nn.ModuleList(adapters)

    def forward(self, features, size):
        """Predict `(B, C, *size)` from `Features`."""
        return self.head(self.operate(features), size)

    def operate(self, features):
        """`Features` of the merged encoder, brought towards the expert's."""

        def apply(maps):
            return torch.stack([tap(x) for tap, x in zip(self.taps, maps.unbind(1), strict=True)], dim=1)

        patches, classes = features
        classes = apply(classes[..., None, None])[..., 0, 0] if classes.numel() else classes
        return Features(apply(patches), classes)


def surgery(model, encoders, dataset, tasks, optimisation, rank, learning_rate, resume=None, deep=False):
    """Train modules that bring the merged encoder's features to each expert's.

    Parameters
    ----------
    model : MultiTaskModel
        The merged encoder under the experts' heads. Not changed.
    encoders : dict of str to Encoder
        The experts', by task name.
    dataset : PreparedDataset
        Images; labels are not used.
    tasks : sequence of Task
    optimisation : Optimisation
        The budget of each task.
    rank : int
        Of the modules.
    learning_rate : float
        Peak.
    resume : str or Path, optional
        Folder for the state of unfinished training.
    deep : bool
        SurgeryV2: a module behind every block, and all blocks' features are to come close.

    Returns
    -------
    dict of str to MultiTaskModel
        By task name, with that task's head. Unless `deep`, encoders are all as they were and heads are
        `OperatedHead`s, which fit under one encoder; `deep`, an image takes as many passes as tasks.
    """
    settings = replace(optimisation, compile=False)  # modules are put in on the way
    plan = (dataset, settings, rank, learning_rate, resume, deep)
    return {task.name: _operate(model.only([task.name]), encoders[task.name], task, *plan) for task in tasks}


def _operate(model, expert, task, dataset, settings, rank, learning_rate, resume, deep):
    """A copy of a model of one task with trained modules, see `surgery`."""
    model, expert = (each.eval().requires_grad_(False) for each in copy.deepcopy((model, expert)))
    encoder, taps = model.encoder, model.encoder.taps
    torch.manual_seed(settings.seed)  # of the modules, so that a resumed run begins with the same
    if deep:
        trained, operate = add_adapters(encoder, rank, "released"), nn.Identity()
        encoder.taps = expert.taps = list(range(len(encoder.strides)))
    else:
        head = model.heads[task.name] = OperatedHead(model.heads[task.name], encoder, rank)
        trained, operate = list(head.taps.parameters()), head.operate
    expert.to(settings.device)

    def predict(batch):
        with torch.no_grad():
            wanted = expert(batch["image"])
        found = operate(encoder(batch["image"]))
        errors = [(x.float() - y.float()).abs() for x, y in zip(found, wanted, strict=True)]
        return {task.name: sum(each.sum() for each in errors) / sum(each.numel() for each in errors)}

    training = (model, predict, [(trained, learning_rate)], dataset, [OwnLoss(task.name)], settings)
    state = resume and Path(resume) / f"surgery_{task.name}.safetensors"
    fit(*training, label=f"surgery of {task.name}", resume=state, beside=[expert])
    encoder.taps = taps
    return model.eval()
