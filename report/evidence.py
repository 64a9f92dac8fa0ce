"""What a claim is, and what it is decided on: the results of one seed, or of the paper."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from report import tables
from report.paper import paper_costs, paper_curves, paper_deltas, paper_performance
from simo.tasks import tasks_of

EFFECT = 1  # points, of Δ or of performance, that count as an effect


@dataclass(frozen=True)
class Evidence:
    """What one seed, or the paper, has to say.

    Attributes
    ----------
    delta : Series
        Printed Δ_MTL by model name.
    curves : dict
        Performance relative to the expert, `[primary task][evaluated task][λ]`; see
        `report.tables.relative_curves`.
    sizes : dict of int to float
        Mean performance of merged subsets by number of tasks.
    costs : dict of str to dict
        `steps`, `samples` and perhaps `seconds` by model name.
    clip : dict of int to float
        The paper's curve of CLIP encoders, as `sizes`.
    performance : dict of str to dict
        Of every model and task relative to the expert, in per cent.
    coefficients : DataFrame
        Of layer-wise AdaMerging inside the blocks: one row a tensor, indexed by block, one column a task.
    alphas : dict of str to float
        The α that was chosen, by merging method; of 0, nothing was merged.
    printed : bool
        Whether these are the paper's own numbers, which lack our controls.
    """

    delta: pd.Series
    curves: dict = field(default_factory=dict)
    sizes: dict = field(default_factory=dict)
    costs: dict = field(default_factory=dict)
    clip: dict = field(default_factory=dict)
    performance: dict = field(default_factory=dict)
    coefficients: pd.DataFrame | None = None
    alphas: dict = field(default_factory=dict)
    printed: bool = False

    def merged(self, method):
        """Whether the validation split chose to merge anything; if not, the model is the pretrained one."""
        return self.alphas.get(method) != 0


@dataclass(frozen=True)
class Claim:
    """One claim, decided on each seed by one number.

    Attributes
    ----------
    name : str
        Short and stable, for links and tests.
    sentence : str
        What is claimed, with the criterion.
    measure : callable
        From Evidence to the deciding number; KeyError or NaN if something was not run.
    holds : callable
        From that number to whether the claim holds.
    unit : str
        Of the number.
    source : str
        Where the paper says so; "ours" for controls of this book.
    datasets : tuple of str
        Which data sets it is about; all if empty.
    premise : callable
        From Evidence to whether the claim applies.
    settled : bool
        Whether our own parameter files decide it: its number is shown, and no verdict.
    """

    name: str
    sentence: str
    measure: Callable[[Evidence], float]
    holds: Callable[[float], bool]
    unit: str = "points of Δ"
    source: str = "abstract, Tables 1 to 3"
    datasets: tuple = ()
    premise: Callable[[Evidence], bool] = lambda seed: True
    settled: bool = False


def gather(frame, dataset, records, paper):
    """Evidence of every seed of a study.

    Parameters
    ----------
    frame : DataFrame
        See `report.tables.scores`.
    dataset : str
    records : list of dict
        All of the study; claims about what is not among them are not run.
    paper : dict
        The content of `paper_numbers.json`.

    Returns
    -------
    dict of str to Evidence
        By "seed 0" and so on.
    """
    found, chosen = {}, tables.alphas(records)
    for seed in frame.index.unique("seed"):
        own = {record["experiment"]: record for record in records if record["seed"] == seed}
        curves, sizes, coefficients = {}, {}, None
        if "relationships" in own:
            curves = tables.relative_curves(own["relationships"]["details"]["curves"], dataset)
        if "subsets" in own:
            beside = frame[frame.index.isin([seed], level="seed")]
            findings = tables.Findings([own["subsets"]], beside, dataset, [*own.values()])
            points = tables.subset_scores(findings)
            sizes = {1: 1.0, **points.groupby("size").performance.mean()}
        if "adamerging" in own:
            coefficients = block_coefficients(own["adamerging"]["details"]["coefficients"])
        costs = tables.costs_of(own.values()).drop(columns="seed").groupby("model").last().to_dict("index")
        models = frame.xs(seed, level="seed")
        relative = models[[f"{task.name} %" for task in tasks_of(dataset)]]
        found[f"seed {seed}"] = Evidence(
            models.printed,
            curves,
            sizes,
            costs,
            _by_size(paper["fig1"]["clip_8"]),
            relative.rename(columns=lambda name: name.removesuffix(" %")).to_dict("index"),
            coefficients,
            chosen.loc[seed].to_dict() if seed in chosen.index else {},
        )
    return found


def gather_paper(dataset, paper):
    """Evidence of the paper itself: printed numbers and digitised curves."""
    about = dataset == "taskonomy"  # Figure 1 and Table 4
    sizes = _by_size(paper["fig1"]["taskonomy_mean"]) if about else {}
    costs = paper_costs(paper) if about else {}
    delta, curves = paper_deltas(dataset, paper), paper_curves(dataset, paper)
    clip, performance = _by_size(paper["fig1"]["clip_8"]), paper_performance(dataset, paper)
    return Evidence(delta, curves, sizes, costs, clip, performance, printed=True)


def block_coefficients(learned):
    """Coefficients of the tensors inside blocks, by block and task.

    Parameters
    ----------
    learned : dict of str to dict
        Of a record: by task and tensor name.

    Returns
    -------
    DataFrame
        One row a tensor, indexed by the number of its block, from 0; one column a task.
    """
    table = pd.DataFrame(learned)
    blocks = table.index.str.extract(r"\bblocks\.(\d+)\.", expand=False)
    inside = table[blocks.notna()]
    return inside.set_index(blocks[blocks.notna()].astype(int).rename("block"))


def _by_size(values):
    return {int(size): value for size, value in values.items()}
