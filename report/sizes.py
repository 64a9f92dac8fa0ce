"""Parameter counts of a profile's models, without their weights: modules on torch's meta device."""

import pandas as pd
import torch

from report.paper import paper_costs, read_paper
from simo.adapters import add_adapters
from simo.models import MODEL, count_parameters, create_model
from simo.tasks import tasks_of

# what the paper trains on Taskonomy, by our name of the model
TRAINED = {
    "expert": ("expert", "encoder + a head"),
    "joint": ("joint training", "encoder + five heads"),
    "task_arithmetic+heads": ("head realignment", "five heads"),
    "task_arithmetic+representation": ("representation realignment", "five heads + adapters"),
}


def paper_table():
    """Numbers of trained parameters in the paper's Table 4 (Taskonomy), and what they are of, as text."""
    costs = paper_costs(read_paper())
    rows = {
        name: {"trained parameters": f"{costs[model]['parameters']} M", "which is": what}
        for model, (name, what) in TRAINED.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


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
    """Counts of several parameter files as a table of text: one row a data set."""
    rows = {}
    for values in profiles:
        counts = count_model(values)
        encoder, adapters = counts.pop("encoder"), counts.pop("adapters")
        rows[values["dataset"]] = {
            "encoder": f"{encoder:,}",
            "heads": ", ".join(f"{name} {n:,}" for name, n in counts.items()),
            "all heads": f"{sum(counts.values()):,}",
            "encoder + all heads": f"{encoder + sum(counts.values()):,}",
            "adapters": f"{adapters:,}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")
