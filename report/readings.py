"""One sentence of reading for each of the paper's figures that is drawn again, computed from what it shows.

Where ours and the paper's disagree, the sentence says so. Means over seeds; empty where nothing was run.
"""

from itertools import permutations
from statistics import fmean

import numpy as np
import pandas as pd

from report import beyond, tables
from report.display import of_seeds, over_seeds, real_minus
from report.evidence import EFFECT, block_coefficients
from report.overview import TITLES
from report.paper import paper_curves
from report.records import load_pictures
from simo.performance import delta_printed
from simo.tasks import tasks_of

NAMED = 3  # of the curves that disagree, those that are named
FLAT = 5  # points: a mean that falls by less hardly depends on the number of tasks


def relationships(*pages):
    """Which curves of another task's head move against the paper's, and where they start (Figures 3, 5, 6).

    Parameters
    ----------
    *pages : Page
        Of one data set.

    Returns
    -------
    str
        Markdown, a paragraph a page. Curves move against each other if one gains and one loses by more than
        `EFFECT` points from λ = 0 to 1.
    """
    return "\n\n".join(_relationships(page) for page in pages if page.curves())


def _relationships(page):
    paper = paper_curves(page.dataset, page.paper)
    names, seeds = [task.name for task in tasks_of(page.dataset)], page.curves()

    def ends(along, head):
        theirs = [paper[along][head][x] for x in (0.0, 1.0)]
        return theirs, [fmean(curves[along][head][x] for curves in seeds) for x in (0.0, 1.0)]

    pairs = list(permutations(names, 2))
    change = {pair: [100 * (b - a) for a, b in ends(*pair)] for pair in pairs}
    against = [p for p in pairs if change[p][0] * change[p][1] < 0 and min(map(abs, change[p])) > EFFECT]
    against.sort(key=lambda pair: -abs(change[pair][0] - change[pair][1]))
    listed = "; ".join(
        f"{head} along the vector of {along}, {_walk(ours)} (paper {_walk(theirs)})"
        for along, head in against[:NAMED]
        for theirs, ours in [ends(along, head)]
    )
    verb = "moves" if len(against) == 1 else "move"
    text = f"Of the {len(pairs)} curves of another task's head, {len(against)} {verb} against the paper's by "
    text += "over a point"
    text += f", most of all {listed}." if len(against) > NAMED else f": {listed}." if against else "."
    starts = {name: [end[0] for end in ends(name, name)] for name in names}
    far = max(names, key=lambda name: abs(starts[name][0] - starts[name][1]))
    text += (
        f" Starting points differ most for {far}, whose head keeps {_short(starts[far][1])} of its expert on "
        f"the pretrained encoder (paper {_short(starts[far][0])})."
    )
    return _where(page) + text


def lines(*pages):
    """What the lines of a figure of relationships are of, for its caption; see `Page.relationships`."""
    shown = [page for page in pages if page.curves()]
    dashes = ("solid ", "dashed ", "dotted ")[: len(shown)] if len(shown) > 1 else [""] * len(shown)
    seeds = [len(page.curves()) for page in shown]
    drawn = zip(dashes, shown, seeds, strict=True)
    text = "; ".join(f"{each}{page.name}, {over_seeds(count)}" for each, page, count in drawn) or "not run"
    return text + ", bands their range" * any(count > 1 for count in seeds)


def subsets(page):
    """Whether performance goes on falling from two merged tasks to all of them (Figure 1)."""
    points = page.derive("subsets", tables.subset_scores)
    if points.empty:
        return ""
    theirs = {int(size): value for size, value in page.paper["fig1"]["taskonomy_mean"].items()}
    ours = {1: 1.0, **points.groupby("size").performance.mean()}
    last = max(ours)
    falls = 100 * (ours[2] - ours[last])
    most = "most, as in the paper" if 100 * (1 - ours[2]) > falls else "less than the others together"
    word = "hardly falls any further" if falls < FLAT else "goes on falling"
    return (
        f"{_where(page)}The second task costs {most}: two merged tasks keep {_short(ours[2])} "
        f"(paper {_short(theirs[2])}). From there to {last} tasks the mean {word}, to {_short(ours[last])}; "
        f"the paper's falls to {_short(theirs[last])}.{page.share('subsets')}"
    )


def adapters(adapted, whole):
    """How good experts that are adapters are, and how far they move, beside those trained as a whole.

    Parameters
    ----------
    adapted, whole : Page
        Of one data set.

    Returns
    -------
    str
        Markdown; empty where no seed has both.
    """
    if not (adapted.records and whole.records):
        return ""
    tasks, own, other = tasks_of(whole.dataset), adapted.frame.loc["expert"], whole.frame.loc["expert"]
    seeds = own.index.intersection(other.index)
    if not len(seeds):
        return ""
    deltas = pd.Series([delta_printed(tasks, own.loc[seed], other.loc[seed]) for seed in seeds])
    trained, all_of_it = (
        costs.loc[costs.model == "expert", "parameters"].mean()
        for costs in (tables.costs_of(page.records) for page in (adapted, whole))
    )
    text = (
        f"{_where(adapted)}These experts train {100 * trained / all_of_it:.0f} % of the parameters, heads "
        f"included; relative to experts trained as a whole, their Δ is {real_minus(tables.spread(deltas))} %."
    )
    vectors = [tables.vectors(page.records) for page in (adapted, whole)]
    if all(vectors):
        (cosines, lengths), (others, shorter) = (each.values() for each in vectors)
        text += (
            f" Their task vectors have {lengths} % of the pretrained encoder's length, where the others have "
            f"{shorter} %, and the cosine of two is {cosines} ({others})."
        )
    return text


def coefficients(*pages):
    """How many of AdaMerging's coefficients are 0, and which blocks they take (Figure 2)."""
    learned = [(page, page.derive("adamerging", _learned)) for page in pages]
    return "\n\n".join(_coefficients(page, found) for page, found in learned if found)


def _learned(findings):
    return [block_coefficients(record["details"]["coefficients"]) for record in findings.records]


def _coefficients(page, learned):
    means = pd.concat([table.groupby(level=0).mean() for table in learned]).groupby(level=0).mean()
    zero = fmean(100 * table.eq(0).to_numpy().mean() for table in learned)
    middles = (means.mul(means.index + 1, axis=0).sum() / means.sum()).sort_values()
    listed = ", ".join(f"{task} at {middle:.1f}" for task, middle in middles.items())
    word = "most, as it looks in the paper's" if zero > 50 else "fewer than half; in the paper's map many are"
    return (
        f"{_where(page)}Inside the blocks {zero:.0f} % are exactly 0: {word}. Each task's middle, counted in "
        f"blocks from 1 to {means.index.max() + 1}: {listed}."
    )


def unmerged(page):
    """Say on how many seeds the validation split chose to merge nothing; empty if on none."""
    parts = []
    for method, chosen in tables.alphas(page.records).items():
        if (zero := int((chosen == 0).sum())) and method in ("task_arithmetic", "ties"):
            parts.append(f"{tables.MODELS[method]} ({of_seeds(zero, int(chosen.count()))})")
    if not parts:
        return ""
    return (
        f"*Nothing was merged by {' and '.join(parts)}: of all α the validation split chose 0, which leaves "
        "the pretrained encoder. Such rows, realigned or not, say what heads and adapters make of that.*"
    )


def at_the_edge(page):
    """Name the ways to merge for which the largest α that was tried was the best; empty if there are none."""
    chosen = [
        (record["experiment"].removeprefix("merge_"), record["details"]["alpha"], record["details"]["scan"])
        for record in page.records
        if record["experiment"].startswith("merge_")
    ]
    masks = [record["details"] for record in page.records if record["experiment"] == "masks"]
    chosen += [("consensus", own["alpha"], own["alpha_scan"]) for own in masks]
    rows = [
        (model, len(scan) > 1 and alpha == max(row["alpha"] for row in scan)) for model, alpha, scan in chosen
    ]
    counts = (
        pd.DataFrame(rows, columns=["model", "last"])
        .groupby("model", sort=False)["last"]
        .agg(["sum", "size"])
    )
    parts = [
        f"{tables.MODELS[model]} ({of_seeds(last, count)})"
        for model, last, count in counts.itertuples()
        if last
    ]
    if not parts:
        return ""
    return f"*Of all α that were tried the largest was chosen for {' and '.join(parts)}: more may be better.*"


def empty_tasks(page):
    """Name the tasks at which a constant prediction is as good as the experts, to 5 %; empty if at none."""
    if "constant" not in page.frame.index:
        return ""
    constant = page.frame.loc["constant"].filter(like=" %").mean()
    names = [name.removesuffix(" %") for name, share in constant.items() if share > 95]
    if not names:
        return ""
    return (
        f"*At {', '.join(names)} a constant prediction is as good as the experts: nothing can be lost or "
        "repaired there, and Δ, a mean over all tasks, is that much less telling.*"
    )


def closed_form_lead(page, labelled):
    """How far closed form ends above a labelled way to realign, from each number of images; or "not run"."""
    if not page.ran("closed_form"):
        return "not run"
    curves = page.derive("closed_form", beyond.realignment_curves)
    means = curves.groupby(["method", "images"]).delta.mean().unstack("images")
    leads = (means.loc["closed form"] - means.loc[labelled]).dropna()
    listed = [f"{lead:+.1f} from {images}" for images, lead in leads.items()]
    return real_minus(f"{', '.join(listed)} ({over_seeds(curves.seed.nunique())})")


def neighbours(*pages):
    """The best four of closed form and its neighbours, with Δ and encoder passes; or "not run"."""
    parts = []
    for page in [page for page in pages if page.ran("neighbours")]:
        rows = page.derive("neighbours", beyond.neighbour_scores)
        ranked = rows.groupby("name").agg({"delta": "mean", "passes": "first"}).sort_values("delta")[::-1]
        listed = [
            f"{name} {delta:+z.1f}" + f" ({passes} encoder passes)" * (passes > 1)
            for name, delta, passes in ranked.head(4).itertuples()
        ]
        parts.append(f"{page.title} ({over_seeds(rows.seed.nunique())}): {', '.join(listed)}")
    return real_minus("; ".join(parts)) or "not run"


def unlabelled_alpha(*pages):
    """What closed form reaches at the α of its least residual, beside those of labels; or "not run"."""
    parts = []
    for page in pages:
        if page.ran("unlabelled_alpha"):
            chosen = page.derive("unlabelled_alpha", beyond.chosen_alphas)
            own = chosen[chosen.method == "task_arithmetic"].groupby("rule").delta.mean()
            parts.append(f"{_title(page)} {own.residual:+z.1f} ({own.after:+z.1f}; {own.before:+z.1f})")
    if not parts:
        return "not run"
    what = "Δ of task arithmetic after it, in brackets by labels that are asked after it; before"
    return real_minus(f"{what}: {', '.join(parts)}")


def unlabelled_regret(*pages):
    """What the α of the least residual brings against that of labels, least and most; or nothing."""
    ran = [page for page in pages if page.ran("unlabelled_alpha")]
    if not ran:
        return ""
    found = {page.study: page.derive("unlabelled_alpha", beyond.chosen_alphas) for page in ran}
    rows = pd.concat(found, names=["study"]).reset_index("study")
    names = ", ".join(map(_title, ran))

    def gained(rows, chooser="residual"):
        deltas = rows.pivot(index=["study", "method", "seed"], columns="rule", values="delta")
        least = [deltas[chooser] - deltas[rule] for rule in ("before", "after")]
        ends = ([*dict.fromkeys(f"{end:+.1f}" for end in (own.min(), own.max()))] for own in least)
        return len(deltas), *map(" to ".join, ends)

    (count, before, after), (both, both_before, both_after) = (
        gained(rows[which]) for which in (rows.method != beyond.EITHER, rows.method == beyond.EITHER)
    )
    text = (
        f"Over {count} choices ({names}; two methods, each seed) the α of the least residual changes Δ "
        f"by {before} points against the one that labels choose before realignment, and by {after} against "
        "the one that they choose after closed form. Where the rules choose the method, too "
        f"({both} choice{'s' * (both > 1)}), it is {both_before} and {both_after} against theirs."
    )
    choices = rows.pivot(index=["study", "method", "seed"], columns="rule", values="choice")
    if (choices.capped != choices.residual).any():
        _, before, after = gained(rows[rows.method != beyond.EITHER], "capped")
        text += (
            " With each task's residual counted as at most 1, a rule that was thought of when this had "
            f"failed, it is {before} and {after} against the labels' choices."
        )
    return real_minus(text)


def residual_by_task(*pages):
    """Say whether the task of the largest residual is the one that loses most; nothing without records."""
    ran = [page for page in pages if page.ran("unlabelled_alpha")]
    if not ran:
        return ""
    rows = {_title(page): page.derive("unlabelled_alpha", beyond.residual_by_task) for page in ran}
    told, orders = pd.concat(rows).told, [f"{name} {own.order.mean():+.1f}" for name, own in rows.items()]
    return real_minus(
        "Which task suffers is another question: that of the largest residual loses most after closed form "
        f"in {told.sum()} of {len(told)} of these choices. The rank correlation over tasks of residual and "
        f"performance, −1 if it told, is in the mean {', '.join(orders)}."
    )


def pictures(page):
    """How far the pictured predictions are from the truth, beside the experts' (Figure 4)."""
    if not page.pictures_file.exists():
        return ""
    shown = load_pictures(page.pictures_file)
    rows = {"joint": "joint training", "merged": "the merged model"}
    rows |= {"heads": "with realigned heads", "representation": "with realigned representation"}
    text = []
    for row, name in rows.items():
        times = [_error(shown, row, task) / _error(shown, "expert", task) for task in tasks_of(page.dataset)]
        text.append(f"{name} {min(times):.1f} to {max(times):.1f}")
    return (
        f"{_where(page)}Mean absolute error on these images in multiples of the expert's, least to most over "
        f"the tasks: {'; '.join(text)}."
    )


def _error(shown, row, task):
    """Mean absolute error of a row's pictures `(N, H, W, C)`, where there is truth."""
    truth, prediction = (shown[f"{each}/{task.name}"].astype(float) for each in ("truth", row))
    return float(np.abs(truth - prediction)[(truth != 0).any(axis=-1)].mean())


def _title(page):
    return TITLES[page.study] + " [fixture]" * page.fixture


def _where(page):
    return f"*{page.name[0].upper()}{page.name[1:]}*: "


def _walk(values):
    return " to ".join(_short(value) for value in values)


def _short(value):
    """Two decimals, as figures have them: .65."""
    return f"{value:.2f}".removeprefix("0")
