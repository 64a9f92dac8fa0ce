"""A data set's page of the book: its records, and each of its tables and figures, ready to be shown.

Numbers that were computed from made-up data (fixtures, which rehearse the paper's scale without the real
data) are marked as such wherever they appear. What was not run says so.
"""

from pathlib import Path

from IPython.display import HTML, Markdown, display

from simo import claims, plotting, tables
from simo.notebooks import ROOT
from simo.paper import PAPER_ROWS, PAPER_TABLES, paper_curves, read_paper
from simo.records import load_pictures, load_records, results_table
from simo.tasks import tasks_of

FIXTURE = "fixture"  # the mark
SCALES = {
    "miniature": "Rendered scenes and a small ViT pretrained on such renders, **not the real data and "
    "DINOv2**. Compare the *pattern* with the paper: which methods collapse, what repairs "
    "them, and by how much. "
    "The paper's own scale was **not run**.",
    "smoke": "A handful of rendered scenes and a few steps: a test of the machinery. "
    "**The numbers mean nothing.**",
    "paper": "The paper's model and settings on the real data set.",
}
PICTURED = {
    "truth": "truth",
    "expert": "expert",
    "joint": "joint",
    "merged": "merged",
    "heads": "+ heads",
    "representation": "+ repr.",
}


class Page:
    """The results of one study, beside the paper's.

    Parameters
    ----------
    study : str
        A folder of records: a data set, or a data set with another head, such as `cityscapes_dpt`.
    records_folder : str or Path
        What is drawn: the committed records, or those just computed.
    recomputed : str or Path, optional
        Records computed in this build, shown beside the committed ones.

    Attributes
    ----------
    frame, fresh : DataFrame or None
        Scores (see `simo.tables.scores`) of the drawn records, and of the recomputed ones.
    models : list of str
        Which models have results, experts left out.
    """

    def __init__(self, study, records_folder, recomputed=""):
        self.study, self.dataset = study, study.split("_")[0]
        self.tasks = tasks_of(self.dataset)
        self.folder = ROOT / records_folder / study
        self.records = _records(self.folder)
        self.profile = self.records[0]["profile"] if self.records else ""
        self.frame = self._scores(self.records)
        self.fresh = self._scores(_records(ROOT / recomputed / study)) if recomputed else None
        known = set() if self.frame is None else set(self.frame.index.unique("model"))
        self.models = [name for name in tables.MODELS if name in known and name != "expert"]
        self.fixture = any(record["provenance"]["fixture"] for record in self.records)
        self.paper = read_paper()
        plotting.set_style()

    def _scores(self, records):
        return tables.scores(results_table(records), self.dataset) if records else None

    def __bool__(self):
        """Whether there is anything to show; says so if not."""
        if not self.records:
            display(Markdown(f"*Not run: there are no records of {self.study} at this scale.*"))
        return bool(self.records)

    def scale(self):
        """Say what the records of this page are: which scale, which data."""
        if self:
            text = f"Records of the profile **{self.profile}**. {SCALES.get(self.profile, '')}"
            if self.fixture:
                text += (
                    " **Every number on this page was computed from a fixture: made-up data that only show "
                    "that all parts work together. None of them is a result.**"
                )
            display(Markdown(f"```{{note}}\n{text}\n```"))

    def numbers(self):
        """Values that the text names: `delta <model>`, `paper <model>`, `recovered <realignment>` and so on.

        Returns
        -------
        dict of str to str
            "not run" where there is no result.
        """
        keys = [f"delta {name}" for name in tables.MODELS]
        keys += ["recovered heads", "recovered representation", "seeds"]
        values = dict.fromkeys(keys, "not run") | {"tolerance": f"{claims.TOLERANCE:.0f}"}
        printed = self.paper[PAPER_TABLES[self.dataset]]
        for model, row in PAPER_ROWS.items():
            if model != "expert" and row in printed:
                values[f"paper {model}"] = f"{printed[row][-1]:.1f}"
        if self.records:
            mean = self.frame.printed.groupby("model").mean()
            mark = f" ({FIXTURE})" if self.fixture else ""
            values |= {f"delta {model}": f"{value:.1f}{mark}" for model, value in mean.items()}
            for name in ("heads", "representation"):
                share = claims.recovered(mean, "task_arithmetic", name)
                values[f"recovered {name}"] = f"{share:.0f}{mark}"
            values["seeds"] = str(len(self.frame.index.unique("seed")))
        return values

    def show(self, table, **options):
        """Display a table, every row of a fixture marked, in its index or, if hidden, its first column."""
        if self.fixture and options.get("index", True):
            table = table.rename(index=lambda name: f"{name} [{FIXTURE}]")
        elif self.fixture:
            first = table.columns[0]
            table = table.assign(**{first: table[first] + f" [{FIXTURE}]"})
        display(HTML(table.to_html(**options)))

    def table(self):
        """Display the paper's kind of table, with the experts and a constant prediction."""
        if self:
            rows = ["expert", *(name for name in self.models if name not in tables.CONTROLS)]
            self.show(tables.table_of(self.frame, self.dataset, rows))

    def controls(self):
        """Display the same table for the controls."""
        if self:
            rows = [name for name in self.models if name in tables.CONTROLS]
            self.show(tables.table_of(self.frame, self.dataset, rows))

    def paper_beside_ours(self):
        """Display performance relative to the experts, the paper's beside ours."""
        if self:
            full = (
                self.frame
                if self.profile == "paper"
                else self._scores(_records(ROOT / "records/paper" / self.study))
            )
            self.show(tables.paper_beside_ours(self.frame, self.dataset, self.paper, full))

    def pattern(self):
        """Display what is comparable at any size: order, signs, shares recovered."""
        if self:
            self.show(tables.pattern(self.frame, self.dataset, self.paper))

    def claims(self):
        """Display every claim with the number that decides it on each seed."""
        if self:
            table = self.judge()
            self.show(table, index=False, classes="claims", float_format="{:+.1f}".format, na_rep="–")

    def judge(self):
        """Decide every claim about this data set; see `simo.claims.judge`."""
        return claims.judge(self.frame, self.dataset, self.records, self.paper)

    def print_numbers(self):
        """Print table and verdicts as text: what the tests compare with the committed notebook."""
        if not self.records:
            print("not run")
        else:
            print(tables.table_of(self.frame, self.dataset).to_string())
            print(self.judge().verdict.to_string())

    def recomputed(self):
        """Display the seeds recomputed in this build beside the committed ones."""
        if self.fresh is None:
            display(
                Markdown("*This build drew these records only; `make book` recomputes a seed beside them.*")
            )
        elif self:
            self.show(tables.recomputed_beside_committed(self.frame, self.fresh, claims.TOLERANCE))

    def deltas(self):
        """Draw Δ of every model and seed, the paper's beside."""
        if self:
            printed = self.paper[PAPER_TABLES[self.dataset]]
            deltas = {
                model: printed[row][-1]
                for model, row in PAPER_ROWS.items()
                if model != "expert" and row in printed
            }
            self._mark(plotting.delta_figure(self.frame, deltas, self.models, self.fresh))

    def alphas(self):
        """Draw the validation score against α, for task arithmetic and TIES."""
        if self:
            scans = {}
            for method in ("task_arithmetic", "ties"):
                found = [record["details"] for record in self._all(f"merge_{method}")]
                scans[method] = [(details["scan"], details["alpha"]) for details in found]
            self._mark(plotting.alpha_figure(scans))

    def relationships(self):
        """Draw every head's performance along every task vector, the paper's curves beside."""
        if self:
            curves = [
                tables.relative_curves(record["details"]["curves"], self.dataset)
                for record in self._all("relationships")
            ]
            paper = paper_curves(self.dataset, self.paper)
            self._mark(plotting.relationship_figure(curves, paper, self.tasks))

    def pictures(self):
        """Draw images, truth and predictions of the first seed."""
        if self:
            seed = min(record["seed"] for record in self.records)
            pictures = load_pictures(self.folder / f"seed{seed}" / "qualitative.npz")
            self._mark(plotting.qualitative_figure(pictures, self.tasks, PICTURED))
            for task in self.tasks:
                if task.is_segmentation:
                    plotting.class_legend(task)

    def subsets(self):
        """Draw Figure 1: performance against the number of merged tasks."""
        if self._has("subsets"):
            points = tables.subset_scores(self._all("subsets"), self.frame, self.dataset)
            self._mark(plotting.subset_figure(points, self.paper["fig1"]))

    def coefficients(self):
        """Draw Figure 2: the coefficients that layer-wise AdaMerging learned."""
        if self._has("adamerging"):
            found = [record["details"]["coefficients"] for record in self._all("adamerging")]
            self._mark(plotting.coefficient_figure(found))

    def efficiency(self):
        """Display Table 4: steps, trained parameters, images and time; the paper's is Taskonomy's."""
        if self:
            paper = self.paper["table4_efficiency_taskonomy"] if self.dataset == "taskonomy" else None
            self.show(tables.efficiency(self.records, paper))

    def _has(self, experiment):
        """Whether there are records of an experiment; says so if not."""
        if not self._all(experiment):
            display(
                Markdown(f"*Not run: there are no records of {experiment} of {self.study} at this scale.*")
            )
        return bool(self._all(experiment))

    def _all(self, experiment):
        return [record for record in self.records if record["experiment"] == experiment]

    def _mark(self, figure):
        if self.fixture:
            figure.text(0.5, 0.5, "FIXTURE: no result", color="#AA3333", alpha=0.35, size=26, ha="center")


def _records(folder):
    """Records below a folder; none if nothing was run."""
    return load_records(folder) if any(Path(folder).glob("**/*.json")) else []
