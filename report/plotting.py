"""Each figure of the book as a function of records; nothing is computed here that is not in them.

Figures are SVG without a background. A method has one colour everywhere, and so has a task; all reach a
contrast of 3 on white and on the dark theme's background. Lines and markers differ as well, so that figures
survive greyscale and colour blindness. What is ours is drawn in ink: dark or light, as the theme asks.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from matplotlib_inline.backend_inline import configure_inline_support
from pandas.api.types import is_integer_dtype

from report.overview import TITLES
from report.tables import MODELS

BLUE, ORANGE, GREEN, PINK, OCHRE = "#0f72c4", "#d55e00", "#00875f", "#c4509b", "#a37600"
TEAL, PURPLE, BROWN, GREY = "#1b8a9e", "#8560cc", "#99543a", "#7d7d7d"
INK, DARK_INK = "#24292f", "#ced6dd"  # of the light theme, and of the dark one
RED = "#c73e3e"
PAPER = PURPLE  # what the paper prints, beside ours in ink
TASK_STYLES = {
    "segmentation": (BLUE, "-", "o"),
    "depth": (ORANGE, "--", "s"),
    "normals": (GREEN, ":", "^"),
    "parts": (PINK, "-.", "D"),
    "disparity": (OCHRE, "--", "v"),
    "autoencoder": (BROWN, "-", "o"),
    "edges": (TEAL, "-.", "D"),
    "keypoints": (GREY, (0, (5, 1, 1, 1, 1, 1)), "v"),
}
METHOD_STYLES = {
    "merged": (ORANGE, "--", "s"),
    "task_arithmetic": (ORANGE, "--", "s"),
    "own heads": (ORANGE, "--", "s"),
    "as they are": (ORANGE, "--", "s"),  # merged features
    "ties": (OCHRE, "-", "D"),
    "heads": (BLUE, "-", "o"),
    "representation": (GREEN, ":", "^"),
    "the paper's adapter": (GREEN, ":", "^"),
    "merged + adapters": (GREEN, ":", "^"),
    "LoRA": (OCHRE, "-.", "v"),
    "closed form": (PINK, "-", "D"),
    "mapped linearly": (PINK, "-", "D"),
    "closed form + heads": (TEAL, (0, (5, 1, 1, 1, 1, 1)), "v"),
    "distillation": (GREY, "-.", "v"),
    "rotation": (TEAL, "--", "o"),
    "turned": (TEAL, "--", "o"),
    "scales": (OCHRE, ":", "s"),
    "scaled": (OCHRE, ":", "s"),
    "shift": (GREY, "-.", "^"),
    "shifted": (GREY, "-.", "^"),
    "one frozen decoder": (TEAL, "-", "o"),
    "pretrained": (GREY, ":", "v"),
    "joint": (GREY, "-", "P"),
    "experts": (INK, "-", "X"),
}
OTHER = (BROWN, "-", "*")  # a method or task that has no colour yet
LINES = ("-", (0, (4, 1.5)), ":")  # of one quantity from several sources


def set_style():
    """Fonts, grid and colours of all figures of the book; in a notebook they are SVG."""
    ink = {f"{part}.color": INK for part in ("text", "xtick", "ytick")}
    ink |= {f"axes.{part}color": INK for part in ("edge", "label", "title")}
    clear = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none")
    sns.set_theme(context="paper", style="ticks", font_scale=1.1, rc=ink | clear)
    plt.rcParams.update({"axes.grid": True, "grid.color": GREY, "grid.alpha": 0.25, "legend.frameon": False})
    plt.rcParams["svg.hashsalt"] = "simo"  # with no date in it, the same figure is the same file
    shell = get_ipython()
    if shell:
        configure_inline_support(shell, "inline")  # now: when it does so later, it sets its own formats
        formatters = shell.display_formatter.formatters
        formatters["image/png"].type_printers.pop(Figure, None)
        formatters["image/svg+xml"].for_type(Figure, to_svg)


def to_svg(figure):
    """A figure as SVG whose ink follows the reader's theme, which matplotlib has no words for."""
    rules = "".join(f'[style*="{key}: {INK}"]{{{key}:{DARK_INK}!important}}' for key in ("fill", "stroke"))
    style = f"@media (prefers-color-scheme: dark){{{rules}}}</style>"
    text = print_figure(figure, "svg", metadata={"Date": None})
    return text.replace("</style>", style, 1)


def idea_figure():
    """Draw the paper's idea: experts, merging, the misfit of features and heads, and the two fixes.

    Returns
    -------
    Figure
    """
    figure, axes = plt.subplots(figsize=(8.1, 4.3), layout="constrained")
    axes.set(xlim=(0, 16.4), ylim=(0, 8.6))
    axes.axis("off")

    def box(x, y, text, colour, width=1.9, height=0.9):
        patch = FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0.06",
            facecolor=colour + "33",
            edgecolor=colour,
        )
        axes.add_patch(patch)
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)

    def arrow(start, end, colour=GREY):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.2})

    axes.text(2.4, 8.2, "1  experts", ha="center", fontsize=10, weight="bold")
    axes.text(7.6, 8.2, "2  merged: features no longer fit", ha="center", fontsize=10, weight="bold")
    axes.text(13.6, 8.2, "3  realigned", ha="center", fontsize=10, weight="bold")
    for row, name in enumerate(("segmentation", "depth", "normals")):
        colour, y = TASK_STYLES[name][0], 6.4 - 2.3 * row
        box(0.2, y, f"encoder $θ_{row + 1}$", colour)
        box(3.0, y, f"head $φ_{row + 1}$", colour, 1.6)
        arrow((2.2, y + 0.45), (2.95, y + 0.45))
        axes.text(2.4, y - 0.42, name, ha="center", fontsize=8.5, color=colour)
        box(8.6, y, f"head $φ_{row + 1}$", colour, 1.6)
        arrow((4.75, y + 0.45), (5.5, 4.55), GREY)
        arrow((7.7, 4.55), (8.5, y + 0.45), RED)
        axes.text(10.55, y + 0.45, "✗", color=RED, ha="center", va="center", fontsize=13)
        box(14.6, y, f"head $φ_{row + 1}'$", colour, 1.6)
        arrow((13.8, 4.55), (14.55, y + 0.45), colour)
    box(5.6, 4.1, "$θ_0 + α\\,τ$", GREY, 2.0)
    axes.text(6.6, 3.55, "one encoder", ha="center", fontsize=8.5, color=GREY)
    box(11.7, 4.1, "$f(x) + BAx$", GREY, 2.0)
    axes.text(12.7, 3.55, "adapters (optional)", ha="center", fontsize=8.5, color=GREY)
    arrow((10.95, 4.55), (11.6, 4.55), GREY)
    axes.text(7.6, 0.35, "task vectors $τ_t = θ_t − θ_0$,  $τ = g(τ_1, τ_2, τ_3)$", ha="center", fontsize=9)
    axes.text(13.6, 0.35, "trained on validation images", ha="center", fontsize=9)
    return figure


def delta_figure(frame, paper_deltas, models, recomputed=None):
    """Dots for Δ of every model and seed, the paper's printed value beside.

    Parameters
    ----------
    frame : DataFrame
        See `report.tables.scores`.
    paper_deltas : dict of str to float
        Printed Δ by model name, where the paper has one.
    models : sequence of str
        Rows, from top to bottom.
    recomputed : DataFrame, optional
        The same of seeds recomputed here, told apart by marker.

    Returns
    -------
    Figure
    """
    figure, axes = plt.subplots(figsize=(7, 0.33 * len(models) + 1.0), layout="constrained")
    for row, model in enumerate(models):
        values = frame.loc[model].printed
        axes.plot(
            [values.min(), values.max()], [row, row], color=INK, lw=5, alpha=0.25, solid_capstyle="round"
        )
        axes.plot(values, [row] * len(values), "o", color=INK, ms=5, label="ours, one dot a seed")
        if model in paper_deltas:
            axes.plot(
                paper_deltas[model],
                row,
                "D",
                color=PAPER,
                mfc="none",
                mew=1.5,
                ms=6,
                label="paper",
            )
        if recomputed is not None and model in recomputed.index.unique("model"):
            own = recomputed.loc[model].printed
            axes.plot(own, [row] * len(own), "x", color=RED, ms=7, label="recomputed here")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set(xlabel="Δ printed: mean performance relative to the experts, minus 100 %")
    axes.set_yticks(range(len(models)), [MODELS[model] for model in models])
    axes.invert_yaxis()
    sns.despine(figure)
    return figure


def subset_figure(points, paper):
    """Figure 1: performance against the number of merged tasks, every subset a dot, the paper's beside.

    Parameters
    ----------
    points : DataFrame
        See `report.tables.subset_scores`.
    paper : dict
        `taskonomy_mean`, `taskonomy_points` and `clip_8` of `paper_numbers.json`.

    Returns
    -------
    Figure
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    dots = points.groupby(["tasks", "size"]).performance.mean().reset_index()
    axes.plot(dots["size"] - 0.08, dots.performance, "o", color=INK, ms=3.5, alpha=0.45, lw=0)
    mean = points.groupby("size").performance.mean()
    seeds = points.groupby(["size", "seed"]).performance.mean().unstack("seed")
    axes.fill_between(
        [1, *seeds.index], [1, *seeds.min(axis=1)], [1, *seeds.max(axis=1)], color=INK, alpha=0.2, lw=0
    )
    label = "ours, mean over subsets" + " and seeds" * (len(seeds.columns) > 1)
    axes.plot([1, *mean.index], [1, *mean], "-o", color=INK, lw=1.8, label=label)
    for size, values in paper["taskonomy_points"].items():
        axes.plot([int(size) + 0.08] * len(values), values, "s", color=PAPER, ms=3, mfc="none", alpha=0.6)
    for name, label, style in (
        ("taskonomy_mean", "paper, Taskonomy", (PAPER, "--", "s")),
        ("clip_8", "paper, CLIP: an input a task", (GREY, ":", "^")),
    ):
        sizes, values = zip(*((int(size), value) for size, value in paper[name].items()), strict=True)
        colour, line, marker = style
        axes.plot(sizes, values, ls=line, marker=marker, color=colour, mfc="none", lw=1.6, label=label)
    axes.set(xlabel="merged tasks", ylabel="performance relative\nto the experts", ylim=(0, 1.05))
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.72))
    sns.despine(figure)
    return figure


def coefficient_figure(coefficients):
    """Figure 2: coefficients of layer-wise AdaMerging, one panel a task, blocks from left to right.

    Parameters
    ----------
    coefficients : list of dict of str to dict of str to float
        One a seed: by task and tensor name. Shown is the mean over seeds of the tensors inside blocks.

    Returns
    -------
    Figure
    """
    tasks = list(coefficients[0])
    grids = {task: _block_grid([seed[task] for seed in coefficients]) for task in tasks}
    kinds, blocks = grids[tasks[0]].shape
    figure, panels = plt.subplots(
        1,
        len(tasks),
        figsize=(1.6 + 1.75 * len(tasks), 0.19 * kinds + 1.1),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, task in zip(panels[0], tasks, strict=True):
        picture = axes.imshow(grids[task], vmin=0, vmax=1, cmap="Greys", aspect="auto")
        ticks = range(0, blocks, max(1, blocks // 6))
        axes.set(title=task, xlabel="block", xticks=ticks, xticklabels=[tick + 1 for tick in ticks])
        axes.set_yticks(range(kinds), grids[task].index, fontsize=8)
        axes.grid(False)
    figure.colorbar(picture, ax=panels, label="coefficient")
    return figure


def _block_grid(seeds):
    """Mean over seeds as a DataFrame: one row a kind of tensor, one column a block."""
    mean = pd.DataFrame(seeds).mean()
    found = mean.index.str.extract(r"blocks\.(\d+)\.(.+)$").set_index(mean.index)
    inside = found.dropna().assign(value=mean)
    grid = inside.assign(block=inside[0].astype(int)).pivot(index=1, columns="block", values="value")
    return grid.reindex(inside[1].unique())


def alpha_figure(scans):
    """Validation score against α for each method: one line a seed, the chosen α marked.

    Parameters
    ----------
    scans : dict of str to list of (list of dict, float)
        By method and then seed: rows of the scan, and the α chosen.

    Returns
    -------
    Figure
    """
    figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
    for method, seeds in scans.items():
        colour, line, marker = METHOD_STYLES.get(method, OTHER)
        for number, (rows, alpha) in enumerate(seeds):
            x, y = [row["alpha"] for row in rows], [100 * row["score"] for row in rows]
            axes.plot(x, y, color=colour, ls=line, label=MODELS[method] if number == 0 else None)
            axes.plot(alpha, y[x.index(alpha)], marker, color=colour, ms=6)
    axes.set(xlabel="α", ylabel="mean performance on val\nrelative to the experts, %")
    axes.legend()
    sns.despine(figure)
    return figure


def relationship_figure(curves, paper, tasks):
    """The paper's Figures 3, 5 and 6: performance of every head along every task vector.

    Parameters
    ----------
    curves : dict of str to list of dict
        By what they are of ("miniature"), one a seed, see `report.tables.relative_curves`; drawn as mean and
        range, in another line style each.
    paper : dict
        The paper's, in the same form, drawn as markers.
    tasks : sequence of Task

    Returns
    -------
    Figure
        One panel a task vector, one colour a head.
    """
    columns = len(tasks) if len(tasks) < 4 else 3
    lines = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(2.75 * columns, 2.4 * lines + 0.8), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    panels = grid.flat[: len(tasks)]
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, primary in zip(panels, tasks, strict=True):
        for task in tasks:
            colour, _, marker = TASK_STYLES.get(task.name, OTHER)
            for (title, seeds), line in zip(curves.items(), LINES[: len(curves)], strict=True):
                x = list(seeds[0][primary.name][task.name])
                ratios = np.array(
                    [list(seed[primary.name][task.name].values()) for seed in seeds]
                )  # seeds, λ
                axes.fill_between(x, ratios.min(0), ratios.max(0), color=colour, alpha=0.2, lw=0)
                axes.plot(x, ratios.mean(0), color=colour, ls=line, lw=1.8, label=f"{task.name}, {title}")
            printed = paper[primary.name][task.name]
            axes.plot(
                list(printed), list(printed.values()), marker, color=colour, ms=3, mfc="none", lw=0,
                label=f"{task.name}, paper",
            )  # fmt: skip
        axes.axvline(1, color=INK, lw=0.6)
        axes.set(title=f"along τ of {primary.name}", xlabel="λ", ylim=(0, 1.12))
    for axes in grid[:, 0]:
        axes.set_ylabel("performance relative\nto the expert")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tasks))
    sns.despine(figure)
    return figure


def draw_bands(axes, frame, x, y, by, style, label):
    """Draw a line of means over seeds and a band of their range.

    Parameters
    ----------
    axes : Axes
    frame : DataFrame
        Of one line.
    x, y, by : str
        Columns; a point is the mean of the rows that agree in `by`.
    style : (str, line style, str)
        One of `METHOD_STYLES`.
    label : str
    """
    colour, dashes, marker = style
    groups = frame.groupby(by)
    x, y = groups[x].mean(), groups[y]
    axes.fill_between(x, y.min(), y.max(), color=colour, alpha=0.2, lw=0 if len(x) > 1 else 4)
    axes.plot(x, y.mean(), color=colour, ls=dashes, marker=marker, ms=4, label=label)


def panels(frames, x, y, names, by=None, methods=None, marks=None, logarithmic=False):
    """Bands over seeds against one quantity or several: one column of panels a frame, one row a quantity.

    Of a single frame, all panels stand in one row.

    Parameters
    ----------
    frames : dict of str to DataFrame
        By data set, or the panel's title; columns `method`, and those below.
    x : str or sequence of str
        Columns.
    y : str
        Column.
    names : dict of str to str
        Labels of columns.
    by : str, optional
        See `draw_bands`; x if not given.
    methods : sequence of str, optional
        Which to draw; all if not given.
    marks : dict of str to sequence of float, optional
        By title, two values: a dashed and a dotted line across.
    logarithmic : bool
        Of the axis of x.

    Returns
    -------
    Figure
    """
    rows = [x] if isinstance(x, str) else x
    high, wide = (len(rows), len(frames)) if len(frames) > 1 else (1, len(rows))
    figure, grid = plt.subplots(
        high, wide, figsize=(3.0 * wide, 2.5 * high + 0.5),
        sharey="col", squeeze=False, layout="constrained",
    )  # fmt: skip
    for line, quantity in zip(grid.reshape(len(rows), len(frames)), rows, strict=True):
        for axes, (title, frame) in zip(line, frames.items(), strict=True):
            shown = methods or list(frame.method.unique())
            for method in shown:
                own, style = frame[frame.method == method], (METHOD_STYLES | TASK_STYLES).get(method, OTHER)
                draw_bands(axes, own, quantity, y, by or quantity, style, method)
            for mark, dashes in zip(marks[title], ((0, (6, 3)), ":"), strict=True) if marks else ():
                axes.axhline(mark, color=INK, lw=0.8, ls=dashes)
            axes.set(xlabel=names[quantity], title=TITLES.get(title, title))
            if logarithmic:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
            if frame[quantity].nunique() <= 6:
                axes.set_xticks(sorted(frame[quantity].unique()))
            elif is_integer_dtype(frame[quantity]) and not logarithmic:
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
        line[0].set_ylabel(names[y])
    every = [axes.get_legend_handles_labels() for axes in grid[0]]
    handles = {name: handle for own in every for handle, name in zip(*own, strict=True)}
    columns = min(len(handles), 2 * wide)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    sns.despine(figure)
    return figure
