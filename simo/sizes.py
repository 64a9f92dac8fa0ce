"""Parameter counts of a profile's models, without their weights: modules on torch's meta device."""

import pandas as pd
import torch

from simo.models import add_adapters, count_parameters, create_model
from simo.tasks import tasks_of

MODEL = ("backbone", "backbone_args", "blocks", "head", "head_options", "input_scale")
# Table 4 of the report (Taskonomy), in millions; an expert's is the encoder with one head
PAPER = pd.DataFrame(
    {
        "Table 4": ["expert", "joint training", "head realignment", "representation realignment"],
        "trained parameters": ["90.1 M", "103.9 M", "17.3 M", "17.6 M"],
        "which is": ["encoder + a head", "encoder + five heads", "five heads", "five heads + adapters"],
    }
)


def count_model(values):
    """Count the parameters of the model that a parameter file describes.

    Parameters
    ----------
    values : dict
        Of a file in `notebooks/params/`: `dataset`, `adapter_rank` and what the model is.

    Returns
    -------
    dict of str to int
        `encoder`, each task's head by name, and `adapters`.
    """
    with torch.device("meta"):
        model = create_model(tasks_of(values["dataset"]), 0, **{name: values[name] for name in MODEL})
        counts = {"encoder": count_parameters(model.encoder.parameters())}
        counts |= {name: count_parameters(head.parameters()) for name, head in model.heads.items()}
        counts["adapters"] = count_parameters(add_adapters(model.encoder, values["adapter_rank"]))
    return counts


def parameter_table(profiles):
    """Counts of several parameter files as a table: data set, part, parameters."""
    rows = []
    for values in profiles:
        counts = count_model(values)
        total = sum(counts.values()) - counts["adapters"] - counts["encoder"]
        counts = counts | {"all heads": total, "encoder + all heads": total + counts["encoder"]}
        rows += [{"data set": values["dataset"], "part": part, "parameters": n} for part, n in counts.items()]
    return pd.DataFrame(rows)
