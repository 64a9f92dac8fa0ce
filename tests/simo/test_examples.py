"""The examples in the docstrings of merging and realignment, which the book's API pages show."""

import copy
import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

from simo.merging import adamerging, field, masks
from simo.realignment import closedform, statistics, trained

PAGES = Path(__file__).resolve().parents[2] / "book" / "api"
MODULES = {
    "merging": ("methods", "field", "matrices", "spaces", "moments", "masks", "adamerging"),
    "realignment": ("trained", "closedform", "statistics"),
}
EXPECTED = [*field.METHODS.values(), field.iso_cts, masks.tall_mask, masks.magnitude_mask, masks.consensus]
EXPECTED += [adamerging.LayerwiseMerge, trained.realign_heads, trained.realign_representation]
EXPECTED += [closedform.realign_closed_form, statistics.reestimate_statistics]


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, names in MODULES.items() for name in names]
)
def test_examples_run(package, name):
    """What a docstring shows is what comes out, after the lines at the top of the package's page."""
    (lines,) = re.findall(r"^```python\n(.*?)^```", (PAGES / f"{package}.md").read_text("utf-8"), re.M | re.S)
    module = importlib.import_module(f"simo.{package}.{name}")
    tests = [test for test in doctest.DocTestFinder().find(module, module.__name__) if test.examples]
    assert tests
    given = {}
    exec(compile(lines, f"{package}.md", "exec"), given)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        torch.manual_seed(0)
        test.globs |= copy.copy(given)
        assert runner.run(test).failed == 0


def test_every_method_has_an_example():
    """Whoever looks up a method of merging or realigning sees it at work."""
    assert [each.__name__ for each in EXPECTED if ">>> " not in each.__doc__] == []
