"""report.plotting: figures show the numbers they are given, at the right place."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from report import plotting
from report.paper import paper_curves, read_paper
from simo.tasks import tasks_of


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
    """Figure 1: one expert is 1, then the mean over subsets and seeds; the paper's curves as printed."""
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
    assert lines["ours, mean over subsets and seeds"].tolist() == [[1, 1], [2, 0.4], [3, 0.2]]
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
    assert [axes.get_title() for axes in figure.axes] == ["nyuv2", "taskonomy"] * 2
    assert [axes.get_xlabel() for axes in figure.axes] == ["images", "images", "seconds", "seconds"]
    for axes in figure.axes:
        assert (len(axes.lines), len(axes.collections), axes.get_xscale()) == (4, 2, "log")
    assert len(figure.legends) == 1
    single = plotting.panels({"nyuv2": data}, "images", "delta", names, methods=["heads"])
    assert [len(axes.lines) for axes in single.axes] == [1]
