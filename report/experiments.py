"""What the computing notebooks compute: one row an experiment.

A new experiment is a row here and a notebook of that name in `notebooks/compute/`. The Snakefile makes a rule
of each row; the wildcard of a rule, where one notebook has several runs, is a parameter of the notebook.
"""

from dataclasses import dataclass, field

GROUPS = ("main", "paper", "all")  # what FURTHER=no computes, and what FURTHER=paper and FURTHER=all add
EACH_TASK = "tasks"  # runs: one for each task of the study


@dataclass(frozen=True)
class Experiment:
    """One computing notebook and its place in the graph.

    Attributes
    ----------
    notebook : str
        Its name, and that of its record.
    what : str
        For the line of progress; may name the wildcard.
    needs, writes : tuple of str
        Checkpoints that it reads and leaves, without suffix; `expert` stands for those of all tasks.
    seconds : int
        That it takes in miniature on one core; a first guess for the time left.
    wildcard : str
        The parameter in which its runs differ; the record is `<notebook>_<value>`. Empty: one run.
    runs : dict of str to tuple or str
        By group, the wildcard's values, or `EACH_TASK`; `("",)` for the one run of what has no wildcard.
    dataset : str
        The only data set that has it; all if empty.
    pictures : bool
        Whether `<record>.npz` lies beside its record.
    """

    notebook: str
    what: str
    needs: tuple = ()
    writes: tuple = ()
    seconds: int = 60
    wildcard: str = ""
    runs: dict = field(default_factory=lambda: {"all": ("",)})
    dataset: str = ""
    pictures: bool = False

    @property
    def name(self):
        """Name of the record, with its wildcard: `merge_{method}`."""
        return f"{self.notebook}_{{{self.wildcard}}}" if self.wildcard else self.notebook

    def records(self, group, tasks):
        """Names of the records that a group of a study with these task names has of it."""
        values = self.runs.get(group, ())
        return [
            self.name.format(**{self.wildcard: value}) for value in (tasks if values == EACH_TASK else values)
        ]


MAIN, PAPER = ({group: ("",)} for group in GROUPS[:2])
BY_METHOD = {"main": ("task_arithmetic", "ties"), "paper": ("pretrained", "average", "ties_untrimmed")}
REALIGNED = {"main": ("task_arithmetic", "ties"), "paper": ("pretrained",)}
MERGED = "merged_task_arithmetic"
ALSO_MERGED = ("expert", MERGED)
BOTH_REALIGNED = ("realigned_task_arithmetic_heads", "realigned_task_arithmetic_representation")

EXPERIMENTS = (
    Experiment(
        "expert", "expert for {task}", (), ("expert_{task}",), 120, wildcard="task", runs={"main": EACH_TASK}
    ),
    Experiment("joint", "joint training", (), ("joint",), 150, runs=MAIN),
    Experiment("merge", "merge by {method}", ("expert",), ("merged_{method}",), 20, "method", BY_METHOD),
    Experiment(
        "realign",
        "realign {method}",
        ("merged_{method}",),
        ("realigned_{method}_heads", "realigned_{method}_representation"),
        50,
        "method",
        REALIGNED,
    ),
    Experiment("relationships", "task relationships", ("expert",), seconds=70, runs=MAIN),
    Experiment(
        "qualitative",
        "pictures of predictions",
        ("expert", "joint", MERGED, *BOTH_REALIGNED),
        seconds=12,
        runs=MAIN,
        pictures=True,
    ),
    Experiment("control", "experts with realignment's budget", ("expert",), seconds=80, runs=PAPER),
    Experiment("control_train", "experts with realignment's steps", ("expert",), seconds=80, runs=PAPER),
    Experiment("masks", "an encoder a task by masks", ("expert",), seconds=40, runs=PAPER),
    Experiment("adamerging", "layer-wise AdaMerging", ("expert",), seconds=50, runs=PAPER),
    Experiment("released", "the released code's adapter", (MERGED,), seconds=40, runs=PAPER),
    Experiment(
        "subsets", "every subset of the tasks", ("expert",), seconds=160, runs=PAPER, dataset="taskonomy"
    ),
    Experiment("closed_form", "closed form and few images", ALSO_MERGED, seconds=300),
    Experiment("closed_form_control", "controls of closed form", ALSO_MERGED, seconds=90),
    Experiment("neighbours", "closed form's neighbours", ALSO_MERGED, seconds=420),
    Experiment("unlabelled_alpha", "α without labels", ("expert",), seconds=240),
    Experiment("field", "the wider field of merging", ("expert",), seconds=900),
    Experiment("joint_variants", "joint training done fairly", seconds=1200),
    Experiment("variations", "what the paper did not vary", ALSO_MERGED, seconds=1400),
    Experiment(
        "mechanism",
        "features and task vectors",
        (*ALSO_MERGED, BOTH_REALIGNED[1]),
        seconds=60,
    ),
    Experiment("frozen_decoder", "experts under one frozen decoder", (MERGED,), seconds=400),
)


def records_of(dataset, tasks, further):
    """Names of the records that one seed of a study has.

    Parameters
    ----------
    dataset : str
        Of the study.
    tasks : sequence of str
        Names of its tasks.
    further : str
        `no`, or the last of `GROUPS` to be computed.
    """
    groups = GROUPS[: 1 + GROUPS.index("main" if further == "no" else further)]
    return [
        name
        for group in groups
        for experiment in EXPERIMENTS
        if experiment.dataset in ("", dataset)
        for name in experiment.records(group, tasks)
    ]
