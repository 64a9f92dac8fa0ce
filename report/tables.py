"""From results to tables: normalised performance, both definitions of Δ_MTL, mean and spread over seeds."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from report.display import seconds
from report.paper import (
    PAPER_COSTS,
    PAPER_ROWS,
    PAPER_TABLES,
    decimals,
    paper_costs,
    paper_deltas,
    paper_performance,
)
from simo.errors import SimoError
from simo.performance import delta_formula, delta_printed, normalised_performance
from simo.tasks import tasks_of

MODELS = {
    "constant": "Constant prediction",
    "expert": "Experts",
    "joint": "Joint training",
    "average": "Average",
    "task_arithmetic": "TA",
    "ties": "TIES",
    "ties_untrimmed": "TIES, untrimmed",
    "consensus": "Consensus",
    "adamerging": "AdaMerging",
    "tall_mask": "TALL-mask, an encoder a task",
    "magnitude_mask": "Magnitude mask, an encoder a task",
    "task_arithmetic+heads": "TA + heads",
    "task_arithmetic+representation": "TA + representation",
    "task_arithmetic+released": "TA + released code's adapter",
    "ties+heads": "TIES + heads",
    "ties+representation": "TIES + representation",
    "pretrained": "Pretrained",
    "pretrained+heads": "Pretrained + heads",
    "pretrained+representation": "Pretrained + representation",
    "expert+heads": "Experts + heads' budget",
    "expert+representation": "Experts + repr.'s budget",
    "expert+heads, seen": "Experts + heads' steps, seen images",
    "expert+representation, seen": "Experts + repr.'s steps, seen images",
}
CONTROLS = [name for name in MODELS if name.split("+")[0] == "pretrained" or name.startswith("expert+")]


@dataclass(frozen=True)
class Findings:
    """What one experiment of a study found, and what that is measured by.

    Attributes
    ----------
    records : list of dict
        Of the experiment, one a seed, see `report.records.load_records`.
    frame : DataFrame
        Scores of these seeds, see `scores`: Δ is relative to their experts.
    dataset : str
    all_records : list of dict
        Of these seeds, of other experiments, too.
    """

    records: list
    frame: pd.DataFrame
    dataset: str
    all_records: list


def spread(values, form="+.1f"):
    """Mean ± standard deviation of a Series over seeds, as text; the mean alone where nothing varies."""
    mean, deviation = f"{values.mean():{form.replace('.', 'z.')}}", values.std(ddof=1)  # no -0
    # no-break spaces: where a table is narrow, lines break before the brackets
    return f"{mean}\u00a0±\u00a0{deviation:{form.lstrip('+')}}" if deviation > 0 else mean


def metrics_of(records, split):
    """Metrics on a split, of all tasks together: by model and seed a dict by task name."""
    found = {}
    for record in records:
        for result in record["results"]:
            if result["split"] == split:
                own = found.setdefault((result["model"], record["seed"]), {})
                if twice := own.keys() & result["metrics"].keys():
                    name = f"{result['model']}, seed {record['seed']}, {split}"
                    raise SimoError(f"{name}: two records have the metric of {sorted(twice)}")
                own |= result["metrics"]
    return found


def scores(records, dataset):
    """Every test result of a study relative to the experts of its own seed.

    Parameters
    ----------
    records : list of dict
        Of one study, see `report.records.load_records`.
    dataset : str

    Returns
    -------
    DataFrame
        One row a seed and model, indexed by `model` and `seed`, models in the order of `MODELS`: by task
        name the metric, `<task> %` the normalised performance in per cent, `printed` and `formula` the
        two Δ_MTL in per cent.

    Raises
    ------
    SimoError
        If there is no result, the experts of a seed are incomplete, or a metric is missing or there twice.
    """
    tasks, found, rows = tasks_of(dataset), metrics_of(records, "test"), {}
    if not found:
        raise SimoError(f"{dataset}: no expert has a record; run its notebooks again")
    for (model, seed), values in found.items():
        experts = found.get(("expert", seed), {})
        for name, own in {"expert": experts, model: values}.items():
            if lacking := [task.name for task in tasks if task.name not in own]:
                raise SimoError(f"{dataset}, seed {seed}: no record of {name} has {lacking}; run it again")
        relative = {
            f"{t.name} %": 100 * normalised_performance(t, values[t.name], experts[t.name]) for t in tasks
        }
        deltas = {
            "printed": delta_printed(tasks, values, experts),
            "formula": delta_formula(tasks, values, experts),
        }
        rows[model, seed] = {task.name: values[task.name] for task in tasks} | relative | deltas
    order = {name: number for number, name in enumerate(MODELS)}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=["model", "seed"])
    return frame.sort_index(key=lambda level: level.map(order) if level.name == "model" else level)


def table_of(frame, dataset, models=None):
    """The paper's kind of table: metric (normalised performance), Δ; mean ± standard deviation over seeds.

    Parameters
    ----------
    frame : DataFrame
        See `scores`.
    dataset : str
    models : sequence of str, optional
        Rows; all that have results if not given.

    Returns
    -------
    DataFrame
        Of text, one row a model; "ours" is what the paper's tables do not have.
    """
    rows = {}
    for model in frame.index.unique("model") if models is None else models:
        own, row = frame.loc[model], {}
        for task in tasks_of(dataset):
            text = spread(own[task.name], f".{decimals(task)}f")
            percent = own[f"{task.name} %"].mean()
            row[task.name, f"{task.metric}, {task.unit}".rstrip(", ")] = f"{text} ({percent:.1f})"
        for definition, name in {"printed": "printed", "formula": "Eq. 2"}.items():
            digits = 1 if abs(own[definition].mean()) < 100 else 0  # Eq. 2 is unbounded
            text = spread(own[definition], f"+.{digits}f")
            row["Δ_MTL, %", name] = "" if model == "expert" else text
        rows[MODELS[model] + ", ours" * (model not in PAPER_ROWS)] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def relative_curves(curves, dataset):
    """Relationship curves relative to each head on its own expert, λ = 1.

    Parameters
    ----------
    curves : dict of str to list of dict
        Of a record: by primary task one row a λ, with `lambda` and each head's metric.
    dataset : str

    Returns
    -------
    dict
        `[primary][evaluated][λ]`, 1 at the expert.
    """
    own = {
        task.name: next(row[task.name] for row in curves[task.name] if row["lambda"] == 1)
        for task in tasks_of(dataset)
    }
    return {
        primary: {
            task.name: {
                row["lambda"]: normalised_performance(task, row[task.name], own[task.name]) for row in rows
            }
            for task in tasks_of(dataset)
        }
        for primary, rows in curves.items()
    }


# A full-scale Δ counts as the paper's within this many points: the paper has a single seed, and the seeds of
# our realigned models differ by up to about as much (`report.pages.Page.numbers`, "largest spread").
FULL_SCALE_TOLERANCE = 3.0
LOSS = 10  # points of Δ that count as a clear loss
FINISHED = 5  # points of Δ that experts may gain from realignment's own images and steps and count as trained
FULL_SCALE = "at its scale"  # title of the column


def paper_beside_ours(frames, dataset, paper):
    """Metrics, normalised performance and printed Δ of the paper, beside ours, for the rows that it prints.

    The spread stands at Δ only: `table_of` has that of our metrics.

    Parameters
    ----------
    frames : dict of str to DataFrame or None
        By the column's title, see `scores`; a column without scores says "not run". Of those at the paper's
        scale, `FULL_SCALE`, only Δ is shown.
    dataset : str
    paper : dict
        See `report.paper.read_paper`.

    Returns
    -------
    DataFrame
        Of text; columns are pairs of a quantity and "paper" or a title. The paper's percentages follow from
        its metrics; a Δ that follows from a misprinted one instead has a star. At its scale, a Δ more than
        `FULL_SCALE_TOLERANCE` away from the paper's is marked.
    """
    tasks, printed, rows = tasks_of(dataset), paper[PAPER_TABLES[dataset]], {}
    relative = paper_performance(dataset, paper)
    for model, name in PAPER_ROWS.items():
        if name not in printed:
            continue
        row = {}
        for task, value in zip(tasks, printed[name][:-1], strict=True):
            theirs = relative[model][task.name]
            row[f"{task.name}, %", "paper"] = f"{value:.{decimals(task)}f} ({theirs:.1f})"
            for title, frame in frames.items():
                if title != FULL_SCALE:
                    row[f"{task.name}, %", title] = _cell(
                        frame, model, f"{task.name} %", lambda own: f"{own.mean():.1f}"
                    )
        if model != "expert":
            delta = printed[name][-1]
            star = "*" if name in paper["misprints"].get(PAPER_TABLES[dataset], {}) else ""
            row["Δ_MTL, %", "paper"] = f"{delta:+.1f}{star}"
            for title, frame in frames.items():
                ours = _cell(frame, model, "printed", spread)
                compared = title == FULL_SCALE and ours != "not run"
                far = compared and abs(frame.loc[model].printed.mean() - delta) > FULL_SCALE_TOLERANCE
                row["Δ_MTL, %", title] = f"{ours}, differs" if far else ours
        rows[MODELS[model]] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def _cell(frame, model, column, as_text):
    """A column of a model's scores as text; "not run" without any."""
    if frame is None or model not in frame.index.unique("model"):
        return "not run"
    return as_text(frame.loc[model][column])


def recovered(delta, method, realignment, floor=None):
    """Share of merging's loss that a realignment takes back, in per cent; 100 is the experts' level.

    Parameters
    ----------
    delta : mapping
        Printed Δ by model name; numbers, or Series over seeds.
    method, realignment : str
        Such as "ties" and "heads".
    floor : str, optional
        A model, such as "constant": the loss is counted from it where the merged model is even worse.
    """
    bare = delta[method] if floor is None else np.maximum(delta[method], delta[floor])
    return 100 * (1 - delta[f"{method}+{realignment}"] / bare)


def alphas(records):
    """The α that the validation split chose: a row a seed, a column a merging method."""
    chosen = [
        (record["seed"], record["experiment"].removeprefix("merge_"), record["details"]["alpha"])
        for record in records
        if record["experiment"].startswith("merge_")
    ]
    table = pd.DataFrame(chosen, columns=["seed", "method", "alpha"])
    return table.pivot(index="seed", columns="method", values="alpha")


def where_merged(values, chosen, method):
    """Values over seeds without those on which a method merged nothing, α = 0; see `alphas`."""
    nothing = chosen.index[chosen[method] == 0] if method in chosen else []
    return values.drop(nothing, errors="ignore")


def on_validation(records, model):
    """Metrics of a model on the validation split, of all tasks together, by seed."""
    return {seed: own for (name, seed), own in metrics_of(records, "val").items() if name == model}


def costs_of(records):
    """What all test results cost: columns `seed`, `model`, `steps`, `samples`, `parameters` and `seconds`.

    The seconds of a continued run, too few, are NaN.
    """
    rows = []
    for record in records:
        unknown = {"seconds": float("nan")} if record["provenance"].get("resumed") else {}
        for result in record["results"]:
            if result["split"] == "test":
                rows.append({"seed": record["seed"], "model": result["model"], **result["cost"], **unknown})
    return pd.DataFrame(rows, columns=["seed", "model", "steps", "samples", "parameters", "seconds"])


def seeds_on_other_devices(records):
    """Seeds with a record of another GPU than most records, or of a CPU instead: their seconds are unlike."""
    devices = kinds_of_devices(pd.Series([record["provenance"].get("device", "") for record in records]))
    other = devices != devices.mode()[0]
    return {record["seed"] for record, unlike in zip(records, other, strict=True) if unlike}


def kinds_of_devices(devices):
    """Names of devices, with "a CPU" for every processor: one is not as far from another as from a GPU."""
    return devices.mask(devices.str.contains("thread"), "a CPU")


def experts_together(costs):
    """What all experts cost together, by seed: sums, if all are known; they share their images."""
    sums = {name: lambda own: own.sum(skipna=False) for name in ("steps", "parameters", "seconds")}
    return costs[costs.model == "expert"].groupby("seed").agg(sums | {"samples": "first"})


def pattern(frames, dataset, paper, chosen):
    """What is compared at another size: not values, but the order, the signs and the shares recovered.

    Parameters
    ----------
    frames, dataset, paper
        See `paper_beside_ours`; all with scores.
    chosen : dict of str to DataFrame
        By title, see `alphas`: where a seed merged nothing, what looks like recovery is none.

    Returns
    -------
    DataFrame
        Of text, columns `paper` and the titles.
    """
    theirs = paper_deltas(dataset, paper)
    columns = [_pattern(frame, theirs, chosen.get(title, alphas([]))) for title, frame in frames.items()]
    names = list(dict.fromkeys(row for column in columns for row in column))
    table = {
        row: [next(c[row][0] for c in columns if row in c), *(c.get(row, ("", ""))[1] for c in columns)]
        for row in names
    }
    return pd.DataFrame.from_dict(table, orient="index", columns=["paper", *frames])


def _pattern(frame, theirs, chosen):
    """Rows of `pattern`: the paper's text and ours."""
    seeds = frame.printed.unstack("seed").reindex(theirs.index)
    order = seeds.corrwith(theirs, method="spearman")
    rows = {
        "order of the methods (rank correlation of Δ; that realigned is above bare makes most of it)": (
            "1",
            spread(order, ".2f"),
        ),
        "methods that lose against the experts": (
            f"{(theirs < 0).sum()} of {len(theirs)}",
            f"{(seeds.mean(axis=1) < 0).sum()} of {seeds.notna().any(axis=1).sum()}",
        ),
    }
    every = frame.printed.unstack("model")
    for method in ("task_arithmetic", "ties"):
        merged = where_merged(every, chosen, method)
        for kind in [kind for kind in ("heads", "representation") if f"{method}+{kind}" in every]:
            row = f"share of the loss recovered by {MODELS[f'{method}+{kind}']}"
            ours, control = _share(recovered(merged, method, kind), every), merged.get(f"expert+{kind}")
            if merged.empty:
                ours = "nothing merged"
            elif merged[method].mean() >= -LOSS:
                ours = "no clear loss"
            elif control is None or control.isna().all():
                ours += ", experts' gain not run"
            elif control.mean() > FINISHED:
                ours = "experts gain, too"
            rows[row] = (f"{recovered(theirs, method, kind):.0f} %", ours)
            if "%" in ours and "constant" in every and (merged[method] < merged.constant).any():
                rows[f"{row}, from a constant"] = (
                    "",
                    _share(recovered(merged, method, kind, "constant"), every),
                )
    for method, kind in product(("task_arithmetic", "ties"), ("heads", "representation")):
        merged, realigned = where_merged(every, chosen, method), f"{method}+{kind}"
        if {f"pretrained+{kind}", realigned} <= set(every):
            bare = merged[method]
            share = 100 * (merged[f"pretrained+{kind}"] - bare) / (merged[realigned] - bare)
            row = f"share of the gain by {MODELS[realigned]} that needs no merging"
            rows[row] = ("", "nothing merged" if merged.empty else _share(share, every))
    return rows


def vectors(records):
    """How long task vectors are, relative to the pretrained encoder, and how alike: a dict of text.

    Parameters
    ----------
    records : list of dict
        Of one study; empty where no merging by task arithmetic is among them.
    """
    details = [each["details"] for each in records if each["experiment"] == "merge_task_arithmetic"]
    cosines = [c for each in details for a, row in each["cosines"].items() for b, c in row.items() if a < b]
    lengths = [length for each in details for length in each["relative_norms"].values()]
    if not details:
        return {}
    return {
        "cosine of two task vectors": f"{min(cosines):z.2f} to {max(cosines):z.2f}",
        "length of a task vector, in % of the pretrained encoder's": (
            f"{100 * min(lengths):.2g} to {100 * max(lengths):.2g}"
        ),
    }


def _share(share, every):
    """A share over those seeds on which something was merged, as text; how many, if not all."""
    share = share.dropna()
    some = f", {len(share)} of {len(every)} seeds" * (len(share) < len(every))
    return f"{spread(share, '.0f')} %{some}" if len(share) else "not run"


def efficiency(records, paper=None):
    """Table 4: what each way to a multi-task model costs, with and without the experts it starts from.

    Parameters
    ----------
    records : list of dict
        Of one study; every number is read from them.
    paper : dict, optional
        See `report.paper.read_paper`; its Table 4 is to stand beside.

    Returns
    -------
    DataFrame
        Of text: optimiser steps, trained parameters, different training images and seconds, means over
        seeds; seconds only of the device that most seeds ran on. An expert's row is the mean over tasks.
    """
    costs = costs_of(records)
    costs.loc[costs.seed.isin(seeds_on_other_devices(records)), "seconds"] = float("nan")
    # of an expert over tasks first: a seed of which one is not known says nothing of their mean
    seeds = costs.groupby(["model", "seed"]).agg(lambda own: own.mean(skipna=False))
    means = seeds.groupby("model").mean()
    rows = {model: means.loc[model] for model in PAPER_COSTS if model in means.index}
    if "expert" in rows:
        rows["All experts"] = together = experts_together(costs).mean()
        for model in [name for name in rows if name.startswith("task_arithmetic")]:
            rows[f"{MODELS[model]}, with its experts"] = (together + rows[model]).drop("parameters")
    table = {}
    for model, cost in rows.items():
        row = {
            ("steps", "ours"): f"{cost.steps:,.0f}",
            ("trained parameters", "ours"): f"{cost.parameters / 1e6:.2f}\u00a0M"
            if "parameters" in cost
            else "",
            ("images", "ours"): f"{cost.samples:,.0f}",
            ("seconds", "ours"): seconds(cost.seconds),
        }
        if paper and model in PAPER_COSTS:
            printed = paper_costs(paper)[model]
            row["steps", "paper"], row["images", "paper"] = f"{printed['steps']:,}", f"{printed['samples']:,}"
            row["trained parameters", "paper"] = f"{printed['parameters']:.1f}\u00a0M"
        label = "An expert (ours: mean over tasks)" if model == "expert" else MODELS.get(model, model)
        table[label] = row
    frame = pd.DataFrame.from_dict(table, orient="index").fillna("")
    order = [
        (name, who)
        for name in ("steps", "trained parameters", "images", "seconds")
        for who in ("paper", "ours")
    ]
    return frame[[column for column in order if column in frame]]


def subset_scores(findings):
    """Figure 1: mean performance relative to the experts of every merged subset of the tasks.

    Parameters
    ----------
    findings : Findings
        Of the experiment `subsets`.

    Returns
    -------
    DataFrame
        Columns `seed`, `tasks` (names joined by +), `size`, `performance` (1 is the experts').
    """
    by_name = {task.name: task for task in tasks_of(findings.dataset)}
    rows = []
    for record in findings.records:
        experts = findings.frame.loc[("expert", record["seed"])]
        for subset in record["details"]["subsets"]:
            values = [
                normalised_performance(by_name[name], value, experts[name])
                for name, value in subset["metrics"].items()
            ]
            rows.append(
                {
                    "seed": record["seed"],
                    "tasks": "+".join(subset["tasks"]),
                    "size": len(values),
                    "performance": sum(values) / len(values),
                }
            )
    return pd.DataFrame(rows)


# A seed recomputed on another machine may differ from the committed one by this many points of the printed Δ,
# or by three standard deviations of the committed seeds where that is more: sums of floating-point numbers in
# another order are amplified by hundreds of steps until they act like another seed.
TOLERANCE = 2.0


def recomputed_beside_committed(frame, recomputed):
    """Δ of the seeds recomputed here beside the committed ones of the same seed.

    Parameters
    ----------
    frame, recomputed : DataFrame
        See `scores`: committed and recomputed.

    Returns
    -------
    DataFrame
        One row a model and recomputed seed that is also committed; empty if none is.
    """
    rows = {}
    for model, seed in recomputed.index:
        if model == "expert" or (model, seed) not in frame.index:
            continue
        ours, theirs = recomputed.loc[(model, seed), "printed"], frame.loc[(model, seed), "printed"]
        committed = frame.loc[model].printed
        limit = max(TOLERANCE, 3 * committed.std(ddof=1)) if len(committed) > 1 else TOLERANCE
        rows[MODELS[model], seed] = {
            "committed, all seeds": spread(committed),
            "committed, this seed": f"{theirs:+.1f}",
            "recomputed here": f"{ours:+.1f}",
            "tolerance": f"{limit:.1f}",
            "agrees": "yes" if abs(ours - theirs) <= limit else "NO",
        }
    index = pd.MultiIndex.from_tuples(rows, names=["model", "seed"]) if rows else None
    return pd.DataFrame(list(rows.values()), index=index)
