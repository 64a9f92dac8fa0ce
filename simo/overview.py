"""Tables over all data sets: the main rows, the claims ledger, and which record is behind which result."""

from fnmatch import fnmatch

import pandas as pd

from simo import tables
from simo.claims import CLAIMS
from simo.paper import PAPER_ROWS, PAPER_TABLES

TITLES = {"nyuv2": "NYUv2", "cityscapes": "Cityscapes", "taskonomy": "Taskonomy"}
# the paper's tables and figures: where they are drawn, and the experiments that their numbers come from
EXPERTS = ("expert_*",)
TABLE = (*EXPERTS, "joint", "merge_*", "realign_*", "masks", "adamerging", "released", "control")
RESULTS = {
    "Table 1": ("nyuv2", TABLE),
    "Table 2": ("cityscapes", TABLE),
    "Table 3": ("taskonomy", TABLE),
    "Table 4": ("taskonomy", (*EXPERTS, "joint", "merge_task_arithmetic", "realign_task_arithmetic")),
    "Figure 1": ("taskonomy", (*EXPERTS, "subsets")),
    "Figure 2": ("nyuv2", (*EXPERTS, "adamerging")),
    "Figure 3": ("cityscapes", (*EXPERTS, "relationships")),
    "Figure 4": (
        "taskonomy",
        (*EXPERTS, "joint", "merge_task_arithmetic", "realign_task_arithmetic", "qualitative"),
    ),
    "Figure 5": ("nyuv2", (*EXPERTS, "relationships")),
    "Figure 6": ("taskonomy", (*EXPERTS, "relationships")),
}


def overview(pages):
    """Δ printed of the main rows on several data sets, the paper's beside ours.

    Parameters
    ----------
    pages : sequence of Page

    Returns
    -------
    DataFrame
        Of text; columns are pairs (data set, "paper" or "ours").
    """
    rows = {}
    for model, name in PAPER_ROWS.items():
        if model in ("expert", "tall_mask"):  # no Δ, and printed for one data set only
            continue
        row = {}
        for page in pages:
            title, numbers = TITLES[page.dataset], page.numbers()
            row[title, "paper"] = f"{page.paper[PAPER_TABLES[page.dataset]][name][-1]:.1f}"
            row[title, "ours"] = numbers[f"delta {model}"]
        rows[tables.MODELS[model]] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def ledger(pages):
    """Every claim with its verdict on each data set, the paper's own number beside.

    Parameters
    ----------
    pages : sequence of Page
        One a data set, all of one scale.

    Returns
    -------
    DataFrame
        Of text, one row a claim: `claim`, `in the paper`, and one column a data set such as
        "holds: -22.9, -21.0 (paper: holds, -27.5)"; empty where a claim is not about the data set.
    """
    judged = {TITLES[page.dataset]: page.judge() if page.records else None for page in pages}
    rows = {}
    for claim in CLAIMS:
        rows[claim.name] = {"claim": claim.sentence, "in the paper": claim.source}
        for page in pages:
            title = TITLES[page.dataset]
            about = not claim.datasets or page.dataset in claim.datasets
            mark = " [fixture]" if page.fixture else ""
            rows[claim.name][title] = _verdict(claim, judged[title]) + mark if about else ""
    return pd.DataFrame.from_dict(rows, orient="index")


def _verdict(claim, judged):
    if judged is None:
        return "not run"
    row = judged.loc[claim.name]
    numbers = [row[column] for column in judged if column.startswith("seed ") and row[column] == row[column]]
    ours = f"{row.verdict}: {', '.join(f'{number:.1f}' for number in numbers)}" if numbers else row.verdict
    if row.paper != row.paper:  # NaN: the paper has no such number
        return ours
    return f"{ours} (paper: {'holds' if claim.holds(row.paper) else 'fails'}, {row.paper:.1f})"


def results_index(pages, profile):
    """Which notebooks, parameters and records are behind each table and figure, and what they cost.

    Parameters
    ----------
    pages : sequence of Page
        One a data set.
    profile : str
        Folder of parameters and records.

    Returns
    -------
    DataFrame
        Of text, one row a result.
    """
    by_name = {page.dataset: page for page in pages}
    rows = {}
    for result, (dataset, patterns) in RESULTS.items():
        page = by_name[dataset]
        used = [r for r in page.records if any(fnmatch(r["experiment"], pattern) for pattern in patterns)]
        seeds = {record["seed"] for record in used}
        minutes = sum(record["provenance"]["seconds"] for record in used) / 60 / max(1, len(seeds))
        mark = " [fixture]" if page.fixture else ""
        devices = {record["provenance"]["device"] for record in used}
        rows[result] = {
            "page": f'<a href="{dataset}.html">{TITLES[dataset]}</a>',
            "computed by": ", ".join(
                sorted({f'<a href="{n}.html">{n}</a>' for n in (r["provenance"]["notebook"] for r in used)})
            ),
            "parameters": f"notebooks/params/{profile}/{dataset}.yaml",
            "records": f"records/{profile}/{dataset}/seed*: " + ", ".join(patterns),
            "minutes a seed": f"{minutes:.1f}, {', '.join(sorted(devices))}{mark}" if used else "not run",
        }
    return pd.DataFrame.from_dict(rows, orient="index")
