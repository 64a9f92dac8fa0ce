"""report.sizes: the numbers that the report prints of its models."""

import pytest

from report.parameters import ROOT, read_parameters
from report.sizes import count_model, parameter_table

PAPER = {
    name: read_parameters(ROOT / "notebooks" / "params" / "paper" / f"{name}.yaml")
    for name in ("nyuv2", "cityscapes", "taskonomy")
}
# width 768, 4 taps, patch and class token side by side: 6144 channels, batch norm and 1×1 convolution
LINEAR = {"segmentation": 2 * 6144 + 6145 * 13, "depth": 6145, "normals": 2 * 6144 + 6145 * 3}


@pytest.fixture(scope="module")
def counts():
    """Counts of the three models of the paper's profile."""
    return {name: count_model(values) for name, values in PAPER.items()}


def test_table_4_of_the_report(counts):
    """103.9 M jointly, 17.3 M heads, 17.6 M with adapters; 90.1 M an expert is the sum of rounded parts."""
    taskonomy = dict(counts["taskonomy"])
    encoder, adapters = taskonomy.pop("encoder"), taskonomy.pop("adapters")
    heads = sum(taskonomy.values())
    printed = [encoder + heads, heads, heads + adapters]
    assert [f"{n / 1e6:.1f}" for n in printed] == ["103.9", "17.3", "17.6"]
    assert f"{round(encoder / 1e6, 1) + round(heads / 5e6, 1):.1f}" == "90.1"


def test_table_adds_up():
    """The page's totals are the sums of its rows."""
    row = parameter_table([PAPER["nyuv2"]]).loc["nyuv2"]
    numbers = {name: int(row[name].replace(",", "")) for name in row.index if name != "heads"}
    assert numbers["all heads"] == sum(LINEAR.values())
    assert numbers["encoder + all heads"] == numbers["encoder"] + numbers["all heads"]
    assert row["heads"] == "segmentation 92,173, depth 6,145, normals 30,723"
