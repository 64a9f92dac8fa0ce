"""report.walks: what the slider shows are the records' own numbers, and the figure needs no network."""

import re
from types import SimpleNamespace

import pytest
import vl_convert

from report.pages import Page
from report.walks import SUM, points, slider, specification, walks

EXPERT = {"segmentation": 60.0, "depth": 0.2, "normals": 20.0}


@pytest.fixture
def page():
    """A page with one seed: experts, α at 0 and 1, and one walk along depth's vector."""
    scan = [{"alpha": x, "segmentation": 30.0 + 30 * x, "depth": 0.4, "normals": 40.0} for x in (0.0, 1.0)]
    walk = [{"lambda": x, "segmentation": 60.0, "depth": 0.2, "normals": 20.0 / x} for x in (0.5, 1.0)]
    record = {"seed": 0, "results": [], "details": {}}
    records = [
        record | {"experiment": "merge_task_arithmetic", "details": {"scan": scan}},
        record | {"experiment": "relationships", "details": {"curves": dict.fromkeys(EXPERT, walk)}},
    ]
    for name, value in EXPERT.items():
        rows = [{"split": "val", "metrics": {name: value}}, {"split": "test", "metrics": {name: -1.0}}]
        rows = [row | {"model": "expert"} for row in rows]
        records.append(record | {"experiment": f"expert_{name}", "results": rows})
    return SimpleNamespace(dataset="nyuv2", records=records)


def test_walks_by_hand(page):
    """Relative to the expert on its own split: half the mIoU, twice the error, are both 50 %."""
    frame = walks(page).set_index(["walk", "step", "method"]).performance
    assert frame[SUM, 0.0, "segmentation"] == pytest.approx(50)
    assert frame[SUM, 0.0, "depth"] == pytest.approx(50)
    assert frame[SUM, 1.0, "segmentation"] == pytest.approx(100)
    assert frame["depth, λ", 0.5, "normals"] == pytest.approx(50)


def test_between_evaluated_points_is_a_straight_line(page):
    """And beyond the last of them there is no bar."""
    shown = {
        (row["walk"], row["step"], row["task"]): row["performance"] for row in points({"A": walks(page)})
    }
    assert shown[f"A: {SUM}", 0.5, "segmentation"] == 75
    assert max(step for walk, step, _ in shown if walk == f"A: {SUM}") == 1


def test_the_figure_compiles_and_stands_where_it_is_told(page):
    """Vega-Lite accepts it: two inputs, which walk and how far."""
    shown = points({"A": walks(page)})
    vega = vl_convert.vegalite_to_vega(specification(shown, [f"A: {SUM}"], 0.3))
    bound = {signal["name"]: signal for signal in vega["signals"] if "bind" in signal}
    assert bound.keys() == {"walk", "how_far"}
    assert bound["how_far"]["value"] == 0.3


def test_the_html_brings_its_script_along(page):
    """No script or data from elsewhere: it works from a file, without a network."""
    html = slider({"A": walks(page)})
    assert html.count("</script>") == 1
    assert not re.search(r"""(?:from|import|importScripts)\s*\(?["'](?:https?:)?//""", html)
    assert '<div id="walk"></div>\n<script type="module">' in html


def test_pages_without_records_have_no_walk():
    """What was not run is left out."""
    assert walks(Page("nyuv2", "records/none")).empty
