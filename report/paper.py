"""What the paper prints, from `book/paper_numbers.json`, in this module's names.

Nothing here but arithmetic on printed numbers; curves were digitised from its figures.
"""

import itertools

import pandas as pd

from report.notebooks import ROOT
from simo.files import read_json
from simo.performance import delta_formula, delta_printed, normalised_performance
from simo.tasks import tasks_of

PAPER_ROWS = {
    "expert": "TS",
    "joint": "MTL",
    "task_arithmetic": "TA",
    "ties": "TIES",
    "tall_mask": "TALL",  # Taskonomy only
    "task_arithmetic+heads": "TA+head",
    "task_arithmetic+representation": "TA+repr",
    "ties+heads": "TIES+head",
    "ties+representation": "TIES+repr",
}
PAPER_TABLES = {"nyuv2": "table1_nyuv2", "cityscapes": "table2_cityscapes", "taskonomy": "table3_taskonomy"}
# the paper's relationship figures, and what they call the tasks
PAPER_FIGURES = {
    "nyuv2": ("fig5_nyuv2", {"segmentation": "seg", "normals": "normal"}),
    "cityscapes": ("fig3_cityscapes", {"segmentation": "seg", "parts": "part_seg", "disparity": "disp"}),
    "taskonomy": (
        "fig6_taskonomy",
        {"depth": "depth_zbuffer", "normals": "normal", "edges": "edge_texture", "keypoints": "keypoints2d"},
    ),
}
PAPER_COSTS = ("expert", "joint", "task_arithmetic+heads", "task_arithmetic+representation")  # Table 4


def read_paper():
    """Read the paper's numbers: tables, curves and misprints by their keys in the file."""
    return read_json(ROOT / "book" / "paper_numbers.json")


def paper_deltas(dataset, paper):
    """Printed Δ_MTL of a data set by our name of the model, as a Series."""
    printed = paper[PAPER_TABLES[dataset]]
    rows = {model: printed[row][-1] for model, row in PAPER_ROWS.items() if row in printed}
    return pd.Series({model: delta for model, delta in rows.items() if model != "expert"})


def paper_costs(paper):
    """Table 4 by our name of the model: `steps`, `parameters` (millions) and `samples`."""
    table = paper["table4_efficiency_taskonomy"]
    names = ("steps", "parameters", "samples")
    return {model: dict(zip(names, table[PAPER_ROWS[model]], strict=True)) for model in PAPER_COSTS}


def printed_deltas(paper):
    """Δ_MTL of all printed rows, by the definition that the paper used and by the one that it wrote.

    Printed metrics are rounded, so Δ follows from them only up to an interval: each metric, and each of its
    baselines, may lie half a unit of its last digit away. A printed Δ agrees if it lies in the interval.

    Parameters
    ----------
    paper : dict
        See `read_paper`.

    Returns
    -------
    DataFrame
        Indexed by data set and model: `printed`; `ratio`, the mean relative performance minus 100 of the
        printed metrics, with `low` and `high`; `percentages`, the same with the paper's misprinted
        percentages in place of their ratios (NaN without misprint); `formula`, Eq. 2 of the printed metrics;
        `agrees`: "yes", "by its misprint" or "no".
    """
    rows = {}
    for dataset, table in PAPER_TABLES.items():
        tasks, printed = tasks_of(dataset), paper[table]
        names = [task.name for task in tasks]
        experts = dict(zip(names, printed["TS"][:-1], strict=True))
        for model, name in PAPER_ROWS.items():
            if model == "expert" or name not in printed:
                continue
            values = dict(zip(names, printed[name][:-1], strict=True))
            low, high = _interval(tasks, values, experts)
            misprints = paper["misprints"].get(table, {}).get(name, {})
            ratios = {t.name: 100 * normalised_performance(t, values[t.name], experts[t.name]) for t in tasks}
            percentages = sum((ratios | misprints).values()) / len(tasks) - 100
            delta = printed[name][-1]
            agrees = "yes" if low - 0.05 <= delta <= high + 0.05 else "no"
            agrees = "by its misprint" if misprints and abs(percentages - delta) <= 0.1 else agrees
            rows[dataset, model] = {
                "printed": delta,
                "ratio": delta_printed(tasks, values, experts),
                "low": low,
                "high": high,
                "percentages": percentages if misprints else float("nan"),
                "formula": delta_formula(tasks, values, experts),
                "agrees": agrees,
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _interval(tasks, values, experts):
    """Least and largest Δ by ratios that rounded metrics allow."""
    ends = []
    for task in tasks:
        half = 0.5 * 10.0 ** -decimals(task)
        ratios = [
            normalised_performance(task, values[task.name] + a, experts[task.name] + b)
            for a, b in itertools.product((-half, half), repeat=2)
        ]
        ends.append((min(ratios), max(ratios)))
    return tuple(100 * sum(end) / len(tasks) - 100 for end in zip(*ends, strict=True))


def decimals(task):
    """Digits behind the point with which the paper prints a task's metric, and so do we."""
    return 2 if task.unit in ("%", "°") else 4


def paper_curves(dataset, paper):
    """Digitised relationship curves of the paper, as `relative_curves`."""
    figure, names = PAPER_FIGURES[dataset]
    tasks = {task.name: names.get(task.name, task.name) for task in tasks_of(dataset)}
    return {
        primary: {
            evaluated: dict(zip(paper["lambda"], paper[figure][theirs][other], strict=True))
            for evaluated, other in tasks.items()
        }
        for primary, theirs in tasks.items()
    }


def paper_performance(dataset, paper):
    """Performance in per cent of the experts' by our name of the model and task, from the printed metrics."""
    tasks, printed = tasks_of(dataset), paper[PAPER_TABLES[dataset]]
    return {
        model: {
            task.name: 100 * normalised_performance(task, value, own)
            for task, value, own in zip(tasks, printed[row][:-1], printed["TS"][:-1], strict=True)
        }
        for model, row in PAPER_ROWS.items()
        if row in printed
    }
