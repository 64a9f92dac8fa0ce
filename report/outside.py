"""What others measured when they merged models of several outputs, from `book/outside_numbers.json`.

Every number there was read at the repository, commit and path beside it. Nothing here but arithmetic on it.
"""

from types import SimpleNamespace

import pandas as pd

from report.notebooks import ROOT
from report.paper import paper_deltas
from report.tables import MODELS, spread
from simo.files import read_json
from simo.performance import delta_printed, normalised_performance

BESIDE = ["joint", "average", "task_arithmetic", "ties", "tall_mask"]
BESIDE += ["task_arithmetic+heads", "task_arithmetic+representation"]


def read_outside():
    """Read others' numbers.

    Returns
    -------
    dict of str to dict
        By study: `title`; `column`, its name beside the paper's where its data set is NYUv2; `source`, with
        `repository`, `commit`, `path` and `place`; `metrics`, by task the `metric` and whether
        `higher_is_better`; `rows`, by model the metric by task as printed. A model that the book has as well
        goes by its name in `report.tables.MODELS`; `expert` are the study's own.
    """
    return read_json(ROOT / "book" / "outside_numbers.json")


def outside_deltas(study):
    """Δ printed of a study's models, in per cent relative to its own experts: a Series.

    Parameters
    ----------
    study : dict
        See `read_outside`.
    """
    tasks, rows = _tasks(study), study["rows"]
    deltas = {
        name: delta_printed(tasks, values, rows["expert"])
        for name, values in rows.items()
        if name != "expert"
    }
    return pd.Series(deltas)


def outside_table(study):
    """A study's metrics as printed, with their percentage of its experts', and Δ: a DataFrame of text."""
    deltas, table = outside_deltas(study), {}
    for name, values in study["rows"].items():
        row = {}
        for task in _tasks(study):
            percent = 100 * normalised_performance(
                task, values[task.name], study["rows"]["expert"][task.name]
            )
            row[task.name, study["metrics"][task.name]["metric"]] = f"{values[task.name]} ({percent:.1f})"
        row["Δ_MTL, %", "printed"] = f"{deltas[name]:+.1f}" if name in deltas else ""
        table[MODELS.get(name, name)] = row
    return pd.DataFrame.from_dict(table, orient="index")


def source_line(study):
    """Where a study's numbers were read, as Markdown with a link to the very commit."""
    source = study["source"]
    address = f"https://github.com/{source['repository']}/blob/{source['commit']}/{source['path']}"
    return (
        f"Source: [{source['repository']}, {source['path']}]({address}), {source['place']}, "
        f"commit {source['commit'][:7]}."
    )


def side_by_side(studies, pages):
    """Δ printed on NYUv2: the paper's, others', and of pages; each relative to its own experts.

    Parameters
    ----------
    studies : dict
        See `read_outside`; those with a `column` count.
    pages : sequence of Page
        Of NYUv2; those without records are left out.

    Returns
    -------
    DataFrame
        Of text, one row a model, empty where it was not measured.
    """
    columns = {"paper, ViT-B/14, linear heads": paper_deltas("nyuv2", pages[0].paper).map("{:+.1f}".format)}
    for study in studies.values():
        if "column" in study:
            columns[study["column"]] = outside_deltas(study).map("{:+.1f}".format)
    for page in pages:
        if page.records:
            own = page.frame.printed.groupby("model").agg(spread)
            columns[f"ours, {page.name}, {page.heads} heads"] = own
    known = [name for column in columns.values() for name in column.index]
    others = [name for name in dict.fromkeys(known) if name not in MODELS]
    table = pd.DataFrame(columns).reindex([*BESIDE, *others]).fillna("")
    return table.rename(index=MODELS)


def _tasks(study):
    """The study's tasks, with what Δ asks of one: a name and a direction."""
    return [
        SimpleNamespace(name=name, higher_is_better=metric["higher_is_better"])
        for name, metric in study["metrics"].items()
    ]
