"""report.plotting: figures show the numbers they are given, at the right place."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from report import beyond, plotting
from report.paper import paper_curves, read_paper
from report.pictures import qualitative_figure
from simo.tasks import TASKS, tasks_of


@pytest.fixture(autouse=True)
def closed():
    """No figure outlives its test."""
    yield
    plt.close("all")


def lines_of(axes):
    """Data of labelled lines."""
    return {
        line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")
    }


def test_subset_figure_shows_means_and_the_paper():
    """Figure 1: one expert is 1, then the mean over subsets of one seed; the paper's curves as printed."""
    points = pd.DataFrame(
        [
            {"seed": 0, "tasks": "a+b", "size": 2, "performance": 0.5},
            {"seed": 0, "tasks": "a+c", "size": 2, "performance": 0.3},
            {"seed": 0, "tasks": "a+b+c", "size": 3, "performance": 0.2},
        ]
    )
    paper = read_paper()["fig1"]
    (axes,) = plotting.subset_figure(points, paper).axes
    lines = lines_of(axes)
    assert lines["ours, mean over subsets"].tolist() == [[1, 1], [2, 0.4], [3, 0.2]]
    assert lines["paper, Taskonomy"][:, 1].tolist() == list(paper["taskonomy_mean"].values())
    assert lines["paper, CLIP: an input a task"][:, 0].tolist() == list(range(1, 9))


def test_coefficient_figure_orders_blocks_by_number():
    """Figure 2: block 10 stands after block 9; kinds of tensors are rows; seeds are averaged."""
    names = [f"backbone.blocks.{block}.{kind}" for block in range(11) for kind in ("attn.w", "mlp.w")]
    seeds = [{"depth": dict.fromkeys(names, value) | {"backbone.cls_token": 9.0}} for value in (0.2, 0.4)]
    for seed in seeds:
        seed["depth"]["backbone.blocks.10.mlp.w"] = 1.0
    axes = plotting.coefficient_figure(seeds).axes[0]
    grid = np.asarray(axes.images[0].get_array())
    assert grid.shape == (2, 11)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["attn.w", "mlp.w"]
    assert grid[1, 10] == 1.0
    assert grid[0] == pytest.approx(0.3)


def test_relationship_figure_has_ours_and_the_papers():
    """Figures 3, 5 and 6: one panel a task vector, with the mean of our seeds and the paper's markers."""
    paper = paper_curves("cityscapes", read_paper())
    seeds = [
        {
            a: {b: {x: y * scale for x, y in curve.items()} for b, curve in heads.items()}
            for a, heads in paper.items()
        }
        for scale in (0.8, 1.0)
    ]
    figure = plotting.relationship_figure({"ours": seeds, "others": seeds[:1]}, paper, tasks_of("cityscapes"))
    for axes, primary in zip(figure.axes, paper, strict=True):
        lines = lines_of(axes)
        assert lines["parts, paper"][:, 1].tolist() == list(paper[primary]["parts"].values())
        assert lines["parts, ours"][:, 1] == pytest.approx(0.9 * lines["parts, paper"][:, 1])
        assert lines["parts, others"][:, 1] == pytest.approx(0.8 * lines["parts, paper"][:, 1])


def test_panels_share_their_legend():
    """One column a data set, one row a quantity; a line and band a method, marks across, one legend below."""
    rows = [(s, n, n / 10, m, -n) for s in (0, 1) for n in (4, 16) for m in ("heads", "merged")]
    data = pd.DataFrame(rows, columns=["seed", "images", "seconds", "method", "delta"])
    names = {"images": "images", "seconds": "seconds", "delta": "Δ"}
    frames, marks = {"nyuv2": data, "taskonomy": data}, {"nyuv2": [-3.0, -20.0], "taskonomy": [-9.0, -30.0]}
    options = {"by": "images", "marks": marks, "logarithmic": True}
    figure = plotting.panels(frames, ["images", "seconds"], "delta", names, **options)
    assert [axes.get_title() for axes in figure.axes] == ["NYUv2", "Taskonomy"] * 2
    assert [axes.get_xlabel() for axes in figure.axes] == ["images", "images", "seconds", "seconds"]
    for axes in figure.axes:
        assert (len(axes.lines), len(axes.collections), axes.get_xscale()) == (4, 2, "log")
    assert len(figure.legends) == 1
    frames = {"nyuv2": data[data.method == "heads"], "taskonomy": data}  # what only one panel has
    (legend,) = plotting.panels(frames, "images", "delta", names).legends
    assert [text.get_text() for text in legend.get_texts()] == ["heads", "merged"]
    single = plotting.panels({"nyuv2": data}, "images", "delta", names, methods=["heads"])
    assert [len(axes.lines) for axes in single.axes] == [1]


def luminance(colour):
    """Relative luminance of a colour, as WCAG 2 defines it."""
    channels = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    """Contrast of two colours, 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_colours_are_seen_in_both_themes():
    """Lines reach a contrast of 3 on white and on the dark theme's background, text in ink 7 in its own."""
    lines = {style[0] for style in (*plotting.TASK_STYLES.values(), *plotting.METHOD_STYLES.values())} - {
        plotting.INK
    }
    for colour in lines | {plotting.PAPER, plotting.RED}:
        assert min(contrast(colour, "#ffffff"), contrast(colour, "#14181e")) >= 3, colour
    assert contrast(plotting.INK, "#ffffff") > 7
    assert contrast(plotting.DARK_INK, "#14181e") > 7


def test_every_task_has_its_own_colour():
    """One colour a task on all pages, none shared by two tasks, none that belongs to the paper's results."""
    names = {task.name for dataset in TASKS for task in tasks_of(dataset)}
    assert names == plotting.TASK_STYLES.keys()
    colours = [colour for colour, _, _ in plotting.TASK_STYLES.values()]
    assert len({*colours, plotting.PAPER, plotting.INK}) == len(names) + 2


def test_one_method_has_one_colour_in_every_figure():
    """Closed form, heads and the merged model look the same in a figure of all methods and of a few."""
    rows = [(s, n, m, -n) for s in (0, 1) for n in (4, 16) for m in ("merged", "closed form", "heads")]
    data = pd.DataFrame(rows, columns=["seed", "images", "method", "delta"])
    names = {"images": "images", "delta": "Δ"}
    for shown in (["heads", "closed form"], ["closed form"], ["merged", "closed form", "heads"]):
        (axes,) = plotting.panels({"a": data}, "images", "delta", names, methods=shown).axes
        colours = {line.get_label(): line.get_color() for line in axes.lines}
        assert colours == {method: plotting.METHOD_STYLES[method][0] for method in shown}
    scores = pd.DataFrame(
        {"seed": 0, "name": name, "delta": -1.0} for name in ("Joint training", "TA + heads")
    )
    lines = beyond.joint_figure({"nyuv2": scores}).axes[0].lines
    drawn = {matplotlib.colors.to_hex(line.get_color()) for line in lines}
    assert drawn == {plotting.METHOD_STYLES[kind][0].lower() for kind in ("joint", "heads")}


def test_ink_follows_the_theme():
    """Text and axes are light in the dark theme, on no background; the same figure is the same file."""
    plotting.set_style()
    text = plotting.to_svg(plotting.idea_figure())
    assert text.count("<style") == 1
    assert f'@media (prefers-color-scheme: dark){{[style*="fill: {plotting.INK}"]' in text
    assert f'style="fill: {plotting.INK}"' in text
    assert "fill: #ffffff" not in text
    plt.close("all")
    assert plotting.to_svg(plotting.idea_figure()) == text


def test_pictures_have_a_key_for_every_colour():
    """Below the pictures stand the classes of each segmentation and a scale with unit for single values."""
    tasks, rows = tasks_of("nyuv2"), {"truth": "truth"}
    shape = (2, 8, 8)
    pictures = {"image": np.zeros((*shape, 3), np.uint8), "truth/segmentation": np.zeros(shape, np.int64)}
    pictures["truth/depth"] = np.linspace(1, 5, 128, dtype=np.float16).reshape(*shape, 1)
    pictures["truth/normals"] = np.ones((*shape, 3), np.float16)
    figure = qualitative_figure(pictures, tasks, rows)
    above, classes, scale = figure.subfigs
    assert [text.get_text() for text in classes.legends[0].get_texts()] == list(tasks[0].classes)
    assert scale.axes[0].get_xlabel() == "depth, m"
    depth = [axes.images[0] for axes in above.axes if axes.images and axes.images[0].cmap.name == "viridis_r"]
    assert {image.get_clim() for image in depth} == {(1.0, 5.0)}, "one scale for all images"


def test_panels_of_one_study_stand_in_a_row():
    """They are as wide as the page, with their legend in lines that are no wider than they."""
    methods = ["heads", "representation", "closed form", "distillation", "merged"]
    rows = [(0, n, n / 10, m, -n) for n in (4, 16) for m in methods]
    data = pd.DataFrame(rows, columns=["seed", "images", "seconds", "method", "delta"])
    names = {"images": "images", "seconds": "seconds", "delta": "Δ"}
    figure = plotting.panels({"nyuv2": data}, ["images", "seconds"], "delta", names, by="images")
    assert [axes.get_xlabel() for axes in figure.axes] == ["images", "seconds"]
    assert len({axes.get_subplotspec().rowspan.start for axes in figure.axes}) == 1
    figure.canvas.draw()
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width
