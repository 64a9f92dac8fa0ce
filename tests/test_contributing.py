"""CONTRIBUTING.md and the README: examples run, and the map shows what there is and nothing else."""

import pkgutil
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from simo import tasks
from simo.heads import HEADS
from simo.merging.methods import METHODS
from simo.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
TOUR = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TOUR, re.MULTILINE | re.DOTALL))
EXAMPLE = re.compile(r"^\*\*(.*?)\*\*.*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = EXAMPLE.findall(SECTIONS["Where a new thing goes"])
MODULES = [
    path.relative_to(ROOT).as_posix()
    for house in ("simo", "report", "data_scripts", "tools")
    for path in sorted((ROOT / house).rglob("*.py"))
    if path.name != "__init__.py"  # a package is a folder of the map
]
REGISTRIES = (tasks.TASKS, tasks.ADDITIONAL_TASKS, tasks.LOSSES, METRICS, HEADS, METHODS)


def places():
    """Files, folders and patterns that the map names; a bare name is in the folder of its row."""
    found = []
    for line in SECTIONS["The map"].splitlines():
        names = re.findall(r"`([\w./*-]+)`", line)
        folder = next((name for name in names if name.endswith("/")), "")
        for name in names:
            bare = "/" not in name and name.endswith(".py")
            found += [folder + name] if bare else [name] * ("/" in name or "." in name)
    return found


@pytest.fixture
def _registries():
    """Tasks, heads and so on as they were before, whatever an example adds."""
    saved = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, content in zip(REGISTRIES, saved, strict=True):
        registry.clear()
        registry.update(content)


def test_every_kind_of_addition_has_an_example():
    """Whoever adds something finds an example of it."""
    assert [name for name, _ in EXAMPLES] == [
        "A task",
        "A data set",
        "A head",
        "A merging method",
        "An experiment",
        "A figure or table",
    ]
    assert len(EXAMPLES) == TOUR.count("```python")
    assert all("\nassert " in code for _, code in EXAMPLES)


@pytest.mark.usefixtures("_registries")
@pytest.mark.parametrize(("name", "code"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_an_example_runs(name, code, tmp_path, monkeypatch):
    """Each example does what it says, in an empty folder and with nothing but its own imports."""
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"CONTRIBUTING.md, {name}", "exec"), {"__name__": "example"})


def test_every_module_is_on_the_map():
    """A new module gets its sentence; otherwise nobody finds it."""
    named = places()
    missing = [path for path in MODULES if not any(fnmatch(path, place) for place in named)]
    assert not missing, f"CONTRIBUTING.md, The map, lacks {missing}"


def test_everything_on_the_map_exists():
    """The map does not lead to places that were moved or deleted."""
    named = places()
    assert len(named) > len(MODULES) / 2
    gone = [place for place in named if not list(ROOT.glob(place.rstrip("/")))]
    assert not gone, f"CONTRIBUTING.md, The map, names {gone}"


def test_files_that_the_tour_names_exist():
    """Outside of the map, too, a path in the tour leads somewhere."""
    text = re.sub(r"^```.*?^```", "", TOUR, flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`([\w.-]+/[\w./-]+)`", text) + re.findall(r"\]\(([\w./-]+)\)", text)
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_life_of_an_image_names_what_exists():
    """Each step's function is where the table says."""
    named = re.findall(r"`((?:simo|report|data_scripts)\.[\w.]+)`", SECTIONS["The life of an image"])
    assert len(named) >= len(SECTIONS["The life of an image"].strip().splitlines()) - 2  # a head of two lines
    for name in named:
        assert callable(pkgutil.resolve_name(name)), name


def test_the_readme_merges():
    """The lines of the README do what they say, given a base and some experts."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    base = {"weight": torch.zeros(10)}
    names = {"base": base, "experts": [{"weight": torch.arange(10.0)}, {"weight": torch.arange(10.0)}]}
    exec(compile(code, "README.md", "exec"), names)
    assert names["merged"]["weight"].tolist() == [0.0] * 8 + [8.0, 9.0]
