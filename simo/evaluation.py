"""Scores of a model on a split, and the choice of the merging coefficient on the validation split."""

import torch

from simo.datasets import PreparedDataset, check_batch
from simo.errors import require, require_known
from simo.metrics import create_metric
from simo.performance import mean_score
from simo.tasks import names_of
from simo.training import autocast


@torch.no_grad()
def evaluate(model, batches, tasks, device="cpu", precision="float32"):
    """Compute each task's metric over a split, with one encoder pass an image for all heads.

    Parameters
    ----------
    model : MultiTaskModel
        Moved to the device and put into eval mode; must have a head for each task.
    batches : iterable of dict
        `image` and a target for each task, see `simo.datasets.check_batch`.
    tasks : sequence of Task
    device, precision : str
        See `simo.training.pick_device`.

    Returns
    -------
    dict of str to float
        Metric by task name, in the task's unit.

    Raises
    ------
    SimoError
        For a batch that does not hold what it should, and predictions that are not finite.
    """
    names_of(tasks)
    model.to(device).eval()
    metrics = {task.name: create_metric(task) for task in tasks}
    checked = isinstance(getattr(batches, "dataset", None), PreparedDataset)  # each sample as it was read
    number = -1
    for number, batch in enumerate(batches):
        if number == 0 or not checked:  # on the paper's Taskonomy it costs .1 s a batch
            check_batch(batch, tasks)
        with autocast(device, precision):
            predictions = model(batch["image"].to(device, non_blocking=True))
        for task in tasks:
            require_known("head", task.name, predictions, "of the model: ")
            prediction, target = predictions[task.name], batch[task.name]
            task.check_prediction(prediction, target)
            metrics[task.name].update(prediction.float(), target.to(device, non_blocking=True))
    require("the number of batches", 0, number >= 0, "some, of a list or loader that is not used up")
    return {name: metric.compute().item() for name, metric in metrics.items()}


def scan_alpha(model, base, task_vector, alphas, batches, tasks, baselines, **where):
    """Evaluate θ_0 + α τ with the given heads for each α, on the validation split.

    Parameters
    ----------
    model : MultiTaskModel
        Its encoder is overwritten, and holds the best α's weights in the end, its `alpha` that α.
    base : mapping of str to Tensor
        θ_0, the pretrained encoder's state.
    task_vector : TaskVector
        τ, the merged one.
    alphas : sequence of float
        The grid.
    batches, tasks, **where
        As for `evaluate`; the batches are iterated once for each α.
    baselines : dict of str to float
        The experts' metrics on the same split.

    Returns
    -------
    (float, list of dict)
        The α of the best mean normalised performance (the first of equals), and one row an α.

    Raises
    ------
    SimoError
        For no α, and as of `evaluate` and `TaskVector.load_into`.
    """
    alphas, rows, names = list(alphas), [], {*names_of(tasks)}
    require("alphas", alphas, alphas, "at least one merging coefficient")
    require("baselines", baselines, isinstance(baselines, dict) and names <= {*baselines}, "a metric a task")
    task_vector = task_vector.compute()  # once, and before the encoder changes, which may be an expert's
    for alpha in alphas:
        task_vector.load_into(model.encoder, base, alpha)
        values = evaluate(model, batches, tasks, **where)
        rows.append({"alpha": alpha, **values, "score": mean_score(tasks, values, baselines)})
    model.alpha = max(rows, key=lambda row: row["score"])["alpha"]
    task_vector.load_into(model.encoder, base, model.alpha)
    return model.alpha, rows
