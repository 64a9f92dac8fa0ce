"""Assembles the book's source from prose and notebooks, builds it, and checks that every page exists.

python tools/book.py build build/miniature/book [--executed FOLDER]
python tools/book.py pdf build/miniature/redraw
python tools/book.py records build/miniature/records records/miniature nyuv2/seed0 nyuv2/seed1
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report.notebooks import ROOT, run_notebook
from simo.datasets import read_prepared
from simo.errors import SimoError
from simo.files import atomic_path, listed, read_json, write_json
from tools.browser import print_page
from tools.supplements import data_cell, markdown_cell, not_run_cell

# the run that stands for a computing notebook's page, where several exist
SHOWN = ("segmentation", "task_arithmetic")

FIXTURE_CELL = markdown_cell(
    "fixture",
    "```{warning}\nExecuted on a fixture: made-up data that only show that all parts work together. No "
    "number below is a result.\n```",
)
OWN = ("_toc.yml", "CONTRIBUTING.md")  # of which book/add.md includes a section
DATASET_PAGES = ("nyuv2", "cityscapes", "taskonomy")  # notebooks with a cell that the tests check


# how the page on citing speaks of the repository, without a public address and with one
UNPUBLISHED = "The repository has no public address yet: name this book, and the commit if you have it."
PUBLISHED = """The repository is at [{0}]({0}): name that and the commit. Buttons above each notebook open
it on Binder, which installs the project; on Colab, which does not, run this first, then the notebook's cells:

```
!git clone --depth 1 {0} simo
%cd simo
%pip install ".[book,data]"
```
"""
BIBTEX = """
```bibtex
@software{simo_companion,
  title = {%(title)s},
  author = {{%(author)s}},
  version = {%(version)s},
  date = {%(date-released)s},
}
```
"""


def configuration(cited):
    """The book's configuration, with buttons to the repository if it has a public address.

    Parameters
    ----------
    cited : dict
        What `CITATION.cff` says. Its `repository-code`, such as `https://github.com/owner/name`, is the only
        place to set the address.

    Returns
    -------
    dict
        What `_config.yml` has, and what follows from the address.
    """
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    address, author = cited.get("repository-code"), cited["authors"][0]["name"]
    said = PUBLISHED.format(address) if address else UNPUBLISHED
    said += "\n" + BIBTEX % (cited | {"author": author})
    config["parse"] = {"myst_substitutions": {"repository": said}}
    if address:
        launch = {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"}
        if "github.com/" in address:  # Colab opens no others
            launch["colab_url"] = "https://colab.research.google.com"
        # the theme's own names: what `_config.yml` has under them hides jupyter-book's
        options = {"repository_url": address, "repository_branch": "main", "launch_buttons": launch}
        options |= {"use_repository_button": True, "use_issues_button": True}
        config["sphinx"]["config"]["html_theme_options"] |= options
    return config


def read_toc():
    """The table of contents, parsed."""
    return yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))


def pages_of(toc):
    """Documents that a table of contents names, root first, without suffix."""
    pages = [toc["root"]]
    for part in toc.get("parts", []):
        pages += [chapter["file"] for chapter in part["chapters"]]
    return pages


def assemble(source, pages, executed):
    """Bring everything that the book consists of into one folder.

    Parameters
    ----------
    source : Path
        The folder; made anew.
    pages : Path
        Folder of the drawn pages.
    executed : Path or None
        Folder of executed computing notebooks. One that was not run appears as it is written: code
        without outputs.
    """
    shutil.rmtree(source, ignore_errors=True)
    copied = [*listed(ROOT / "book", "**/*"), *listed(ROOT / "notebooks" / "params", "**/*")]
    for path in [path for path in copied if path.is_file()] + [ROOT / name for name in OWN]:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)  # not its permissions: some file systems refuse them
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = yaml.safe_dump(configuration(cited), allow_unicode=True, sort_keys=False)
    (source / "_config.yml").write_text(text, encoding="utf-8")
    for page in pages_of(read_toc()):
        if not page.startswith("notebooks/"):
            continue
        name = Path(page).name
        drawn = page.startswith("notebooks/pages/")
        runs = [executed / f"{run}.ipynb" for run in (name, *(f"{name}_{v}" for v in SHOWN)) if executed]
        found = [run for run in runs if run.exists()]
        notebook = read_json(pages / f"{name}.ipynb" if drawn else [*found, ROOT / f"{page}.ipynb"][0])
        given = notebook["metadata"].get("papermill", {}).get("parameters", {})
        if drawn:
            caption_pictures_only(notebook["cells"])
            notebook["cells"].append(data_cell(name, given, source))
        elif not found:
            notebook["cells"].insert(1, not_run_cell(name))
        elif made_up(given):
            notebook["cells"].insert(1, FIXTURE_CELL)
        show_parameters_once(notebook["cells"], drawn)
        write_json(source / f"{page}.ipynb", notebook)


def caption_pictures_only(cells):
    """Take the captions from cells that drew nothing, but say so: a sentence is no figure."""
    for cell in cells:
        kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
        if not any(kind.startswith("image/") for kind in kinds):
            cell["metadata"].pop("mystnb", None)


def show_parameters_once(cells, drawn):
    """Fold away the parameters of a run, and hide those of its source, which they replace, or a page's."""
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    if injected := [own for own in tags if "injected-parameters" in own]:
        for own in tags:
            if "parameters" in own:
                own.append("remove-cell")
        injected[0].append("remove-cell" if drawn else "hide-input")


def made_up(given):
    """Whether a computing notebook was executed on a fixture, by its parameters."""
    return "data" in given and read_prepared(ROOT / given["data"])["fixture"]


def build(folder, executed):
    """Build the book with all warnings as errors; SimoError if it fails or a page is missing."""
    assemble(folder / "source", folder / "pages", executed)
    run_sphinx(folder, "html")
    html = folder / "_build" / "html"
    missing = [page for page in pages_of(read_toc()) if not (html / f"{page}.html").is_file()]
    if missing:
        raise SimoError(
            f"the build lacks {missing[0]}.html although _toc.yml lists it ({len(missing)} missing)"
        )
    for path in [*listed(html / "book", "**/*.html"), *listed(html / "notebooks", "**/*.html")]:
        origin = folder / "source" / path.relative_to(html)
        if not listed(origin.parent, f"{origin.stem}.*"):
            path.unlink()  # of an earlier build: its page was moved or removed since


def run_sphinx(folder, builder):
    """Turn a folder's source into `_build`, with all warnings as errors; SimoError if it fails."""
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", folder / "source", "--path-output", folder, "--builder", builder]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # the API's pages import this `simo`
    if subprocess.run([*command, "-W", "-n", "--keep-going"], env=environment).returncode:
        raise SimoError("jupyter-book reported warnings or errors, see above")


def print_book(folder):
    """Print a book that was built as one PDF; return its path."""
    run_sphinx(folder, "singlehtml")
    pages = folder / "_build" / "singlehtml"
    # Sphinx writes addresses as from this folder, and the page two folders down
    page = shutil.copyfile(pages / f"{read_toc()['root']}.html", pages / "book.html")
    print_page(page, folder / "book.pdf")
    return folder / "book.pdf"


def copy_records(computed, committed, seeds):
    """Copy recomputed records, and the pictures of seed 0 if they were rendered, to the committed folder.

    Parameters
    ----------
    computed, committed : Path
    seeds : list of str
        Those of this build, such as `nyuv2/seed0`; what else lies in `computed` is of other runs.
    """
    for path in (path for seed in seeds for path in listed(computed, f"{seed}/*")):
        record = path.with_suffix(".json")
        if path == record or path.parent.name == "seed0" and _rendered(record):
            with atomic_path(committed / path.relative_to(computed)) as temporary:
                shutil.copyfile(path, temporary)


def _rendered(record):
    """Whether the images of a record are our own: those of a data set are not ours to pass on."""
    return read_json(record)["provenance"]["source"] == "rendered"


def store_expected_output(name):
    """Run a drawing notebook on the committed records, and keep what its checked cells print.

    nbval compares these cells, marked `# NBVAL_CHECK_OUTPUT`, in `make test`. No other output is kept.

    Parameters
    ----------
    name : str
        Of a notebook in `notebooks/pages/`.
    """
    path = ROOT / "notebooks" / "pages" / f"{name}.ipynb"
    notebook = read_json(path)
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder) / path.name
        run_notebook(path, executed, {})
        by_id = {cell["id"]: cell for cell in read_json(executed)["cells"]}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and cell["source"][0].startswith("# NBVAL_CHECK_OUTPUT"):
            cell["outputs"] = by_id[cell["id"]]["outputs"]
            cell["execution_count"] = 1  # nbval refuses outputs of a cell that was never run
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def draw_readme_figure():
    """Draw the README's picture, which is the introduction's first figure."""
    from report import plotting

    plotting.set_style()
    plotting.idea_figure().savefig(ROOT / "book" / "idea.png", dpi=120)


def main():
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    given = {"build": ["folder"], "pdf": ["folder"], "records": ["computed", "committed"], "figure": []}
    for name, places in given.items():
        command = commands.add_parser(name)
        for place in places:
            command.add_argument(place, type=Path)
    commands.choices["records"].add_argument("seeds", nargs="+", help="such as nyuv2/seed0")
    commands.choices["build"].add_argument("--executed", default="", help="folder of executed notebooks")
    options = parser.parse_args()
    try:
        if options.command == "build":
            build(options.folder, Path(options.executed) if options.executed else None)
        elif options.command == "pdf":
            print(f"The book: {print_book(options.folder)}")
        elif options.command == "figure":
            draw_readme_figure()
        else:
            copy_records(options.computed, options.committed, options.seeds)
            if options.committed.resolve().parent == ROOT / "records":
                for name in DATASET_PAGES:
                    store_expected_output(name)
    except SimoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
