"""What assembling adds to a page of the book: where its data lie, and that a notebook was not run."""

import zipfile

from report.notebooks import ROOT
from report.overview import TITLES, drawn_by
from report.pages import UNLIKE
from report.parameters import declared_parameters
from report.records import drawable, load_records
from report.tables import scores
from simo.files import listed, read_json
from simo.tasks import TASKS

# pages that show what a computing notebook found; those of the data sets if not named here
SHOWN_ON = {
    "closed_form": ("beyond",),
    "closed_form_control": ("beyond",),
    "unlabelled_alpha": ("beyond", "taskonomy"),
    "neighbours": ("beyond",),
    "field": ("wider_field",),
    "joint_variants": ("fair_joint",),
    "variations": ("what_varies",),
    "mechanism": ("why_it_breaks",),
    "frozen_decoder": ("why_it_breaks",),
    "subsets": ("taskonomy",),
}


def markdown_cell(name, text):
    """A cell of a notebook file."""
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}


def not_run_cell(notebook):
    """The note on top of a computing notebook that was not run in this build, with links to its results."""
    pages = SHOWN_ON.get(notebook, tuple(TASKS))
    links = ", ".join(f"[{_title(page)}](../pages/{page}.ipynb)" for page in pages)
    names = {path.stem for path in listed(ROOT / "records", "*/*/*/*.json")}
    found = f"What it found is shown on {links}."
    if not any(name == notebook or name.startswith(f"{notebook}_") for name in names):
        found = f"No committed records of it are there yet; {links} will show what it finds."
    text = f"```{{note}}\nNot run in this build: below is the code, without outputs. {found}\n```\n"
    return markdown_cell("not-run", text)


def data_cell(page, given, source):
    """The links under a drawn page: scores of all seeds, the records behind its figures, the page itself.

    Parameters
    ----------
    page : str
        Of a notebook in `notebooks/pages/`.
    given : dict
        The parameters that it was drawn with, where they are not its defaults.
    source : Path
        Of the book: gets `data/<profile>-<study>.csv` and `.zip`, if they are not there yet.
    """
    folders = [v for name, v in (declared_parameters(page) | given).items() if name.endswith("_folder") and v]
    studies = [study for folder in folders for study in listed(ROOT / folder, "*") if study.name in TITLES]
    records = {study: drawable(load_records(study)) for study in studies if listed(study, "**/*.json")}
    studies = [study for study in studies if records.get(study)]  # not one that was begun only
    if page.split("_")[0] in TASKS:  # of a data set: its own; every other page has all
        studies = [study for study in studies if drawn_by(study.parent.name, study.name) == page]
    text = "## The data of this page\n\n"
    if links := [_links(study, records[study], source / "data") for study in studies]:
        text += "Scores of every model and seed, and the records, by study:\n\n"
        text += "".join(f"- {link}\n" for link in links) + "\n"
    here = f"../../_sources/notebooks/pages/{page}.ipynb"
    return markdown_cell("data", f'{text}<a href="{here}" download>This page as an executed notebook</a>\n')


def _links(study, drawn, folder):
    """Markdown links to a study's scores and drawn records, which are written if they are not there yet."""
    name = f"{study.parent.name}-{study.name}"
    table, archive = folder / f"{name}.csv", folder / f"{name}.zip"
    if not table.exists():
        folder.mkdir(exist_ok=True)
        dataset = study.name.split("_")[0]
        scores(drawn, dataset).to_csv(table)
        names = {f"seed{each['seed']}/{each['experiment']}.json" for each in drawn}
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in listed(study, "**/*.json"):  # no pictures: those of data sets are not passed on
                if str(path.relative_to(study)) in names:
                    file.write(path, path.relative_to(study.parent))
    parts = [
        f"{{download}}`{kind} <../../data/{path.name}>`"
        for kind, path in (("scores", table), ("records", archive))
    ]
    title = f"{TITLES[study.name]}, {study.parent.name}{UNLIKE.get(study.name, '')}"
    return f"{title}: {', '.join(parts)}"


def _title(page):
    """The first line of a page, without what follows a colon."""
    title = "".join(read_json(ROOT / "notebooks" / "pages" / f"{page}.ipynb")["cells"][0]["source"])
    return title.splitlines()[0].removeprefix("# ").split(":")[0]
