"""The shared-bottom model: an encoder whose chosen blocks feed one head a task.

Z = f_enc(x; θ), y_t = g_t(Z; φ_t). θ is everything in the `Encoder`, φ_t everything in the task's head.
"""

import torch
from torch import nn

from simo.adapters import add_adapters
from simo.checkpoints import TensorFile, load_into, load_recipe
from simo.encoders import create_encoder
from simo.heads import create_head
from simo.tasks import names_of, tasks_of

# the parameters that say what a model is: those of `create_model` that are neither its tasks nor its weights
MODEL = ("backbone", "backbone_args", "blocks", "head", "head_options", "input_scale")


class MultiTaskModel(nn.Module):
    """One encoder and a head for each of some tasks; a single encoder pass serves all heads.

    Parameters
    ----------
    encoder : Encoder
    heads : dict of str to nn.Module
        By task name.
    """

    def __init__(self, encoder, heads):
        super().__init__()
        self.encoder, self.heads = encoder, nn.ModuleDict(heads)

    def forward(self, image):
        """Predict every task at the size of the image.

        Parameters
        ----------
        image : Tensor
            `(B, 3, H, W)` in `[0, 1]`.

        Returns
        -------
        dict of str to Tensor
            `(B, C, H, W)` by task name.
        """
        return self.predict(self.encoder(image), image.shape[-2:])

    def predict(self, features, size):
        """Predict every task from features computed before."""
        return {name: head(features, size) for name, head in self.heads.items()}

    def only(self, names):
        """Return a model with the same encoder and the heads named, which spares computing the others."""
        return MultiTaskModel(self.encoder, {name: self.heads[name] for name in names})


def create_model(tasks, seed, backbone, backbone_args, blocks, head, head_options, input_scale, weights=None):
    """Create a model with the pretrained encoder and fresh heads.

    Parameters
    ----------
    tasks : sequence of Task
    seed : int
        A head's initial weights depend on it and on the task's name only, so that an expert and joint
        training start from the same head. For heads torch's own random stream is not touched.
    backbone, backbone_args, blocks, input_scale, weights
        See `create_encoder`.
    head : str
        A key of `simo.heads.HEADS`, the same for all tasks.
    head_options : dict
        See `simo.heads.create_head`.

    Returns
    -------
    MultiTaskModel

    Raises
    ------
    SimoError
        For a name or an option that is not known, a task given twice, or weights that do not fit.
    """
    names_of(tasks)
    encoder = create_encoder(backbone, backbone_args, blocks, weights, input_scale)
    heads = {}
    with torch.random.fork_rng(devices=[]):
        for task in tasks:
            torch.default_generator.manual_seed(seed * 1_000_003 + sum(map(ord, task.name)))
            heads[task.name] = create_head(head, task, encoder.dims, encoder.classes, head_options)
    return MultiTaskModel(encoder, heads)


def load_model(path, settings, **expected):
    """Load a checkpoint of an expert, a merged or a realigned model.

    Parameters
    ----------
    path : str or Path
        The `.safetensors` file; its recipe says which tasks' heads and which adapters it holds.
    settings : dict
        `backbone`, `backbone_args`, `blocks`, `head`, `head_options`, `input_scale`: must be those it was
        made with.
    **expected
        Further recipe entries to insist on, such as `dataset` or `tasks`.

    Returns
    -------
    MultiTaskModel
        In eval mode, on the CPU.

    Raises
    ------
    SimoError
        As of `simo.checkpoints.load_recipe`, `create_model` and `simo.checkpoints.load_into`.
    """
    recipe = load_recipe(path, model=settings, **expected)
    tasks, rank = tasks_of(recipe["dataset"], recipe["tasks"]), recipe.get("adapter_rank", 0)
    return restore_model(path, tasks, settings, rank, recipe.get("adapter", "paper"))


def restore_model(path, tasks, settings, rank, adapter):
    """The model of a checkpoint whose recipe was read, in eval mode; `rank` is that of its adapters, or 0."""
    with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
        model = create_model(tasks, seed=0, **settings)
        if rank:
            add_adapters(model.encoder, rank, adapter)
    load_into(model, TensorFile(path), path)
    return model.eval()


def count_parameters(parameters):
    """Total number of values in an iterable of tensors."""
    return sum(parameter.numel() for parameter in parameters)
