"""What comes before any computing: a notebook's imports, and the check that nothing has to be done."""

import ast
import subprocess
import sys

from benchmarks.pairs import Pair
from report.notebooks import ROOT, notebook_code

# computing notebooks and pages whose imports are timed
SIZES = {"full": ("compute/expert", "pages/nyuv2"), "tiny": ("pages/status",)}


def pairs(size, folder):
    """Pairs of fresh processes. Nothing is written into the folder."""
    for name in SIZES[size]:
        code = imports_of(ROOT / "notebooks" / f"{name}.ipynb")
        yield Pair(
            f"Imports of notebooks/{name}.ipynb", "importing torch alone",
            lambda code=code: python("-c", code), lambda: python("-c", "import torch"),
        )  # fmt: skip
    if size == "full":
        dry = ("-m", "snakemake", "--dry-run", "--quiet", "all", "--cores", "1", "--nolock")
        yield Pair(
            "The check of the graph", "Snakemake's own start",
            lambda: python(*dry), lambda: python("-m", "snakemake", "--version"), seconds=5.0,
        )  # fmt: skip


def imports_of(notebook):
    """The imports of a notebook's cells, as one program."""
    found = [
        ast.unparse(node)
        for source in notebook_code(notebook)
        for node in ast.parse(source).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return "\n".join(found)


def python(*arguments):
    """Run this Python in the repository; what it prints is shown only if it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)[:80]} failed:\n{done.stderr[-2000:]}")
