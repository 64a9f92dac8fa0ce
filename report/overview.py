"""Tables over all data sets: main rows, claims, which record is behind which result, records' origin."""

from datetime import datetime, timedelta
from fnmatch import fnmatch

import pandas as pd

from report import tables
from report.claims import CLAIMS
from report.paper import paper_costs, paper_deltas
from report.records import commit_of

TITLES = {"nyuv2": "NYUv2", "cityscapes": "Cityscapes", "taskonomy": "Taskonomy"}
TITLES["cityscapes_dpt"] = "Cityscapes, DPT heads"
TITLES["nyuv2_lora"] = "NYUv2"  # with other experts, which the page's name says
TITLES["nyuv2_lite0"] = "NYUv2"  # with another encoder, which the page's name says
TITLES["taskonomy_photos"] = "Taskonomy's tasks"  # on NYUv2's photographs
PAPER_HEADS = {"nyuv2": "linear", "cityscapes": "DPT", "taskonomy": "DPT"}
# what a merged encoder must beat: the untouched one, realigned in the same way; the paper has no such rows
WITHOUT_MERGING = ("pretrained+heads", "pretrained+representation")
# pages of the book that draw others than the study of their name
DRAWN_BY = {"photos_gpu/nyuv2": "nyuv2_variants", "photos/nyuv2_lite0": "nyuv2_variants"}
DRAWN_BY["miniature/nyuv2_lora"] = "wider_field"
# the paper's tables and figures: where they are drawn, and the experiments that their numbers come from
EXPERTS = ("expert_*",)
TABLE = (*EXPERTS, "joint", "merge_*", "realign_*", "masks", "adamerging", "released", "control*")
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
    """Δ printed of the main rows of several pages, the paper's once a data set beside them.

    Parameters
    ----------
    pages : sequence of Page
        Those of a data set next to each other.

    Returns
    -------
    DataFrame
        Of text; columns are triples of a data set, "paper" or the name of a page, and the kind of heads.
    """
    columns = {}
    for page in pages:
        title, numbers = TITLES[page.dataset], page.numbers()
        printed = paper_deltas(page.dataset, page.paper).drop("tall_mask", errors="ignore")
        paper = {tables.MODELS[m]: f"{delta:.1f}" for m, delta in printed.items()}
        columns.setdefault((title, "paper", f"{PAPER_HEADS[page.dataset]} heads"), paper)
        own = {tables.MODELS[m]: numbers[f"delta {m}"] for m in printed.index}
        own |= {f"{tables.MODELS[m]}, ours": numbers[f"delta {m}"] for m in WITHOUT_MERGING}
        columns[title, page.name, f"{page.heads} heads"] = own
    return pd.DataFrame(columns).fillna("")


def effort(pages):
    """Images and steps of realigning TA in per cent of joint training's, as parameter files set them.

    Parameters
    ----------
    pages : sequence of Page

    Returns
    -------
    DataFrame
        Of text, with the columns of `overview`, the paper's where it says; steps of heads are summed.
    """
    columns = {}
    for page in pages:
        title = TITLES[page.dataset]
        if page.dataset == "taskonomy":  # the paper's Table 4
            columns[title, "paper", f"{PAPER_HEADS[page.dataset]} heads"] = _shares(paper_costs(page.paper))
        costs = tables.costs_of(page.records).groupby("model").first().to_dict("index")  # alike on all seeds
        columns[title, page.name, f"{page.heads} heads"] = _shares(costs)
    return pd.DataFrame(columns)


def _shares(costs):
    """Column of `effort`: costs of realigned task arithmetic by those of joint training, as text."""
    kinds = {"images": ("heads", "samples"), "steps, heads": ("heads", "steps")}
    kinds |= {"steps, representation": ("representation", "steps")}
    column = {}
    for row, (kind, quantity) in kinds.items():
        own, joint = costs.get(f"task_arithmetic+{kind}"), costs.get("joint")
        column[row] = f"{100 * own[quantity] / joint[quantity]:.0f} %" if own and joint else "not run"
    return column


def drawn_by(profile, study):
    """Which page of the book draws a study's records."""
    own = study if study == "cityscapes_dpt" else study.split("_")[0]
    return DRAWN_BY.get(f"{profile}/{study}", own)


def ledger(pages):
    """Every claim with its verdict on each data set, the paper's own beside.

    Parameters
    ----------
    pages : sequence of Page

    Returns
    -------
    DataFrame
        Of HTML, one row a claim: `claim` with its unit, `in the paper`, and one column a study with the
        verdict, linked to the page, the numbers of the seeds (– where there is none), the 95 % interval of
        their mean where they do not settle it, and the paper's verdict and number; empty where a claim is
        not about the data set.
    """
    rows = {
        claim.name: {"claim": f"{claim.sentence} <em>({claim.unit})</em>", "in the paper": claim.source}
        for claim in CLAIMS
    }
    titles = [TITLES[page.study] for page in pages]
    for page in pages:
        judged = page.judge() if page.records else None
        title = _title(page, titles)
        for claim in CLAIMS:
            about = not claim.datasets or page.dataset in claim.datasets
            rows[claim.name][title] = _verdict(claim, page, judged) if about else ""
    return pd.DataFrame.from_dict(rows, orient="index")


# the five on the first page
MAIN_CLAIMS = [
    f"task_arithmetic-{name}"
    for name in (
        "collapses",
        "heads-recover",
        "representation-at-least-heads",
        "representation-reaches-joint",
        "beats-pretrained",
    )
]
# of captions, with a place below the pages
VARIED = '<a href="../../book/reproduce.html#what-a-seed-varies">what a seed varies</a>'
CLOSE = f"Close: Student's 95 % interval of the seeds' mean, where it crosses the criterion ({VARIED})."
VERDICTS = ("holds", "fails", "mixed", "not applicable", "set by us", "not run")


def kind_of(verdict):
    """Which of `VERDICTS` a verdict is; *mixed* is what not all seeds that it applies to agree on."""
    word = verdict.split(",")[0]
    return "mixed" if word.startswith("holds on") else word


def marked(verdict, link=""):
    """A verdict as HTML, whose class gives it a colour and a sign (`book/_static/simo.css`)."""
    named = f'class="verdict {kind_of(verdict).replace(" ", "-")}"'
    return f'<a {named} href="{link}">{verdict}</a>' if link else f"<span {named}>{verdict}</span>"


def verdict_counts(pages):
    """How many claims hold, fail and so on: one row a page with records.

    Parameters
    ----------
    pages : sequence of Page

    Returns
    -------
    DataFrame
        Columns `VERDICTS`, see `kind_of`.
    """
    rows, titles = {}, [TITLES[page.study] for page in pages]
    for page in (page for page in pages if page.records):
        words = page.judge().verdict.map(kind_of)
        title = _title(page, titles) + " [fixture]" * page.fixture
        rows[title] = {kind: int((words == kind).sum()) for kind in VERDICTS}
    return pd.DataFrame.from_dict(rows, orient="index")


def _title(page, titles):
    """The study's title, with the page's name where two pages have this title, and for photographs."""
    named = titles.count(TITLES[page.study]) > 1 or page.profile.startswith("photos")
    return TITLES[page.study] + f", {page.name}" * named


def _verdict(claim, page, judged):
    if judged is None:
        return marked("not run")
    row = judged.loc[claim.name]
    values = [row[name] for name in judged if name.startswith("seed ")]
    numbers = [f"{value:z.1f}" if value == value else "–" for value in values]  # NaN: none of this seed
    drawn = page.profile != "paper"  # of which the pages show Δ only, unless the book is of that scale
    place = page.address("claims") if drawn else "claims"
    text = marked(row.verdict, f"{drawn_by(page.profile, page.study)}.html#{place}")
    text += f": {', '.join(numbers)}" if {*numbers} != {"–"} else ""
    text += f"<br>close: {row.close}" if row.close else ""
    text += " [fixture]" if page.fixture else ""
    if row.paper == row.paper:  # not NaN: the paper has such a number
        text += f"<br>paper: {marked('holds' if claim.holds(row.paper) else 'fails')} {row.paper:.1f}"
    return text


def results_index(pages):
    """Which notebooks, parameters and records are behind each table and figure, and what they cost.

    Parameters
    ----------
    pages : sequence of Page
        One a data set; results of data sets without a page are left out.

    Returns
    -------
    DataFrame
        Of HTML, one row a result.
    """
    by_name = {page.dataset: page for page in pages}
    rows = {}
    for result, (dataset, patterns) in RESULTS.items():
        if dataset not in by_name:
            continue
        page = by_name[dataset]
        names = {record["experiment"] for record in page.records}
        found = [pattern for pattern in patterns if any(fnmatch(name, pattern) for name in names)]
        # a table may lack rows; a figure that lacks an experiment is not drawn
        patterns = found if patterns is TABLE or found == [*patterns] else []
        used = [r for r in page.records if any(fnmatch(r["experiment"], pattern) for pattern in patterns)]
        notebooks = sorted({record["provenance"]["notebook"] for record in used})
        rows[result] = {
            "page": f'<a href="{dataset}.html">{TITLES[dataset]}</a>',
            "computed by": ", ".join(f'<a href="../compute/{name}.html">{name}</a>' for name in notebooks),
            "parameters": f"notebooks/params/{page.profile}/{page.study}.yaml" if used else "",
            "records": f"{page.profile}/{page.study}/seed*/: {', '.join(patterns)}" if used else "",
            "minutes a seed": _minutes(used) + (" [fixture]" if page.fixture else ""),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _minutes(records):
    """Wall time of all notebooks together, each its mean over seeds, on CPUs and on each GPU that ran all."""
    if not records:
        return "not run"
    rows = [
        (each["provenance"]["device"], each["experiment"], each["provenance"]["seconds"]) for each in records
    ]
    ran = pd.DataFrame(rows, columns=["device", "experiment", "seconds"])
    kinds = [own for _, own in ran.groupby(tables.kinds_of_devices(ran.device))]
    whole = [own for own in kinds if own.experiment.nunique() == ran.experiment.nunique()]
    minutes = [
        f"{own.groupby('experiment').seconds.mean().sum() / 60:.1f} on {', '.join(sorted(set(own.device)))}"
        for own in whole or kinds
    ]
    resumed = any(record["provenance"].get("resumed") for record in records)
    return f"{'over ' if resumed else ''}{'; '.join(minutes)}"


def manifest(collections):
    """From which commits, machines and versions collections of records are, and when they were computed.

    It is drawn from what each record says of itself, and stored nowhere.

    Parameters
    ----------
    collections : dict of str to sequence of dict
        Records by the name of their collection, such as the folder.

    Returns
    -------
    DataFrame
        Of text and numbers, one row a collection, commit, machine and set of versions: how many `records`,
        the `hours` of their notebooks one after the other ("over" where an interrupted run went on), and the
        days (UTC) on which the first began and the last ended.
    """
    rows = []
    for name, records in collections.items():
        for made in (record["provenance"] for record in records):
            started = datetime.fromisoformat(made["started"])
            versions = ", ".join(f"{package} {version}" for package, version in made["versions"].items())
            what = {"records of": name, "commit": commit_of(made), "machine": made["device"]}
            what |= {"versions": versions, "seconds": made["seconds"], "resumed": made["resumed"]}
            rows.append(what | {"began": started, "ended": started + timedelta(seconds=made["seconds"])})
    grouped = pd.DataFrame(rows).groupby(["records of", "commit", "machine", "versions"], sort=False)
    table = grouped.agg(
        records=("seconds", "size"),
        hours=("seconds", lambda seconds: f"{seconds.sum() / 3600:.1f}"),
        resumed=("resumed", "any"),
        began=("began", lambda times: times.min().date().isoformat()),
        ended=("ended", lambda times: times.max().date().isoformat()),
    ).reset_index()
    table["hours"] = table.hours.where(~table.pop("resumed"), "over " + table.hours)
    return table[["records of", "records", "commit", "began", "ended", "hours", "machine", "versions"]]


def commits_of(records):
    """The commits that made some records; none where code was changed, or no commit is known."""
    made = [record["provenance"] for record in records]
    return {each["commit"] for each in made} if all(each["clean"] for each in made) else set()
