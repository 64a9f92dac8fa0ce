"""A data set's page of the book: its records, and each of its tables and figures, ready to be shown.

Numbers that were computed from made-up data (fixtures, which rehearse the paper's scale without the real
data) are marked as such wherever they appear. What was not run says so.
"""

import re
from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display

from report import claims, plotting, readings, tables
from report.display import MEAN_SECONDS, over_seeds, real_minus, show
from report.notebooks import ROOT
from report.overview import CLOSE, TITLES, VARIED, marked
from report.paper import paper_curves, paper_deltas, read_paper
from report.parameters import check_injected
from report.pictures import qualitative_figure
from report.records import drawable, load_pictures, load_records, outdated
from simo.files import listed
from simo.tasks import tasks_of

FIXTURE = "fixture"  # the mark
NAMES = {
    "photos": "photographs",
    "photos_gpu": "photographs, 280×378",
    "miniature": "miniature",
    "paper": tables.FULL_SCALE,
}  # of columns, by profile
# and what these add where a study has another encoder, other experts, or another data set's images
UNLIKE = {"nyuv2_lite0": ", EfficientNet-Lite0", "taskonomy_photos": " of NYUv2"}
UNLIKE["nyuv2_lora"] = ", LoRA experts"
SCALES = {
    "photos": "The paper's own photographs of NYUv2, at less than half its resolution, with a ViT-S/14 "
    "that is, by all signs, DINOv2, trained further to find salient objects, instead of ViT-B/14, fewer "
    "steps, depth in steps of 3.9 cm and normals derived from it. Compare the *pattern* with the "
    "paper; [the photographs](../../book/photographs.md) say what each of these may change.",
    "photos_gpu": "The paper's own photographs of NYUv2, at its resolution and with the paper's largest "
    "number of steps for an expert, but with a ViT-S/14 that is, by all signs, DINOv2, trained further to "
    "find salient objects, instead of ViT-B/14, depth in steps of 3.9 cm and normals derived from it.",
    "miniature": "Rendered scenes and a small ViT pretrained on such renders, **not the real data and "
    "DINOv2**. Compare the *pattern* with the paper: which methods collapse, what repairs "
    "them, and by how much.",
    "smoke": "A handful of rendered scenes and a few steps: a test of the machinery. "
    "**The numbers mean nothing.**",
    "paper": "The paper's model and settings on the real data set.",
}
UNITS = {
    "nyuv2": "",
    "cityscapes": "Disparity's error is in units of 256 pixels, at a width of 2,048.",
    "taskonomy": "Errors are on the targets' scales: −1 to 1, and for depth 0 to 1 of a logarithm.",
}
RECOMPUTED = (
    "A recomputed seed is not one more seed: it repeats a committed one on this machine, and must agree with "
    f"it. It may differ by {tables.TOLERANCE:.0f} points, or by three standard deviations of the committed "
    "seeds where that is more: processors add floating-point numbers in different orders, and hundreds of "
    "steps amplify the last bit until it acts like another seed."
)
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
        Scores (see `report.tables.scores`) of the drawn records, and of the recomputed ones.
    models : list of str
        Which models have results, experts left out.
    name : str
        Of its column in a table: what the records are of.
    title : str
        Study and name, for captions.
    heads : str
        Their kind, as the page calls it: "linear" or "DPT"; "no" without records.
    seeds : int
        How many seeds have records.
    begun : list of int
        Seeds that lack an expert, or one with the parameters of the others, of which nothing is shown.
    """

    def __init__(self, study, records_folder, recomputed=""):
        check_injected()
        self.study, self.dataset = study, study.split("_")[0]
        self.tasks = tasks_of(self.dataset)
        self.folder = ROOT / records_folder / study
        found = _records(self.folder)
        self.outdated, self.records = outdated(found), drawable(found)
        self.profile = self.records[0]["profile"] if self.records else Path(records_folder).name
        heads = {record["provenance"]["parameters"].get("head") for record in self.records} - {None}
        self.heads = " and ".join({"dpt": "DPT"}.get(head, head) for head in sorted(heads)) or "no"
        self.frame = self._scores(self.records)
        fresh = _records(ROOT / recomputed / study) if recomputed else []
        fresh = drawable([record for record in fresh if record["profile"] == self.profile])
        self.fresh = self._scores(fresh)
        known = set() if self.frame is None else set(self.frame.index.unique("model"))
        self.models = [name for name in tables.MODELS if name in known and name != "expert"]
        self.fixture = any(record["provenance"]["fixture"] for record in self.records + fresh)
        self.seeds = len({record["seed"] for record in self.records})
        self.begun = sorted(
            {record["seed"] for record in found} - {record["seed"] for record in self.records}
        )
        self.name = NAMES.get(self.profile, self.profile) + UNLIKE.get(study, "")
        self.name += f" [{FIXTURE}]" * self.fixture
        self.title = f"{TITLES[study]}, {self.name}"
        self.paper = read_paper()
        plotting.set_style()

    def _scores(self, records):
        return tables.scores(records, self.dataset) if records else None

    def has_records(self):
        """Whether there are any records; says so if not."""
        if not self.records:
            text = f"Not run: there are no records of {self.study} at this scale.{self._left_out()}"
            display(Markdown(f"*{text}*"))
        return bool(self.records)

    def _left_out(self):
        """Say which seeds are left out, if any."""
        seeds = ", ".join(map(str, self.begun))
        return f" Left out: seed {seeds}, without all experts, or with other settings." if seeds else ""

    def scale(self):
        """Say what the records of this page are: which scale, which data."""
        if self.has_records():
            text = f"Records of the profile **{self.profile}**. {SCALES.get(self.profile, '')}"
            if self.profile != "paper" and not _records(ROOT / "records" / "paper" / self.study):
                text += " The paper's own scale was **not run**."
            if self.begun:
                text += self._left_out()
            if self.fixture:
                text += (
                    " **Every number on this page was computed from a fixture: made-up data that only show "
                    "that all parts work together. None of them is a result.**"
                )
            display(Markdown(f"```{{note}}\n{text}\n```"))

    def numbers(self):
        """Values that the text names.

        Returns
        -------
        dict of str to str
            `delta <model>` and `paper <model>`, `recovered <realignment>` by task arithmetic where anything
            was merged, `best score` of any α in per cent, `largest spread` of a realigned model's Δ over
            such seeds, `title`, `seeds`, `over seeds` (in a caption), `full tolerance`; "not run" where there
            is no result.
        """
        keys = [f"delta {name}" for name in tables.MODELS]
        keys += ["recovered heads", "recovered representation", "best score"]
        keys += ["largest spread", "seeds"]
        values = dict.fromkeys(keys, "not run") | {"title": self.title, "over seeds": self.over_seeds}
        values |= {"full tolerance": f"{tables.FULL_SCALE_TOLERANCE:.0f}"}
        for model, delta in paper_deltas(self.dataset, self.paper).items():
            values[f"paper {model}"] = f"{delta:.1f}"
        values |= self._results() if self.records else {}
        return {key: real_minus(value) for key, value in values.items()}

    def _results(self):
        """Those of `numbers` that come from records."""
        delta, note = self.frame.printed.unstack("model"), f" ({FIXTURE})" if self.fixture else ""
        values = {f"delta {model}": f"{value:z.1f}{note}" for model, value in delta.mean().items()}
        merged = tables.where_merged(delta, tables.alphas(self.records), "task_arithmetic")
        for kind in ("heads", "representation"):
            if f"task_arithmetic+{kind}" in merged and merged[f"task_arithmetic+{kind}"].notna().any():
                share = tables.recovered(merged, "task_arithmetic", kind).mean()
                values[f"recovered {kind}"] = f"{share:.0f}{note}"
        scans = [record["details"]["scan"] for record in self._all("merge_task_arithmetic")]
        if scans:
            best = sum(max(row["score"] for row in scan) for scan in scans) / len(scans)
            values["best score"] = f"{100 * best:.0f}{note}"
        chosen = tables.alphas(self.records)
        spread = pd.Series(
            {
                name: tables.where_merged(delta[name], chosen, name.partition("+")[0]).std(ddof=1)
                for name in delta
                if "+" in name and name not in tables.CONTROLS
            }
        )
        if spread.notna().any():
            values["largest spread"] = f"{spread.max():.1f}{note}"
        return values | {"seeds": str(self.seeds)}

    def address(self, kind):
        """Where a table of this page's records stands on it, such as its claims."""
        return f"{self.study}-{self.profile}-{kind}".replace("_", "-")

    @property
    def over_seeds(self):
        """What a number or a line of this page is: of one seed, or a mean."""
        return over_seeds(self.seeds)

    def _cells(self):
        """What a cell of the tables of metrics holds."""
        deviation = ", ± its standard deviation" if self.seeds > 1 else ""
        return f"Cells: the metric, {self.over_seeds}{deviation}, in brackets per cent of the experts'."

    def show(self, table, caption, name, corner, **options):
        """Display a table, every row of a fixture marked, in its index or, if hidden, its first column.

        The rest is as in `report.display.show`.
        """
        if self.fixture and options.get("index", True):
            table = table.rename(index=lambda row: f"{row} [{FIXTURE}]")
        elif self.fixture:
            first = table.columns[0]
            table = table.assign(**{first: table[first] + f" [{FIXTURE}]"})
        show(table, caption, name, corner, **options)

    def _show(self, table, caption, kind, corner="model", others=(), **options):
        """Display a table of this page's records: its title leads the caption and the address.

        Only the study's leads the caption where other pages' records are shown, too.
        """
        title = TITLES[self.study] if others else self.title
        self.show(table, f"{title}: {caption}", self.address(kind), corner, **options)

    def _metrics(self, models, caption, kind):
        """Display the paper's kind of table of some models."""
        table = tables.table_of(self.frame, self.dataset, models)
        self._show(table.map(_shorter), caption, kind, classes="wide")

    def table(self):
        """Display the paper's kind of table, with the experts and a constant prediction."""
        if self.has_records():
            rows = ["expert", *(name for name in self.models if name not in tables.CONTROLS)]
            caption = f"every model on the test split. {self._cells()} {UNITS[self.dataset]}".strip()
            self._metrics(rows, caption, "table")
            for say in (readings.unmerged, readings.at_the_edge, readings.empty_tasks):
                if said := say(self):
                    display(Markdown(said))

    def controls(self):
        """Display the same table for the controls."""
        if self.has_records():
            rows = [name for name in self.models if name in tables.CONTROLS]
            caption = f"realignment without merging, and of experts that were not merged. {self._cells()}"
            if rows:
                self._metrics(rows, caption, "controls")
            missing = [tables.MODELS[name] for name in tables.CONTROLS if name not in rows]
            if missing:
                display(Markdown(f"*Not run here: {'; '.join(missing)}.*"))

    def paper_beside_ours(self, *others):
        """Display performance relative to the experts, the paper's beside this and other pages'."""
        if self.has_records():
            full = Page(self.study, "records/paper")
            frames = {page.name: page.frame for page in (self, *others)}
            if full.records and not full.fixture:
                frames.setdefault(tables.FULL_SCALE, full.frame)
            table = tables.paper_beside_ours(frames, self.dataset, self.paper)
            # a wide table: ± may begin a line
            table = table.map(lambda text: _shorter(text).replace("\u00a0±", " ±"))
            table = table.rename(columns=_hyphenated, level=1)
            caption = (
                "the paper's metrics and, in per cent of the experts', the paper's performance and ours."
            )
            self._show(table, caption, "beside-paper", others=others, classes="wide")

    def pattern(self, *others):
        """Display what is comparable at any size: order, signs, shares recovered; of this and other pages."""
        if self.has_records():
            pages = [page for page in (self, *others) if page.records]
            frames = {page.name: page.frame for page in pages}
            chosen = {page.name: tables.alphas(page.records) for page in pages}
            table = tables.pattern(frames, self.dataset, self.paper, chosen)
            vectors = pd.DataFrame({page.name: tables.vectors(page.records) for page in pages})
            table = pd.concat([table, vectors]).fillna("")
            caption = (
                "what can be compared at any size, in the paper and here. The share of a gain that needs no "
                "merging is how far the untouched pretrained encoder, realigned in the same way, gets from "
                "the bare merged model to the realigned one; negative where it stays below the bare one."
            )
            self._show(table, caption, "pattern", "what is compared", others)

    def claims(self):
        """Display every claim with the number that decides it on each seed."""
        if self.has_records():
            table = self.judge()
            table = table[["claim", "verdict", *table.columns.drop(["claim", "verdict", "source"]), "source"]]
            table = table.assign(verdict=table.verdict.map(marked))
            caption, last = "each claim, its verdict, and the number that decides it, of each seed.", CLOSE
            if self.seeds == 1:
                table, last = table.drop(columns="close"), f"One seed has no interval ({VARIED})."
            self._show(table, f"{caption} {last}", "claims", index=False, classes="claims", escape=None)

    def judge(self):
        """Decide every claim about this data set; see `report.claims.judge`."""
        return claims.judge(self.frame, self.dataset, self.records, self.paper)

    def print_numbers(self):
        """Print table and verdicts as text: what the tests compare with the committed notebook."""
        if not self.records:
            print("not run")
        else:
            print(tables.table_of(self.frame, self.dataset).to_string())
            print(self.judge().verdict.to_string())

    def recomputed(self, *others):
        """Display the seeds recomputed in this build, of this page and others, beside the committed ones."""
        display(Markdown(RECOMPUTED))
        found = [page for page in (self, *others) if page.fresh is not None]
        for page in found:
            page._recomputed()
        if not found:
            display(Markdown("*In this build no seed of these records was recomputed.*"))

    def _recomputed(self):
        """The seeds recomputed of this page, and which of them no committed one is there for."""
        if not self.has_records():
            return
        alone = sorted(set(self.fresh.index.unique("seed")) - set(self.frame.index.unique("seed")))
        table = tables.recomputed_beside_committed(self.frame, self.fresh)
        if len(table):
            self._show(table, "Δ printed, as committed and as recomputed here.", "recomputed")
        for seed in alone:
            text = (
                f"{self.title}: seed {seed} was computed, and no seed {seed} is committed to compare it with."
            )
            display(Markdown(f"*{text}*"))

    def deltas(self):
        """Draw Δ of every model and seed, the paper's beside."""
        if self.has_records():
            printed = paper_deltas(self.dataset, self.paper)
            mark(plotting.delta_figure(self.frame, printed, self.models, self.fresh), self)

    def alphas(self):
        """Draw the validation score against α, for task arithmetic and TIES."""
        if self.has("merge_task_arithmetic") and self.has("merge_ties"):
            scans = {}
            for method in ("task_arithmetic", "ties"):
                found = [record["details"] for record in self._all(f"merge_{method}")]
                scans[method] = [(details["scan"], details["alpha"]) for details in found]
            mark(plotting.alpha_figure(scans), self)

    def relationships(self, *others):
        """Draw every head's performance along every task vector; the paper's and other pages' beside."""
        if self.has("relationships"):
            curves = {page.name: page.curves() for page in (self, *others) if page.curves()}
            paper = paper_curves(self.dataset, self.paper)
            mark(plotting.relationship_figure(curves, paper, self.tasks), self, *others)

    def curves(self):
        """Every head's performance along every task vector, one entry a seed; none if that was not run."""
        found = [record["details"]["curves"] for record in self._all("relationships")]
        return [tables.relative_curves(curves, self.dataset) for curves in found]

    def pictures(self):
        """Draw images, truth and predictions of the first seed; those of photographs are never committed."""
        if self.has("qualitative"):
            if not self.pictures_file.exists():
                display(
                    Markdown("*The data set's pictures are not passed on: `make photos` draws this figure.*")
                )
                return
            pictures = load_pictures(self.pictures_file)
            mark(qualitative_figure(pictures, self.tasks, PICTURED), self)

    @property
    def pictures_file(self):
        """Where the pictures of the first seed are, if there are any."""
        seed = min((record["seed"] for record in self.records), default=0)
        return self.folder / f"seed{seed}" / "qualitative.npz"

    def subsets(self):
        """Draw Figure 1: performance against the number of merged tasks."""
        if self.has("subsets"):
            points = self.derive("subsets", tables.subset_scores)
            mark(plotting.subset_figure(points, self.paper["fig1"]), self)

    def coefficients(self):
        """Draw Figure 2: the coefficients that layer-wise AdaMerging learned."""
        if self.has("adamerging"):
            found = [record["details"]["coefficients"] for record in self._all("adamerging")]
            mark(plotting.coefficient_figure(found), self)

    def efficiency(self):
        """Display Table 4: steps, trained parameters, images and time; the paper's is Taskonomy's."""
        if self.has_records():
            paper = self.paper if self.dataset == "taskonomy" else None
            other = sorted(tables.seeds_on_other_devices(self.records))
            apart = f" Seconds without seed {', '.join(map(str, other))}, of another machine." * bool(other)
            alike = [record["provenance"] for record in self.records if record["seed"] not in other]
            kinds = len({provenance.get("device") for provenance in alike})
            apart += f" Of {kinds} kinds of processors." * (kinds > 1)
            caption = f"what each model costs, {self.over_seeds}. {MEAN_SECONDS}{apart}"
            table = tables.efficiency(self.records, paper)
            self._show(table if paper else table.droplevel(1, axis="columns"), caption, "costs")

    def beside(self, experiment):
        """Scores of those seeds that have an experiment: what its results may be compared with."""
        seeds = self._seeds_of(experiment)
        return None if self.frame is None else self.frame[self.frame.index.isin(seeds, level="seed")]

    def derive(self, experiment, function, *more):
        """What a function, such as those of `report.beyond`, makes of the `Findings` of one experiment."""
        seeds = self._seeds_of(experiment)
        beside = [record for record in self.records if record["seed"] in seeds]
        findings = tables.Findings(self._all(experiment), self.beside(experiment), self.dataset, beside)
        return function(findings, *more)

    def further(self, experiment, function, caption, corner):
        """Display the table that such a function makes, see `derive`."""
        if self.has(experiment):
            caption += self.share(experiment)
            self._show(self.derive(experiment, function), caption, function.__name__, corner)

    def share(self, experiment):
        """Of how many of the study's seeds an experiment is, for a caption; empty if it is of all."""
        count = len(self._seeds_of(experiment))
        return f" On {count} of the {self.seeds} seeds." * (count < self.seeds)

    def _seeds_of(self, experiment):
        return {record["seed"] for record in self._all(experiment)}

    def ran(self, experiment):
        """Whether there are records of an experiment."""
        return bool(self._all(experiment))

    def has(self, experiment):
        """Whether there are records of an experiment; says so if not."""
        found = self.ran(experiment)
        if not found and experiment in {record["experiment"] for record in self.outdated}:
            what = f"{experiment} of {self.study} is older than its models, or of other settings"
            display(Markdown(f"*Not drawn: the record of {what}. Compute it again, with `FURTHER`.*"))
        elif not found:
            what = f"{experiment} of {self.study}" if self.records else self.study
            display(Markdown(f"*Not run: there are no records of {what} at this scale.*"))
        return found

    def _all(self, experiment):
        return [record for record in self.records if record["experiment"] == experiment]


def mark(figure, *pages):
    """Write over a figure that its numbers are a fixture's, if those of any of its pages are."""
    if any(page.fixture for page in pages):
        figure.text(0.5, 0.5, "FIXTURE: no result", color="#AA3333", alpha=0.35, size=26, ha="center")


def _hyphenated(header):
    """A header that may break within its words, for a wide table."""
    return header.replace("photographs", "photo\u00adgraphs").replace("miniature", "mini\u00adature")


def _shorter(text):
    """Errors of four decimals without the zero before their point, for a wide table."""
    return re.sub(r"\b0(?=\.\d{4})", "", text)


def having(pages, experiment):
    """Those of several pages with records of an experiment; says once of the others that they lack it."""
    without = [TITLES[page.study] for page in pages if not page.ran(experiment)]
    if without:
        display(Markdown(f"*Not run at this scale: {experiment} on {', '.join(without)}.*"))
    return [page for page in pages if page.ran(experiment)]


def _records(folder):
    """Records below a folder; none if nothing was run."""
    return load_records(folder) if listed(folder, "**/*.json") else []
