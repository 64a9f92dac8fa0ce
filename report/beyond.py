"""Beyond the paper: tables and figures of what it did not try, from records."""

import pandas as pd
import seaborn as sns

from report.display import seconds
from report.overview import TITLES
from report.plotting import METHOD_STYLES
from report.tables import MODELS, costs_of, experts_together, on_validation, spread
from simo.performance import delta_printed, mean_score, normalised_performance
from simo.tasks import tasks_of

REALIGNMENTS = ("heads", "representation")
BESIDE_JOINT = ["joint"]
BESIDE_JOINT += [f"{start}+{kind}" for start in ("task_arithmetic", "pretrained") for kind in REALIGNMENTS]
COSTS = {"steps": "steps", "samples": "images", "seconds": "seconds"}
COSTS |= {f"all {name}": f"{column} with the experts'" for name, column in COSTS.items()}
BALANCES = {"uncertainty": "uncertainty weighting", "dwa": "DWA", "pcgrad": "PCGrad", "cagrad": "CAGrad"}
CHOSEN = "Joint, balance chosen on val"
FACTOR = 10  # what counts as much fewer images, or much less time


def with_deltas(findings, rows_of):
    """Rows of the details of records, each with its seed, and with Δ in the place of its metrics.

    Parameters
    ----------
    findings : Findings
    rows_of : callable
        From a record's details to dicts with an entry `metrics`.

    Returns
    -------
    DataFrame
        Columns `seed`, by task name the normalised performance, `delta` (printed), all in per cent, and the
        rows' other entries.
    """
    tasks = tasks_of(findings.dataset)
    rows = []
    for record in findings.records:
        experts, resumed = findings.frame.loc["expert", record["seed"]], record["provenance"].get("resumed")
        for row in rows_of(record["details"]):
            own = {name: value for name, value in row.items() if name != "metrics"}
            if resumed and "seconds" in own:
                own["seconds"] = float("nan")  # those of a continued run are too few
            for task in tasks:
                ratio = normalised_performance(task, row["metrics"][task.name], experts[task.name])
                own[task.name] = 100 * ratio
            own["delta"] = delta_printed(tasks, row["metrics"], experts)
            rows.append({"seed": record["seed"], **own})
    return pd.DataFrame(rows)


def realignment_curves(findings):
    """Every way to realign: columns `method`, `images`, `seconds`, and those of `with_deltas`."""
    return with_deltas(findings, lambda details: details["curves"])


def curves_table(findings):
    """Mean ± standard deviation over seeds of Δ, as text: one row a method, one column a number of images.

    Numbers that not all methods were given are left out.
    """
    curves = realignment_curves(findings)
    cells = curves.groupby(["method", "images"], sort=False).delta.agg(spread)
    return cells.unstack("images").dropna(axis="columns").rename("{} images".format, axis="columns")


REPAIRS = {"task_arithmetic": "merged", "tall_mask": "TALL-masks", "joint": "joint training"}
REPAIRS |= {name: name for name in ("shift", "scales", "rotation", "closed form", *REALIGNMENTS)}


def repairs_table(findings):
    """What is left of each expert's performance, and Δ: mean ± standard deviation over seeds, as text.

    Rows: the merged model bare, masked by task, after each map of its features, realigned; joint training.

    Of every method the largest number of images counts.
    """
    curves = realignment_curves(findings)
    names = {task.name: f"{task.name} %" for task in tasks_of(findings.dataset)}
    main = findings.frame[[*names.values(), "printed"]].rename(columns={"printed": "delta"})
    own = curves[curves.images == curves.images.max()].set_index("method").rename(columns=names)
    rows = pd.concat([main.droplevel("seed"), own])[main.columns].loc[list(REPAIRS)]
    groups = rows.groupby(level=0, sort=False)
    table = {column: groups[column].agg(spread, ".0f") for column in names.values()}
    return pd.DataFrame(table | {"Δ printed, %": groups.delta.agg(spread)}).rename(index=REPAIRS)


def controls_table(findings):
    """Δ of closed form, of heads trained for longer, and of what needs no merging: a Series of text.

    The first ones with the seconds that they took, in the mean. Of the experiment `closed_form_control`.
    """
    own = with_deltas(findings, lambda details: details["controls"]).groupby("name", sort=False)
    beside = findings.frame.printed.loc[["task_arithmetic", *BESIDE_JOINT]].groupby("model", sort=False)
    timed = own.delta.agg(spread) + own.seconds.mean().map(lambda each: f", {_roughly(each)}")
    rows = pd.concat([timed, beside.agg(spread).rename(index=MODELS)])
    return rows.rename_axis(None)


def savings(curves, bare, labelled="heads"):
    """From how many images, and in what time, closed form is as good as a labelled method with so many.

    Parameters
    ----------
    curves : dict of str to DataFrame
        By data set, see `realignment_curves`; means over seeds are compared.
    bare : dict of str to float
        Δ of the merged model as it is: a labelled method that is worse sets no mark.
    labelled : str
        The method to be as good as.

    Returns
    -------
    DataFrame
        Of text, one row a data set and number of labelled images. *Needs* is the least number of images, of
        those tried, at which and above which closed form is as good.
    """
    rows = {}
    for dataset, curve in curves.items():
        means = curve.groupby(["method", "images"])[["delta", "seconds"]].mean()
        own = means.loc["closed form"]
        lasting = own.delta[::-1].cummin()[::-1]
        for images, mark in means.loc[labelled].iterrows():
            row = {f"Δ of {labelled}": f"{mark.delta:+.1f}", "seconds": seconds(mark.seconds, 1)}
            enough = own[lasting >= mark.delta]
            if mark.delta < bare[dataset]:
                row["closed form needs"] = "none: bare is better"
            elif enough.empty:
                row["closed form needs"] = f"more than {own.index.max()} images"
            else:
                least = enough.iloc[0]
                fewer, faster = images / least.name, mark.seconds / least.seconds
                row["closed form needs"] = f"{least.name} images, {_roughly(least.seconds)}"
                row |= {"times fewer images": f"{fewer:.1f}", "times faster": seconds(faster, 1)}
                known = "unknown" if pd.isna(faster) else "no"
                row[f"a factor of {FACTOR} in either"] = "yes" if max(fewer, faster) >= FACTOR else known
            rows[f"{TITLES[dataset]}, {images} labelled images"] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def _roughly(value):
    return "interrupted" if pd.isna(value) else f"about {value:.1f} s"


NEIGHBOURS = {"passes": "encoder passes", "added": "values added"}


def neighbour_scores(findings):
    """Every way to repair a merged model without labels: the rows of `neighbours`, see `with_deltas`."""
    return with_deltas(findings, lambda details: details["rows"])


def neighbours_table(findings):
    """Closed form and its neighbours: what is left of each expert, Δ, and what it takes, best first.

    Parameters
    ----------
    findings : Findings
        Of the experiment `neighbours`.

    Returns
    -------
    DataFrame
        Of text: mean ± standard deviation over seeds; seconds from the merged encoder on, in the mean.
    """
    groups = neighbour_scores(findings).groupby("name", sort=False)
    table = {f"{task.name} %": groups[task.name].agg(spread, ".0f") for task in tasks_of(findings.dataset)}
    table |= {"Δ printed, %": groups.delta.agg(spread)}
    table |= {"seconds": groups.seconds.mean().map(seconds)}
    table |= {title: groups[name].first().map("{:,}".format) for name, title in NEIGHBOURS.items()}
    order = groups.delta.mean().sort_values(ascending=False).index
    return pd.DataFrame(table).loc[order].rename_axis(index=None)


EITHER = "method, and its α"
SHORT = MODELS | {"knots": "KnOTS", "core_space": "Core Space"}
RULES = {
    "before": "labels, before realignment",  # the paper's
    "after": "labels, after closed form",
    "distance": "distance of outputs, no label",
    "residual": "residual of closed form, no label",
    "capped": "residual, each task's at most 1",  # thought of when the one above had failed
    "test": "the test split's best",  # not a rule, but what rules are measured against
}


def chosen_alphas(findings):
    """The α that each rule chooses for closed form, and what closed form reaches with it.

    Parameters
    ----------
    findings : Findings
        Of the experiment `unlabelled_alpha`; others say what the merge chose, and how good experts are on the
        validation split.

    Returns
    -------
    DataFrame
        Columns `seed`, `method` (`EITHER`: the rule chooses it and its option, too), `rule` (a key of
        `RULES`), `choice` (α, perhaps with the method), `delta`, and `order`, the rank correlation of the
        residual with Δ over the grid, of which -1 is best.
    """
    tasks = tasks_of(findings.dataset)
    scans = {
        (record["seed"], record["experiment"], row["alpha"]): row["score"]
        for record in findings.all_records
        if record["experiment"].startswith("merge_")
        for row in record["details"]["scan"]
    }
    experts = on_validation(findings.all_records, "expert")
    rows = with_deltas(findings, lambda details: details["alphas"])
    rows["capped"] = [{task: min(left, 1.0) for task, left in own.items()} for own in rows.residual]
    for kind in ("residual", "capped", "distance"):
        rows[kind] = rows[kind].map(_mean_of)
    rows = rows.reindex(columns=rows.columns.union(["options", "bare"], sort=False))
    found = []
    plain = rows.options.isna()
    usual = rows[plain | ~rows.method.isin(rows.method[plain])].groupby(["seed", "method"], sort=False)
    for (seed, method), grid in [*usual, *rows.assign(any=EITHER).groupby(["seed", "any"])]:
        baselines = experts[seed]
        after = grid.val.map(lambda values, own=baselines: mean_score(tasks, values, own))
        before = {
            row.Index: scans[seed, f"merge_{row.method}", row.alpha]
            if pd.isna(row.options)
            else mean_score(tasks, row.bare, baselines)
            for row in grid.itertuples()
        }
        best = {
            "before": max(before, key=before.get),
            "after": after.idxmax(),
            "distance": grid.distance.idxmin(),
            "residual": grid.residual.idxmin(),
            "capped": grid.capped.idxmin(),
            "test": grid.delta.idxmax(),
        }
        order = grid.residual.corr(grid.delta, method="spearman")
        for rule, row in best.items():
            named = [SHORT[grid.method[row]]] * (method == EITHER)
            named += [] if pd.isna(grid.options[row]) else map(str, grid.options[row].values())
            choice = " ".join([*named, "α", str(grid.alpha[row])] if named else [str(grid.alpha[row])])
            chosen = {"choice": choice, "delta": grid.delta[row], "order": order}
            found.append({"seed": seed, "method": method, "rule": rule} | chosen)
    return pd.DataFrame(found)


def residual_by_task(findings):
    """Whether closed form's residual tells which task loses most, at the α of each method's least residual.

    Parameters
    ----------
    findings : Findings
        Of the experiment `unlabelled_alpha`.

    Returns
    -------
    DataFrame
        Columns `seed`, `method`, `told` (the task of the largest residual is that of the largest loss after
        closed form) and `order`, the rank correlation over tasks of the residual with the performance that is
        kept, of which -1 is best.
    """
    rows = with_deltas(findings, lambda details: details["alphas"])
    if "options" in rows:
        rows = rows[rows.options.isna()]
    best = rows.loc[rows.residual.map(_mean_of).groupby([rows.seed, rows.method], sort=False).idxmin()]
    found = []
    for row in best.to_dict("records"):
        left = pd.Series(row["residual"])
        kept = pd.Series({task: row[task] for task in left.index})
        told = {"told": left.idxmax() == kept.idxmin(), "order": left.corr(kept, method="spearman")}
        found.append({"seed": row["seed"], "method": row["method"], **told})
    return pd.DataFrame(found)


def alphas_table(findings):
    """Δ after closed form by the rule that chose α, and each seed's choice, as text; see `chosen_alphas`."""
    chosen = chosen_alphas(findings)
    groups = chosen.groupby(["method", "rule"], sort=False)
    choices = groups.choice.agg(lambda own: ", ".join(map(str, own)))
    choices = choices.where(choices.str.contains("α"), "α " + choices)
    cells = groups.delta.agg(spread) + " (" + choices.str.replace("α ", "α\u00a0") + ")"
    table = cells.unstack("rule")[list(RULES)].rename(columns=RULES)
    grids = chosen.drop_duplicates(["seed", "method"])  # the correlation is of a grid, not of a rule
    table["rank correlation of residual and Δ"] = grids.groupby("method").order.agg(spread, "+.2f")
    return table.rename(index=SHORT).rename_axis(index=None, columns=None)


FIELD_NAMES = {
    "task_arithmetic": "Task arithmetic (2023)",
    "ties": "TIES (2023)",
    "dare": "DARE (2024)",
    "breadcrumbs": "Breadcrumbs (2024)",
    "lines": "LiNeS (2025)",
    "iso_c": "Iso-C (2025)",
    "iso_cts": "Iso-CTS (2025)",
    "tsv_m": "TSV-M (2025)",
    "equal_norms": "Equal norms (2026)",
    "wudi": "WUDI (2025)",
    "ace": "ACE (2026)",
    "svc": "SVC (2026)",
    "regmean": "RegMean (2023), images",
    "lot": "LOT (2025), images",
    "esm": "ESM (2026), images",
    "nsc": "NSC's idea (2026), images",
    "symerge": "SyMerge's idea (2026), heads trained",
    "distillation": "Distilled encoder, nothing merged",
    "knots": "KnOTS (2025), TIES",
    "core_space": "Core Space (2025)",
}


def field_table(findings):
    """Δ of every merging method bare and with each realignment, and what merging took.

    Parameters
    ----------
    findings : Findings
        Of the experiment `field`.

    Returns
    -------
    DataFrame
        Of text, mean ± standard deviation over seeds, and what each seed chose; one row a method, best after
        closed form first. `residual` is that of closed form, see `simo.realignment.closedform.solve_heads`.
    """

    def rows_of(details):
        for row in details["methods"]:
            best = max(row["scans"], key=lambda scan: scan["score"], default={"alpha": "", "options": {}})
            own = {"method": row["method"], "α": best["alpha"]}
            own["option"], own["value"] = next(iter(best["options"].items()), ("", ""))
            own["value"] = "–" if own["α"] == 0 and own["option"] else own["value"]  # nothing was merged
            for score in row["scores"]:
                yield score | own | {"way": score["realignment"] or "merged"}

    scores = with_deltas(findings, rows_of)
    ways = scores.groupby(["method", "way"], sort=False).delta
    table = ways.agg(spread).unstack("way")
    merged = scores[scores.way == "merged"].groupby("method")
    listed = merged[["α", "value"]].agg(
        lambda values: ", ".join(str(value) for value in values if value != "")
    )
    table = table.assign(α=listed["α"], option=merged.option.first() + " " + listed.value)
    # of the seed that was disturbed least by whatever else ran
    took = merged.seconds.min()
    if took.notna().any():  # of some seed that went through without a break
        table["seconds to merge"] = took.map(seconds)
    left = scores.set_index("method").residual.dropna().map(_mean_of)  # of closed form
    table["residual"] = left.groupby(level=0).agg(spread, ".2f")
    order = ways.mean().unstack("way")["closed form"].sort_values(ascending=False).index
    return table.loc[order].rename(index=FIELD_NAMES).rename_axis(index=None)


def _mean_of(values):
    return sum(values.values()) / len(values)


def joint_scores(findings):
    """Δ and cost of joint training's variants, beside plain joint training and the paper's realignments.

    Parameters
    ----------
    findings : Findings
        Of the experiment `joint_variants`; others say what the main experiments cost.

    Returns
    -------
    DataFrame
        Columns `seed`, `name`, `delta` and the keys of `COSTS`; what needs experts also has its cost with
        theirs.
    """

    def rows_of(details):
        for row in details["variants"]:
            name = f"Joint, {BALANCES.get(row['name'], row['name'])}"
            yield row["cost"] | {"name": name, "metrics": row["metrics"]}

    costs = costs_of(findings.all_records).drop(columns="parameters")
    experts = experts_together(costs_of(findings.all_records)).drop(columns="parameters")
    beside = []
    for row in costs[costs.model.isin(BESIDE_JOINT)].to_dict("records"):
        delta = findings.frame.loc[(row["model"], row["seed"]), "printed"]
        row |= {"name": MODELS[row["model"]], "delta": delta}
        if row["model"].startswith("task_arithmetic"):
            own = experts.loc[row["seed"]]
            row |= {f"all {quantity}": row[quantity] + own[quantity] for quantity in own.index}
        beside.append(row)
    chosen = chosen_balance(findings)
    found = [with_deltas(findings, rows_of), pd.DataFrame(beside), chosen]
    return pd.concat([rows for rows in found if len(rows)])


def chosen_balance(findings):
    """Δ of the way to balance the tasks, equal weights among them, that is best on the validation split.

    It is what one would report without looking at the test split. Columns `seed`, `name`, `delta`; empty
    unless equal weights were scored on the validation split, too.
    """
    tasks, rows = tasks_of(findings.dataset), []
    experts, equal = (on_validation(findings.all_records, model) for model in ("expert", "joint"))
    for record in findings.records:
        seed, ways = record["seed"], [row for row in record["details"]["variants"] if row["name"] in BALANCES]
        if seed in equal:
            tried = [(equal[seed], findings.frame.loc["joint", seed])]
            tried += [(row["val"], row["metrics"]) for row in ways]
            best = max(tried, key=lambda own, seed=seed: mean_score(tasks, own[0], experts[seed]))
            delta = delta_printed(tasks, best[1], findings.frame.loc["expert", seed])
            rows.append({"seed": seed, "name": CHOSEN, "delta": delta})
    return pd.DataFrame(rows if len(rows) == len(findings.records) else [])


def joint_table(findings):
    """Mean ± standard deviation over seeds of Δ, and mean costs, as text, best first; see `joint_scores`."""
    groups = joint_scores(findings).groupby("name")
    table = pd.DataFrame({"Δ printed, %": groups.delta.agg(spread)})
    for column, name in COSTS.items():
        table[name] = groups[column].mean().map(lambda mean: "" if pd.isna(mean) else f"{mean:,.0f}")
    return table.loc[groups.delta.mean().sort_values(ascending=False).index].rename_axis(index=None)


def joint_figure(scores):
    """Δ of joint training's variants and of realignment: mean and range over seeds, one panel a data set.

    Parameters
    ----------
    scores : dict of str to DataFrame
        By data set, see `joint_scores`.

    Returns
    -------
    Figure
        Rows are ordered by the mean over data sets; colours are those of joint training and of realignment.
    """
    rows = pd.concat([own.assign(dataset=TITLES[dataset]) for dataset, own in scores.items()])
    rows["kind"] = rows.name.str.extract("(heads|representation)$")[0].fillna("joint")
    palette = {kind: METHOD_STYLES[kind][0] for kind in ("joint", *REALIGNMENTS)}
    means = rows.groupby(["dataset", "name"]).delta.mean().groupby("name").mean()
    grid = sns.catplot(
        rows, kind="point", x="delta", y="name", col="dataset", order=means.sort_values().index[::-1],
        hue="kind", palette=palette, errorbar=("pi", 100), linestyle="none",
        legend=False, sharex=False, height=3.2, aspect=0.8,
    )  # fmt: skip
    return grid.set_axis_labels("Δ printed, %", "").set_titles("{col_name}").figure
