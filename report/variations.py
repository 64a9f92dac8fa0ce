"""What the paper did not vary, and why merging breaks heads: tables and figures from records.

Each function takes the `report.tables.Findings` of one experiment. Δ is as printed, in per cent.
"""

import numpy as np
import pandas as pd

from report.beyond import with_deltas
from report.overview import TITLES
from report.tables import MODELS, spread
from simo.performance import delta_printed
from simo.tasks import tasks_of

MOVED = "‖τ‖ / ‖θ₀‖, %"
SAME_EXPERTS = "heads (to the first row's experts)"
SAME_ALPHA = "heads, same α"  # as the first row
MAPS = {"nothing": "as they are", "shift": "shifted", "diagonal": "scaled", "procrustes": "turned"}
MAPS |= {"ridge": "mapped linearly"}


def alpha_scores(findings):
    """By α, bare and realigned: columns `seed`, `alpha`, `method`, `delta`, and the `score` to choose by."""
    scores = with_deltas(findings, lambda details: details["alphas"])
    return scores.rename(columns={"way": "method"})


def alpha_table(findings):
    """What choosing α after realignment changes: Δ and α by way, as text.

    Before: the α of the best bare model on all validation images; after: that of the best realigned model on
    those it was not realigned on.
    """
    scores = alpha_scores(findings).set_index(["seed", "alpha"])
    whole = {record["seed"]: record["details"]["parts"]["everything"] for record in findings.records}
    rows, before = {}, [(seed, merged["alpha"]) for seed, merged in whole.items()]
    for method, own in scores[scores.method != "merged"].groupby("method", sort=False):
        row = {}
        for when, places in {"before": before, "after": list(own.groupby("seed").score.idxmax())}.items():
            row[f"α chosen {when}"] = ", ".join(f"{alpha:g}" for _, alpha in places)
            row[f"Δ, α chosen {when}"] = spread(own.loc[places].delta)
        rows[method] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def adapter_scores(findings):
    """By adapter and rank: columns `seed`, `method`, `rank`, `delta`."""
    scores = with_deltas(findings, lambda details: details["adapters"])
    return scores.assign(method=scores.adapter.map({"paper": "the paper's adapter", "lora": "LoRA"}))


def parts_table(findings):
    """Δ by which tensors are merged, bare and realigned, with α and the share of merged values, as text."""

    def rows_of(details):
        whole = details["parts"]["everything"]["values"]
        for name, part in details["parts"].items():
            for score in part["scores"]:
                yield score | {"part": name, "alpha": part["alpha"], "share": 100 * part["values"] / whole}

    scores = with_deltas(findings, rows_of).rename(columns={"way": "method"})
    table = _alphas(scores, "part")
    table.insert(0, "values, %", scores.groupby("part").share.mean().map("{:.0f}".format))
    return table.join(_by_method(scores, "part")).rename_axis(index=None)


def rate_scores(findings):
    """By the experts' learning rate: columns `seed`, `rate`, `moved` (per cent), `alpha`, `method`, `delta`.

    Everything is relative to the main experiments' experts, so that gentler but worse experts show.
    """

    def rows_of(details):
        main = {"rate": 1.0, "lengths": details["lengths"], **details["parts"]["everything"]}
        for entry in [*details["rates"], main]:
            moved = 100 * sum(entry["lengths"].values()) / len(entry["lengths"])
            own = {"rate": entry["rate"], "alpha": entry["alpha"], "moved": moved}
            experts = [{"way": "experts", "metrics": entry["experts"]}] if "experts" in entry else []
            for score in entry["scores"] + experts:
                yield own | score

    scores = with_deltas(findings, rows_of).rename(columns={"way": "method"})
    main = {"rate": 1.0, "method": "experts", "delta": 0.0}  # what Δ is relative to
    own = pd.DataFrame([{"seed": record["seed"], **main} for record in findings.records])
    return pd.concat([scores, own])


def rates_table(findings):
    """How far the experts moved, by their learning rate, and the α of each seed, as text."""
    scores = rate_scores(findings)
    table = _alphas(scores, "rate")
    table.insert(0, MOVED, scores.groupby("rate").moved.mean().map("{:.1f}".format))
    return table.rename(index=lambda rate: f"{rate:g} × learning rate").rename_axis(index=None)


def depth_scores(findings):
    """By depth of the encoder: columns `seed`, `depth`, `method`, `delta`.

    Everything is relative to the experts of the same depth, but these to the main experiments'.
    """
    tasks, rows = tasks_of(findings.dataset), []
    for record in findings.records:
        seed, details = record["seed"], record["details"]
        main = findings.frame.loc["expert", seed]
        whole = {"depth": details["whole"], "experts": main, "joint": findings.frame.loc["joint", seed]}
        for entry in [*details["depths"], whole | details["parts"]["everything"]]:
            found = {score["way"]: (score["metrics"], entry["experts"]) for score in entry["scores"]}
            found |= {"experts": (entry["experts"], main), "joint": (entry["joint"], entry["experts"])}
            deltas = {way: delta_printed(tasks, *pair) for way, pair in found.items()}
            own = {"seed": seed, "depth": entry["depth"]}
            rows += [own | {"method": method, "delta": delta} for method, delta in deltas.items()]
    return pd.DataFrame(rows)


def _alphas(scores, by):
    """The α of each seed, listed."""
    alphas = scores[scores.method == "merged"].groupby(by, sort=False).alpha
    return alphas.agg(lambda values: ", ".join(f"{value:g}" for value in values)).to_frame("α")


def _by_method(scores, by):
    """Mean and spread of Δ, one column a method."""
    return scores.groupby([by, "method"], sort=False).delta.agg(spread).unstack("method")


def studies_table(frames, models):
    """Δ of some models in several studies, as text: mean ± standard deviation over seeds.

    Parameters
    ----------
    frames : dict of str to DataFrame
        By the column's title, see `report.tables.scores`.
    models : sequence of str
        Keys of `report.tables.MODELS`.
    """
    columns = {title: frame.printed.groupby("model").agg(spread) for title, frame in frames.items()}
    table = pd.DataFrame(columns).reindex(list(models)).fillna("not run")
    return table.rename(index=MODELS).rename_axis(index=None)


def feature_shares(findings):
    """What merged features explain of each expert's.

    Columns `seed`, `encoder`, `task`, `block`, `method` (a value of `MAPS`, or CKA), `share`.
    """
    names = MAPS | {"cka": "CKA"}
    rows = [
        pd.DataFrame(found).rename(columns=names).assign(seed=record["seed"], encoder=encoder)
        for record in findings.records
        for encoder, found in record["details"]["features"].items()
    ]
    return pd.concat(rows).melt(["seed", "encoder", "task", "block"], list(names.values()), "method", "share")


def shares_table(findings):
    """What merged features explain of each expert's after the last block, as text: one row a task."""
    rows = feature_shares(findings)
    rows = rows[(rows.encoder == "merged") & (rows.block == rows.block.max())]
    cells = rows.groupby(["task", "method"], sort=False).share.agg(spread, ".2f")
    return cells.unstack("method").rename_axis(index=None)


def moment_distances(findings):
    """How far each expert's second moments are from the experts' mean, in the mean over a block's layers.

    Columns `seed`, `block`, `method` (the task), `distance`.
    """
    rows = [
        {"seed": record["seed"], "block": row["block"], "method": task, "distance": distance}
        for record in findings.records
        for row in record["details"]["moments"]
        for task, distance in row["distances"].items()
    ]
    return pd.DataFrame(rows).groupby(["seed", "block", "method"], sort=False).distance.mean().reset_index()


def regmean_changes(findings):
    """Say how far RegMean's matrices are from the average's, in norms of the latter: Markdown."""
    rows = [row["change"] for record in findings.records for row in record["details"]["moments"]]
    low, middle, high = np.quantile(rows, [0.1, 0.5, 0.9])
    return (
        f"*{TITLES[findings.dataset]}: RegMean's task vector of a layer differs from the plain average by "
        f"{middle:.2g} times the latter's norm (median over layers and seeds; {low:.2g} to {high:.2g} "
        "in the middle four fifths).*"
    )


def vectors_table(findings):
    """Length of each expert's task vector, its cosine to the others', and how concentrated it is, as text."""
    rows = []
    for record in findings.records:
        details = record["details"]
        for task, length in details["lengths"].items():
            others = [value for other, value in details["cosines"][task].items() if other != task]
            energy = dict(zip(details["shares"], details["spectra"][task], strict=True))
            rows.append(
                {
                    "task": task,
                    MOVED: 100 * length,
                    "mean cosine to others": sum(others) / len(others),
                    "energy in 10 % of the directions": energy[0.1],
                }
            )
    groups = pd.DataFrame(rows).groupby("task", sort=False)
    cells = {name: groups[name].agg(spread, ".1f" if name == MOVED else ".2f") for name in [*rows[0]][1:]}
    return pd.DataFrame(cells).rename_axis(index=None)


def contrast_scores(findings):
    """Validation score by α under each kind of decoder, relative to its own experts.

    Columns `seed`, `alpha`, `method`, `score` in per cent.
    """
    own = [record for record in findings.all_records if record["experiment"] == "merge_task_arithmetic"]
    return pd.DataFrame(
        {"seed": record["seed"], "alpha": row["alpha"], "method": name, "score": 100 * row["score"]}
        for name, found in {"own heads": own, "one frozen decoder": findings.records}.items()
        for record in found
        for row in record["details"]["scan"]
    )


def contrast_table(findings):
    """The loss by merging under a frozen shared decoder and under each expert's own head, as text.

    `experts` are relative to the main experiments', `merged` and `heads` to the experts of the same row, so
    that what merging costs is comparable; in the last column, `heads` to the main experiments', too. `heads,
    same α` are realigned at the first row's α.
    """
    tasks, rows = tasks_of(findings.dataset), []
    for record in findings.records:
        details, seed = record["details"], record["seed"]
        names, found = ("expert", "task_arithmetic", "task_arithmetic+heads"), details["scores"]
        main, merged, heads = (findings.frame.loc[name, seed] for name in names)
        own = {"merged": merged, "heads": heads, SAME_ALPHA: heads}
        for decoder, entry, experts, scores in (
            ("each expert's own head, trained with it", details["own_heads"], main, own),
            ("one decoder for all, frozen", details, found["expert"], found),
        ):
            pairs = {"experts": (experts, main)}
            pairs |= {name: (scores[name], experts) for name in ("merged", "heads", SAME_ALPHA)}
            moved = 100 * sum(entry["lengths"].values()) / len(tasks)
            for method, pair in (pairs | {SAME_EXPERTS: (scores["heads"], main)}).items():
                row = {"decoder": decoder, "moved": moved, "alpha": entry["alpha"], "method": method}
                rows.append(row | {"delta": delta_printed(tasks, *pair)})
    scores = pd.DataFrame(rows)
    table = _alphas(scores, "decoder")
    table.insert(0, MOVED, scores.groupby("decoder").moved.mean().map("{:.1f}".format))
    return table.join(_by_method(scores, "decoder")).rename_axis(index=None)
