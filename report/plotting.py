"""Each figure of the book as a function of records; nothing is computed here that is not in them.

Colours are Okabe and Ito's, readable with colour blindness; lines and markers differ as well, so that
figures survive greyscale.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import LogLocator, NullLocator

from report.tables import MODELS
from simo.tasks import CITYSCAPES_CLASSES, CITYSCAPES_PARTS, NYUV2_CLASSES

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
STYLES = [
    (BLUE, "-", "o"),
    (ORANGE, "--", "s"),
    (GREEN, ":", "^"),
    ("#CC79A7", "-.", "D"),
    ("#56B4E9", (0, (5, 1, 1, 1, 1, 1)), "v"),
]
LINES = ("-", (0, (4, 1.5)), ":")  # of one quantity from several sources
CLASS_COLOURS = {
    # thirteen colours that neighbours in a room tell apart
    NYUV2_CLASSES: [
        "#4c72b0", "#c44e52", "#e8e4da", "#dd8452", "#8c6d4f", "#e377c2", "#bcbd22",
        "#ffd92f", "#8172b3", "#55a868", "#1b1b1b", "#b9c9d6", "#64b5cd",
    ],
    # the data set's own
    CITYSCAPES_CLASSES: [
        "#804080", "#f423e8", "#464646", "#66669c", "#be9999", "#999999", "#faaa1e", "#dcdc00", "#6b8e23",
        "#98fb98", "#4682b4", "#dc143c", "#ff0000", "#00008e", "#000046", "#003c64", "#005064", "#0000e6",
        "#770b20",
    ],
    CITYSCAPES_PARTS: [
        "#e4e4e4", "#0072b2", "#f0e442", "#56b4e9", "#1b4f72", "#9fd8cb", "#333333", "#d55e00", "#cc79a7",
        "#009e73",
    ],
}  # fmt: skip


def set_style():
    """Fonts, grid and resolution of all figures of the book."""
    sns.set_theme(context="paper", style="ticks", font_scale=1.05)
    plt.rcParams.update(
        {"figure.dpi": 110, "savefig.dpi": 160, "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}
    )


def idea_figure():
    """Draw the paper's idea: experts, merging, the misfit of features and heads, and the two fixes.

    Returns
    -------
    Figure
    """
    figure, axes = plt.subplots(figsize=(8.2, 4.3), layout="constrained")
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

    def arrow(start, end, colour="#555555"):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.2})

    tasks = [("segmentation", BLUE), ("depth", ORANGE), ("normals", GREEN)]
    axes.text(2.4, 8.2, "1  experts", ha="center", fontsize=10, weight="bold")
    axes.text(7.6, 8.2, "2  merged: features no longer fit", ha="center", fontsize=10, weight="bold")
    axes.text(13.6, 8.2, "3  realigned", ha="center", fontsize=10, weight="bold")
    for row, (name, colour) in enumerate(tasks):
        y = 6.4 - 2.3 * row
        box(0.2, y, f"encoder $θ_{row + 1}$", colour)
        box(3.0, y, f"head $φ_{row + 1}$", colour, 1.6)
        arrow((2.2, y + 0.45), (2.95, y + 0.45))
        axes.text(2.4, y - 0.42, name, ha="center", fontsize=8.5, color=colour)
        box(8.6, y, f"head $φ_{row + 1}$", colour, 1.6)
        arrow((4.75, y + 0.45), (5.5, 4.55), GREY)
        arrow((7.7, 4.55), (8.5, y + 0.45), "#AA3333")
        axes.text(10.55, y + 0.45, "✗", color="#AA3333", ha="center", va="center", fontsize=13)
        box(14.6, y, f"head $φ_{row + 1}'$", colour, 1.6)
        arrow((13.8, 4.55), (14.55, y + 0.45), colour)
    box(5.6, 4.1, "$θ_0 + α\\,τ$", GREY, 2.0)
    axes.text(6.6, 3.55, "one encoder", ha="center", fontsize=8.5, color=GREY)
    box(11.7, 4.1, "$f(x) + BAx$", GREY, 2.0)
    axes.text(12.7, 3.55, "adapters (optional)", ha="center", fontsize=8.5, color=GREY)
    arrow((10.95, 4.55), (11.6, 4.55), GREY)
    axes.text(7.6, 0.35, "task vectors $τ_t = θ_t − θ_0$,  $τ = g(τ_1, τ_2, τ_3)$", ha="center", fontsize=9)
    axes.text(13.6, 0.35, "few validation images, few steps", ha="center", fontsize=9)
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
            [values.min(), values.max()], [row, row], color=BLUE, lw=5, alpha=0.25, solid_capstyle="round"
        )
        axes.plot(values, [row] * len(values), "o", color=BLUE, ms=5, label="ours, one dot a seed")
        if model in paper_deltas:
            axes.plot(
                paper_deltas[model],
                row,
                "D",
                color=ORANGE,
                mfc="white",
                ms=6,
                label="paper",
            )
        if recomputed is not None and model in recomputed.index.unique("model"):
            own = recomputed.loc[model].printed
            axes.plot(own, [row] * len(own), "x", color="black", ms=7, label="recomputed here")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="Δ_MTL as printed: mean performance relative to the experts, minus 100 %")
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
    axes.plot(dots["size"] - 0.08, dots.performance, "o", color=BLUE, ms=3.5, alpha=0.45, lw=0)
    mean = points.groupby("size").performance.mean()
    seeds = points.groupby(["size", "seed"]).performance.mean().unstack("seed")
    axes.fill_between(
        [1, *seeds.index], [1, *seeds.min(axis=1)], [1, *seeds.max(axis=1)], color=BLUE, alpha=0.2, lw=0
    )
    axes.plot(
        [1, *mean.index], [1, *mean], "-o", color=BLUE, lw=1.8, label="ours, mean over subsets and seeds"
    )
    for size, values in paper["taskonomy_points"].items():
        axes.plot([int(size) + 0.08] * len(values), values, "s", color=ORANGE, ms=3, mfc="white", alpha=0.6)
    for name, label, style in (
        ("taskonomy_mean", "paper, Taskonomy", (ORANGE, "--", "s")),
        ("clip_8", "paper, CLIP: an input a task", (GREY, ":", "^")),
    ):
        sizes, values = zip(*((int(size), value) for size, value in paper[name].items()), strict=True)
        colour, line, marker = style
        axes.plot(sizes, values, ls=line, marker=marker, color=colour, mfc="white", lw=1.6, label=label)
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
    for (method, seeds), (colour, line, marker) in zip(scans.items(), STYLES[: len(scans)], strict=True):
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
        for task, (colour, _, marker) in zip(tasks, STYLES[: len(tasks)], strict=True):
            for (title, seeds), line in zip(curves.items(), LINES[: len(curves)], strict=True):
                x = list(seeds[0][primary.name][task.name])
                ratios = np.array(
                    [list(seed[primary.name][task.name].values()) for seed in seeds]
                )  # seeds, λ
                axes.fill_between(x, ratios.min(0), ratios.max(0), color=colour, alpha=0.2, lw=0)
                axes.plot(x, ratios.mean(0), color=colour, ls=line, lw=1.8, label=f"{task.name}, {title}")
            printed = paper[primary.name][task.name]
            axes.plot(
                list(printed), list(printed.values()), marker, color=colour, ms=3, mfc="white", lw=0,
                label=f"{task.name}, paper",
            )  # fmt: skip
        axes.axvline(1, color="black", lw=0.6)
        axes.set(title=f"along τ of {primary.name}", xlabel="λ", ylim=(0, 1.12))
    for axes in grid[:, 0]:
        axes.set_ylabel("performance relative\nto the expert")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tasks))
    sns.despine(figure)
    return figure


def qualitative_figure(pictures, tasks, rows):
    """Images, truth and predictions side by side, for each image and task.

    Parameters
    ----------
    pictures : dict of str to ndarray
        See `report.records.load_pictures`.
    tasks : sequence of Task
    rows : dict of str to str
        Row keys of the pictures and their titles, such as `{"truth": "ground truth"}`.

    Returns
    -------
    Figure
        One line an image and task; one column a row key.
    """
    count, height, width, _ = pictures["image"].shape
    lines = [(index, task) for index in range(count) for task in tasks]
    columns = len(rows) + 1
    size = 1.25
    figure, panels = plt.subplots(
        len(lines), columns, figsize=(size * columns, size * height / width * len(lines) + 0.3),
        gridspec_kw={"wspace": 0.03, "hspace": 0.03, "left": 0.04, "right": 1, "bottom": 0, "top": 0.97},
    )  # fmt: skip
    for line, (index, task) in enumerate(lines):
        panels[line, 0].imshow(pictures["image"][index])
        panels[line, 0].set_ylabel(task.name, fontsize=8)
        truth = pictures[f"truth/{task.name}"][index]
        for axes, key in zip(panels[line, 1:], rows, strict=True):
            _show(axes, pictures[f"{key}/{task.name}"][index], task, truth)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        sns.despine(ax=axes, left=True, bottom=True)
    for axes, title in zip(panels[0], ["image", *rows.values()], strict=True):
        axes.set_title(title, fontsize=9)
    return figure


def _show(axes, values, task, truth):
    """Draw one map: classes by colour, single values on the truth's scale, normals and colours as such."""
    if task.is_segmentation:
        colours = CLASS_COLOURS[task.classes]
        axes.imshow(
            np.minimum(values, len(colours)), cmap=ListedColormap([*colours, "#ffffff"]),
            vmin=0, vmax=len(colours), interpolation="nearest",
        )  # fmt: skip
    elif task.channels == 1:
        known = truth[truth != 0].astype(np.float32)
        shades = "gray" if task.centred else "viridis" if task.zoom > 0 else "viridis_r"
        axes.imshow(values[..., 0].astype(np.float32), cmap=shades, vmin=known.min(), vmax=known.max())
    else:
        values = values.astype(np.float32)
        if task.flips_x:  # directions
            values = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)
        axes.imshow(np.clip(values / 2 + 0.5, 0, 1))


def class_legend(task):
    """Draw the colours of a segmentation task's classes with their names; returns the Figure."""
    figure, axes = plt.subplots(figsize=(7, 0.3 + 0.2 * (len(task.classes) / 6)), layout="constrained")
    axes.axis("off")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in CLASS_COLOURS[task.classes]]
    axes.legend(handles, task.classes, ncols=7, loc="center", fontsize=8)
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
        One of `STYLES`.
    label : str
    """
    colour, dashes, marker = style
    groups = frame.groupby(by)
    x, y = groups[x].mean(), groups[y]
    axes.fill_between(x, y.min(), y.max(), color=colour, alpha=0.2, lw=0 if len(x) > 1 else 4)
    axes.plot(x, y.mean(), color=colour, ls=dashes, marker=marker, ms=4, label=label)


def panels(frames, x, y, names, by=None, methods=None, marks=None, logarithmic=False):
    """Bands over seeds against one quantity or several: one column of panels a frame, one row a quantity.

    Parameters
    ----------
    frames : dict of str to DataFrame
        By the panel's title; columns `method`, and those below.
    x : str or sequence of str
        Columns.
    y : str
        Column.
    names : dict of str to str
        Labels of columns.
    by : str, optional
        See `draw_bands`; x if not given.
    methods : sequence of str, optional
        Which to draw, at most as many as there are styles; all if not given.
    marks : dict of str to sequence of float, optional
        By title, two values: a dashed and a dotted line across.
    logarithmic : bool
        Of the axis of x.

    Returns
    -------
    Figure
    """
    rows = [x] if isinstance(x, str) else x
    figure, grid = plt.subplots(
        len(rows), len(frames), figsize=(3.0 * len(frames), 2.5 * len(rows) + 0.5),
        sharey="col", squeeze=False, layout="constrained",
    )  # fmt: skip
    for line, quantity in zip(grid, rows, strict=True):
        for axes, (title, frame) in zip(line, frames.items(), strict=True):
            shown = methods or list(frame.method.unique())
            for method, style in zip(shown, STYLES[: len(shown)], strict=True):
                draw_bands(axes, frame[frame.method == method], quantity, y, by or quantity, style, method)
            for mark, dashes in zip(marks[title], ((0, (6, 3)), ":"), strict=True) if marks else ():
                axes.axhline(mark, color="black", lw=0.8, ls=dashes)
            axes.set(xlabel=names[quantity], title=title)
            if logarithmic:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
            if frame[quantity].nunique() <= 6:
                axes.set_xticks(sorted(frame[quantity].unique()))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
        line[0].set_ylabel(names[y])
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown))
    sns.despine(figure)
    return figure
