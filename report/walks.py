"""Every head's performance along task vectors, and the figure in which a slider moves the bars.

Vega's script comes with `vl-convert-python` and is written into the page itself, so that the figure works
without a network. It weighs 0.9 MB (Plotly's: 4.7 MB), and no other page carries it.
"""

import json

import numpy as np
import pandas as pd
import vl_convert

from report import tables
from simo.performance import normalised_performance
from simo.tasks import tasks_of

STEP = 0.05  # of the slider
FARTHEST = 1.5  # the largest λ; α ends at 1
SUM = "sum of all, α"  # task arithmetic's walk


def walks(page):
    """Performance of every head at every point of every walk from the pretrained encoder.

    Parameters
    ----------
    page : Page

    Returns
    -------
    DataFrame
        Columns `walk` (`SUM`, or the task whose vector it is, with λ), `step` (α or λ), `method` (the head's
        task), `seed` and `performance` in per cent of the expert: on the validation split along the sum,
        where α is chosen, and on the test split along single vectors, as in the paper. Empty without records.
    """
    tasks, rows, experts = tasks_of(page.dataset), [], tables.on_validation(page.records, "expert")
    for record in page.records:
        seed = record["seed"]
        if record["experiment"] == "merge_task_arithmetic":
            for point in record["details"]["scan"]:
                for task in tasks:
                    share = normalised_performance(task, point[task.name], experts[seed][task.name])
                    rows.append((SUM, point["alpha"], task.name, seed, 100 * share))
        if record["experiment"] == "relationships":
            curves = tables.relative_curves(record["details"]["curves"], page.dataset)
            for along, heads in curves.items():
                for head, curve in heads.items():
                    rows += [(f"{along}, λ", step, head, seed, 100 * value) for step, value in curve.items()]
    return pd.DataFrame(rows, columns=["walk", "step", "method", "seed", "performance"])


def points(frames):
    """Means over seeds on the slider's grid, straight lines between the points that were evaluated.

    Parameters
    ----------
    frames : dict of str to DataFrame
        By the study's title, see `walks`.

    Returns
    -------
    list of dict
        `walk`, `step`, `task`, `performance`; steps beyond the last that was evaluated are left out.
    """
    grid = np.round(np.arange(0, FARTHEST + STEP / 2, STEP), 2)
    found = []
    for title, frame in frames.items():
        means = frame.groupby(["walk", "method", "step"], sort=False).performance.mean()
        for (walk, task), line in means.groupby(level=["walk", "method"], sort=False):
            steps = line.index.get_level_values("step").to_numpy()
            reached = grid[grid <= steps.max() + 1e-9]
            for step, value in zip(reached, np.interp(reached, steps, line.to_numpy()), strict=True):
                row = {"walk": f"{title}: {walk}", "step": float(step), "task": task}
                found.append(row | {"performance": round(float(value), 1)})
    return found


def slider(frames, start=0.3):
    """The figure with a slider, as HTML: script, data and all.

    Parameters
    ----------
    frames : dict of str to DataFrame
        See `points`.
    start : float
        Where the slider stands at first.
    """
    shown = points(frames)
    spec = specification(shown, list(dict.fromkeys(row["walk"] for row in shown)), start)
    options = {"mode": "vega-lite", "actions": False, "renderer": "svg"}
    call = f'vegaEmbed("#walk", {json.dumps(spec, ensure_ascii=False)}, {json.dumps(options)});'
    script = vl_convert.javascript_bundle(call).replace("</script", "<\\/script")
    style = "<style>#walk { width: 100% } #walk select { max-width: 100% }</style>"  # long names, on a phone
    return f'{style}\n<div id="walk"></div>\n<script type="module">{script}</script>'


def specification(shown, names, start):
    """The figure in Vega-Lite: one bar a head; which walk, and how far, are asked for below it."""
    how_far = {"input": "range", "min": 0, "max": FARTHEST, "step": STEP, "name": "how far, α or λ: "}
    here = {"filter": f"datum.walk == walk && abs(datum.step - how_far) < {STEP / 10}"}
    heads = {"field": "task", "type": "nominal", "sort": None, "title": None}
    axis = {"title": "performance, % of the expert's", "tickCount": 6}
    bars = {"field": "performance", "type": "quantitative", "scale": {"domain": [0, 120], "clamp": True}}
    ink = {"labelColor": "currentColor", "titleColor": "currentColor"}  # of the page, light or dark
    return {
        "description": "How well each head does, in per cent of its expert, at a point on the way from the "
        "pretrained encoder along task vectors; the line is at the expert's 100 per cent.",
        "width": "container",
        "height": 190,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": None,
        "data": {"values": shown},
        "params": [
            {
                "name": "walk",
                "value": names[0],
                "bind": {"input": "select", "options": names, "name": "along: "},
            },
            {"name": "how_far", "value": start, "bind": how_far},
        ],
        "layer": [
            {
                "transform": [here],
                "mark": {"type": "bar", "color": "#0072B2"},
                "encoding": {"y": heads, "x": bars | {"axis": axis}},
            },
            {
                "transform": [here],
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 13, "fill": "currentColor"},
                "encoding": {"y": heads, "x": bars, "text": {"field": "performance", "format": ".0f"}},
            },
            {
                "mark": {"type": "rule", "stroke": "currentColor", "strokeDash": [4, 3]},
                "encoding": {"x": {"datum": 100}},
            },
        ],
        "config": {
            "axis": ink | {"grid": False, "labelFontSize": 13, "titleFontSize": 13},
            "view": {"stroke": None},
        },
    }
