"""The qualitative figures: images, truth and predictions side by side, with what their colours mean."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.colors import ListedColormap, Normalize

from simo.tasks import CITYSCAPES_CLASSES, CITYSCAPES_PARTS, NYUV2_CLASSES

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
    size, keys = 1.0, [(task, _key_height(task)) for task in tasks if task.classes or task.channels == 1]
    heights = [size * height / width * len(lines) + 0.3, *(high for _, high in keys)]
    figure = plt.figure(figsize=(size * (len(rows) + 1) + 1, sum(heights)))
    above, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = above.subplots(
        len(lines), len(rows) + 1,
        gridspec_kw={"wspace": 0.03, "hspace": 0.03, "left": 0.12, "right": 1, "bottom": 0, "top": 0.97},
    )  # fmt: skip
    scales = {task.name: _scale(pictures[f"truth/{task.name}"], task) for task in tasks}
    for line, (index, task) in enumerate(lines):
        panels[line, 0].imshow(pictures["image"][index], interpolation="none")
        panels[line, 0].set_ylabel(task.name, rotation=0, ha="right", va="center", fontsize=9)
        for axes, key in zip(panels[line, 1:], rows, strict=True):
            axes.imshow(*_picture(pictures[f"{key}/{task.name}"][index], task), **scales[task.name])
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        sns.despine(ax=axes, left=True, bottom=True)
    for axes, title in zip(panels[0], ["image", *rows.values()], strict=True):
        axes.set_title(title, fontsize=9)
    for part, (task, _) in zip(below, keys, strict=True):
        _draw_key(part, task, scales[task.name])
    return figure


def _scale(truth, task):
    """How a task's maps become colours, one scale for all images: that of the truth where it is known."""
    if task.is_segmentation:
        colours = CLASS_COLOURS[task.classes]
        return {"cmap": ListedColormap([*colours, "#ffffff"]), "vmin": 0, "vmax": len(colours)}
    if task.channels > 1:
        return {}
    known = truth[truth != 0].astype(np.float32)
    shades = "gray" if task.centred else "viridis" if task.zoom == 1 else "viridis_r"  # near is bright
    return {"cmap": shades, "vmin": known.min(), "vmax": known.max()}


def _picture(values, task):
    """A map as `imshow` takes it: classes and single values as they are, directions and colours in 0 to 1."""
    if task.is_segmentation:
        return (np.minimum(values, len(task.classes)),)
    values = values.astype(np.float32)
    if task.channels == 1:
        return (values[..., 0],)
    if task.flips_x:  # directions
        values = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)
    return (np.clip(values / 2 + 0.5, 0, 1),)


def _key_height(task):
    return 0.25 + 0.2 * -(-len(task.classes) // 7) if task.classes else 0.5


def _draw_key(figure, task, scale):
    """What the colours of a task mean, below the pictures: names of classes, or a scale."""
    if task.is_segmentation:
        handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in CLASS_COLOURS[task.classes]]
        figure.legend(handles, task.classes, ncols=7, loc="center", fontsize=8, title=task.name)
        return
    axes = figure.add_axes((0.3, 0.7, 0.4, 0.2))
    values = plt.cm.ScalarMappable(Normalize(scale["vmin"], scale["vmax"]), scale["cmap"])
    bar = figure.colorbar(values, cax=axes, orientation="horizontal")
    bar.set_label(f"{task.name}, {task.unit or 'as stored'}", fontsize=8, labelpad=1)
    bar.ax.tick_params(labelsize=8)
