"""What merging starts from, as the computing notebooks left it."""

from simo.checkpoints import TensorFile, load_into, load_recipe
from simo.errors import SimoError
from simo.merging.task_vectors import TaskVector
from simo.models import create_model, load_model


def expert_models(folder, tasks, settings):
    """The experts as models, each of its own task: `MultiTaskModel`s by task name, see `load_experts`."""
    return {
        task.name: load_model(folder / f"expert_{task.name}.safetensors", settings, kind="expert")
        for task in tasks
    }


def load_experts(folder, dataset, tasks, settings, weights):
    """What merging starts from: θ_0 under the experts' heads, and the experts' task vectors.

    Parameters
    ----------
    folder : Path
        Holds `expert_<task>.safetensors` for each task.
    dataset : str
    tasks : sequence of Task
    settings : dict
        See `simo.models.load_model`.
    weights : str or Path
        θ_0, the pretrained backbone that the experts started from.

    Returns
    -------
    (MultiTaskModel, dict of str to Tensor, dict of str to TaskVector)
        The model, its encoder's state θ_0, and lazy task vectors by task name.

    Raises
    ------
    SimoError
        For an expert of another model, or one that started from other weights: its task vector would be none.
    """
    start = load_recipe(weights)["sha256"]
    model = create_model(tasks, seed=0, **settings, weights=weights)
    base = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    task_vectors = {}
    for task in tasks:
        path = folder / f"expert_{task.name}.safetensors"
        recipe = load_recipe(path, kind="expert", dataset=dataset, tasks=[task.name], model=settings)
        hashes = recipe["hashes"]
        found = str(hashes.get("backbone") if isinstance(hashes, dict) else None)
        if found != start:
            raise SimoError(
                f"{path} started from other weights (sha256 {found[:12]}...) than "
                f"{weights} ({start[:12]}...): expected experts of one θ_0; train this one from it"
            )
        load_into(model.heads[task.name], TensorFile(path, f"heads.{task.name}."), path)
        task_vectors[task.name] = TaskVector.between(base, TensorFile(path, "encoder."), task.name)
    return model.eval(), base, task_vectors
