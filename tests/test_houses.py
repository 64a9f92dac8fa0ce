"""The houses: who may enter whom, what an import of simo brings along, and how thin simo is."""

import ast
import os
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSES = ("simo", "report", "data_scripts")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "simo").rglob("*.py")
)
FOREIGN = ("pandas", "seaborn", "matplotlib", "papermill", "snakemake", "IPython", "yaml", "report")
SIMO_LINES = 2500
# by the contract's name: a module, and the import that breaks it
FORBIDDEN = [
    ("report and data_scripts enter simo, and nobody enters them", "simo/files.py", "import report"),
    ("report and data_scripts enter simo, and nobody enters them", "report/paper.py", "import data_scripts"),
    ("simo draws no tables and figures, and runs no notebooks", "simo/metrics.py", "import pandas"),
    (
        "the renderer is entered through its face",
        "data_scripts/nyuv2.py",
        "import data_scripts.render.kernel",
    ),
    ("no circles", "simo/tasks.py", "from simo.datasets import PreparedDataset"),
    ("no circles", "data_scripts/checking.py", "from data_scripts import miniature"),
    ("nobody enters what runs them", "report/paper.py", "import tools.book"),
]


def lint_imports(folder):
    """Run import-linter in a folder with its own pyproject.toml; return the status and what it prints."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    return done.returncode, done.stdout


def python(code):
    """Run Python in a fresh process in the repository; return the words that it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def code_lines(path):
    """Number of a module's lines that hold code: no docstrings, comments or blank lines."""
    source = path.read_text(encoding="utf-8")
    documented = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    with open(path, "rb") as file:
        tokens = [t for t in tokenize.tokenize(file.readline) if t.string.strip()]
    without = (tokenize.COMMENT, tokenize.ENCODING)
    spans = [range(t.start[0], t.end[0] + 1) for t in tokens if t.type not in without]
    return len({line for span in spans for line in span} - documented)


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    """A copy of the houses and their contracts, to break."""
    folder = tmp_path_factory.mktemp("houses")
    for house in HOUSES:
        shutil.copytree(
            ROOT / house, folder / house, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_directions_hold():
    """No import of the tree goes where it may not: every contract is kept."""
    status, said = lint_imports(ROOT)
    assert status == 0, said
    assert " 0 broken" in said


@pytest.mark.parametrize(("contract", "module", "line"), FORBIDDEN, ids=[line for *_, line in FORBIDDEN])
def test_a_forbidden_import_is_noticed(houses, contract, module, line):
    """One import in the wrong direction breaks the contract that is about it, and that one alone."""
    path = houses / module
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n{line}\n", encoding="utf-8")
    try:
        status, said = lint_imports(houses)
    finally:
        path.write_text(before, encoding="utf-8")
    assert status == 1
    assert f"{contract} BROKEN" in said
    assert " 1 broken" in said


def test_simo_brings_none_of_the_book_along():
    """All modules of simo together, and so each of them alone, load nothing of the book's packages.

    But for what others load on their own: timm's hub client imports YAML, which reaches `simo.encoders` and
    all that make models.
    """
    loaded = f"print(*(set({FOREIGN}) & sys.modules.keys()))"
    brought = python(f"import sys, simo, timm; {loaded}")
    assert brought == {"yaml"}
    assert python(f"import sys, {', '.join(MODULES)}; {loaded}") == brought


def test_code_lines_are_counted(tmp_path):
    """Docstrings, comments and blank lines do not count; every line of a statement does."""
    path = tmp_path / "module.py"
    path.write_text(
        '"""About,\nat length."""\n\nx = (  # a comment\n\n    1,\n)\n# another\n\n\ndef f():\n'
        '    """Do."""\n    return """a\n\n    b"""\n'
    )
    assert code_lines(path) == 3 + 1 + 3


def test_simo_is_thin():
    """What one imports for one's own models stays small enough to be read."""
    assert sum(map(code_lines, (ROOT / "simo").rglob("*.py"))) <= SIMO_LINES
