# The graph of everything that is computed and drawn. The Makefile runs it through tools/pipeline.py.
#
#   data ──► expert ──► merge ──► realign ──► records ──► pages ──► book
#
# A step runs again if its parameters, its inputs or the code that it runs changed: `params.code` is a hash
# of the notebook and of the modules that it imports, without comments and docstrings.
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)
from data_scripts.sources import data_folder, missing_data
from report.experiments import EXPERIMENTS, records_of
from report.notebooks import code_hash
from report.parameters import PLACES, ROOT, declared_parameters, read_changes, read_seeds, read_study, read_yaml
from simo.errors import SimoError
from simo.files import listed
from simo.tasks import TASKS, tasks_of

# parameters that a step gets from here, and with what; SET may not change them, nor those that name a run
GIVEN = {
    "data": "{params.data:q}",
    "checkpoints": "{params.checkpoints:q}",
    "records": "{params.records:q}",
    "backbone_weights": "{input.weights:q}",
    "seed": "{wildcards.seed}",
}
OWN = {*GIVEN, "profile", "dataset", *(each.wildcard for each in EXPERIMENTS if each.wildcard)}

PROFILE = str(config.get("profile") or "miniature")
SEEDS = read_seeds(str(config.get("seeds", 0)))
# a study is a data set with one way to treat it, and has a parameter file of its name
STUDIES = str(config.get("studies") or "").split()
STUDIES = STUDIES or [name for name in TASKS if Path(f"notebooks/params/{PROFILE}/{name}.yaml").exists()] or ["nyuv2"]
PAGES = [path.stem for path in listed("notebooks/pages", "*.ipynb")]  # they draw, and read records only

# a profile without committed records is drawn from what was just computed
COMMITTED = f"records/{PROFILE}" if Path(f"records/{PROFILE}").is_dir() else ""
# controls, further methods and variants: minutes (paper) or hours (all, beyond the paper) in miniature that are
# spared where their committed records can be drawn
FURTHER = config.get("further", "no" if COMMITTED else "paper") or "no"  # YAML reads no as false
if FURTHER not in ("no", "paper", "all"):
    raise SimoError(f"further={FURTHER}: expected no, paper or all")

BUILD = str(config.get("build") or f"build/{PROFILE}")
for name, value in {"BUILD": BUILD, "DATA": config.get("data")}.items():
    if value and set("{}\n") & set(value):  # in Snakemake's names of files, braces stand for what varies
        raise SimoError(f"{name}={value}: braces and line ends cannot be in the name of this folder: rename it")
OURS = "benchmarks book data_scripts notebooks profiles records report simo tests tools".split()
place = Path(BUILD).resolve()
if ROOT.is_relative_to(place) or any(place.is_relative_to(ROOT / name) for name in OURS):
    raise SimoError(f"BUILD={BUILD}: the project's own files are there: name another folder, such as build/mine")
# parameters of all studies, as a YAML mapping: set="{finetune_steps: 10, realign_steps: 5}"
CHANGED = read_changes(config.get("set"), OWN)
VALUES = {study: read_study(PROFILE, study, OWN, CHANGED) for study in STUDIES}
RENDERED = Path(f"notebooks/params/{PROFILE}/data.yaml")
# how raw data are prepared, by data set: options of its script, or another script and the data set it is made from
PREPARED = read_yaml(RENDERED.with_name("raw.yaml")) if RENDERED.with_name("raw.yaml").exists() else {}
MADE_FROM = {name: how["from"] for name, how in PREPARED.items() if "from" in how}
DATASETS = {values["dataset"] for values in VALUES.values()}
DATASETS = sorted(DATASETS | {MADE_FROM[name] for name in DATASETS & MADE_FROM.keys()})
# the user's folder of raw or prepared data, or one that NYUv2's copy on the Hugging Face Hub is fetched into
FETCH = config.get("download") == "yes"
if FETCH and config.get("data"):
    raise SimoError(f"DOWNLOAD=yes and DATA={config['data']}: give one of the two")
FOLDER = f"{BUILD}/raw" if FETCH else config.get("data")
if FETCH:
    Path(FOLDER, "nyuv2").mkdir(parents=True, exist_ok=True)
elif not RENDERED.exists() and not FOLDER:
    raise SimoError(missing_data(PROFILE, [name for name in DATASETS if name not in MADE_FROM]))
DATA = {
    name: data_folder(None if name in MADE_FROM else FOLDER, name, BUILD, PREPARED.get(name, {}).get("size"))
    for name in DATASETS
}


def encoder_source(values):
    """Where a study's pretrained encoder comes from; one that leaves it open (`WEIGHTS`) takes the user's word."""
    given = values["backbone_weights"]
    return (config.get("weights") or "timm") if given == "WEIGHTS" else given


def encoder_file(values):
    """The encoder's file: one of the repository, or one that is converted for this build."""
    given = values["backbone_weights"]
    converted = f"{BUILD}/weights/{values['backbone']}-{Path(encoder_source(values)).stem}.safetensors"
    return given if given.endswith(".safetensors") else converted


ENCODERS = {encoder_file(values): values for values in VALUES.values()}
CHECKPOINTS = BUILD + "/checkpoints/{study}/seed{seed}"
RECORDS = BUILD + "/records/{study}/seed{seed}"
EXECUTED = BUILD + "/notebooks/{study}/seed{seed}"
LOGS = BUILD + "/logs/{study}/seed{seed}"
WEIGHTS = BUILD + "/weights/{encoder}.safetensors"


def seconds(experiment=None):
    """Expected seconds; 0, not known, where the model, the data and the machine are the user's."""
    return {"smoke": 12, "miniature": experiment.seconds if experiment else 12}.get(PROFILE, 0)


def compute(experiment):
    """Params of a rule that runs a notebook: what it runs, on which values, and what it must run again for."""
    notebook, run = experiment.notebook, experiment.wildcard
    known = declared_parameters(notebook).keys()
    own = f"-p {run} {{{run}}}" if run else ""
    return dict(
        notebook=notebook,
        # values are compared below; a param that asks for `threads`, as this does, Snakemake does not compare
        more=lambda w, threads: " ".join([own.format(**w), *changed_in(notebook)]),
        file=lambda w: f"notebooks/params/{PROFILE}/{w.study}.yaml",
        data=lambda w: DATA[VALUES[w.study]["dataset"]],
        checkpoints=lambda w: CHECKPOINTS.format(**w),
        records=lambda w: RECORDS.format(**w),
        values=lambda w: {k: v for k, v in VALUES[w.study].items() if k in known - set(PLACES)},
        code=lambda w: code_hash(notebook),
    )


def changed_in(notebook):
    declared = declared_parameters(notebook)
    return [f"-p {name} {as_argument(value)}" for name, value in CHANGED.items() if name in declared]


def as_argument(value):
    """A parameter's value for the command line of `report.notebooks`, which takes text as it stands."""
    return shlex.quote(value if isinstance(value, str) else " " + json.dumps(value))  # -1 is no option


def prepared(wildcards):
    return DATA[VALUES[wildcards.study]["dataset"]] + "/prepared.json"


def weights(wildcards):
    """File of the pretrained encoder."""
    return encoder_file(VALUES[wildcards.study])


def task_names(study):
    return [task.name for task in tasks_of(VALUES[study]["dataset"])]


def checkpoints_of(needs, wildcards):
    """Files of the checkpoints that an experiment needs; `expert` stands for those of all tasks."""
    names = [[f"expert_{t}" for t in task_names(wildcards.study)] if n == "expert" else [n] for n in needs]
    return [CHECKPOINTS + f"/{name}.safetensors" for name in sum(names, [])]


def script_of(dataset):
    """The script of `data_scripts` that prepares a data set."""
    return PREPARED.get(dataset, {}).get("script", dataset)


def options(values, without=()):
    """Command line options of a mapping."""
    given = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return " ".join(f"--{name} {' '.join(map(str, own))}" for name, own in given.items() if name not in without)


def recomputed(wildcards=None):
    return [
        f"{RECORDS.format(study=study, seed=seed)}/{name}.json"
        for study in STUDIES
        for seed in SEEDS
        for name in records_of(VALUES[study]["dataset"], task_names(study), FURTHER)
    ]


wildcard_constraints:
    dataset="|".join(DATASETS),
    study="|".join(STUDIES),
    seed=r"\d+",
    kind="book|redraw",
    task="[a-z]+",
    method="[a-z_]+",


rule book:
    input: BUILD + "/book/_build/html/index.html"


rule redraw:
    input: BUILD + "/redraw/_build/html/index.html"


rule data:
    input: [f"{folder}/prepared.json" for folder in DATA.values()]


rule records:
    input: recomputed
    message: "copy the recomputed records to records/"
    params: seeds=sorted({str(Path(*Path(path).parts[-3:-1])) for path in recomputed()})
    resources: seconds=5
    log: BUILD + "/logs/records.log"
    shell: "python tools/book.py records {BUILD:q}/records records/{PROFILE:q} {params.seeds} > {log:q} 2>&1"


if RENDERED.exists() and not FOLDER:

    rule render:
        output: BUILD + "/data/{dataset}/prepared.json"
        log: BUILD + "/logs/{dataset}/render.log"
        message: "render the data of {wildcards.dataset}"
        params:
            options=lambda w: options(read_yaml(RENDERED)[w.dataset]),
            code=lambda w: code_hash("data_scripts/miniature.py"),
        resources: seconds=45
        shell:
            # numba looks for changes in the outermost function's file alone: other code, other cache
            "NUMBA_CACHE_DIR=\"${{NUMBA_CACHE_DIR:-$PWD/.snakemake/numba}}/{params.code}\" python -m data_scripts.miniature {wildcards.dataset} --out \"$(dirname {output:q})\" --replace"
            " {params.options} --workers 1 > {log:q} 2>&1"

else:

    rule prepare:
        input: lambda w: [DATA[MADE_FROM[w.dataset]] + "/prepared.json"] if w.dataset in MADE_FROM else []
        output: BUILD + "/data/{dataset}/prepared.json"
        log: BUILD + "/logs/{dataset}/prepare.log"
        message: "prepare {wildcards.dataset} from the raw data"
        params:
            raw=lambda w: DATA[MADE_FROM[w.dataset]] if w.dataset in MADE_FROM else f"{FOLDER}/{w.dataset}",
            script=lambda w: script_of(w.dataset),
            options=lambda w: options(PREPARED.get(w.dataset, {}), without=("script", "from"))
            + " --download" * (FETCH and w.dataset == "nyuv2"),
            code=lambda w: code_hash(f"data_scripts/{script_of(w.dataset)}.py"),
        threads: workflow.cores
        resources: seconds=0  # not known
        shell:
            "python -m data_scripts.{params.script} --raw {params.raw:q} --out \"$(dirname {output:q})\""
            " {params.options} --workers {threads} > {log:q} 2>&1"


rule weights:
    output: WEIGHTS
    log: BUILD + "/logs/weights/{encoder}.log"
    message: "bring the weights of {wildcards.encoder} into one file"
    params:
        source=lambda w, output: encoder_source(ENCODERS[output[0]]),
        backbone=lambda w, output: ENCODERS[output[0]]["backbone"],
        size=lambda w, output: json.dumps(ENCODERS[output[0]]["backbone_args"]),  # of random weights
        code=code_hash("data_scripts/weights.py"),
    resources: seconds=60
    shell:
        "python -m data_scripts.weights --out {output:q} --weights {params.source:q}"
        " --backbone {params.backbone:q} --backbone-args {params.size:q} > {log:q} 2>&1"


for each in EXPERIMENTS:

    rule:
        name: each.notebook
        input:
            data=prepared,
            weights=weights,
            checkpoints=lambda w, each=each: checkpoints_of(each.needs, w),
        output:
            notebook=f"{EXECUTED}/{each.name}.ipynb",
            record=f"{RECORDS}/{each.name}.json",
            pictures=[f"{RECORDS}/{each.name}.npz"] * each.pictures,
            models=[f"{CHECKPOINTS}/{name}.safetensors" for name in each.writes],
        log: f"{LOGS}/{each.name}.log"
        message: each.what.replace("{", "{wildcards.") + " on {wildcards.study}, seed {wildcards.seed}"
        params: **compute(each)
        priority: len(EXPERIMENTS) - EXPERIMENTS.index(each)  # in the table's order
        # without a limit of its threads, one notebook at a time
        threads: lambda w: 1 if VALUES[w.study]["threads"] else workflow.cores
        resources: seconds=seconds(each)
        shell:
            "python -m report.notebooks notebooks/compute/{params.notebook}.ipynb {output.notebook:q}"
            " -f {params.file:q} " + " ".join(f"-p {name} {value}" for name, value in GIVEN.items()) +
            " {params.more} > {log:q} 2>&1"


# what some pages read beside records and the paper's numbers
READS = {
    "evidence": ["book/outside_numbers.json"],
    "benchmarks": [*map(str, listed("benchmarks", "*.json"))],
    "status": [*map(str, listed("book", "torture.json"))],
    "model": [*map(str, listed("notebooks/params/paper", "*.yaml"))],
}


def drawn_from(wildcards):
    """What a page reads: itself, printed numbers, and records of its data set, of all, or none."""
    without = dict.fromkeys(("model", "deviations", "own_models", "benchmarks"), ())
    about = (without | {"evidence": ("nyuv2",)}).get(wildcards.page, TASKS)
    dataset = wildcards.page.split("_")[0]
    about = [dataset] if dataset in TASKS else about
    # the paper's scale, photographs and, where another profile is drawn beside it, the miniature stand beside
    committed = {Path(COMMITTED or "-"), *map(Path, listed("records", "*"))}
    records = [str(path) for folder in sorted(committed) for path in listed(folder, "*/*/*.*")]
    beside = wildcards.kind == "book" and "recomputed" in declared_parameters(wildcards.page)
    fresh = recomputed() if beside or not COMMITTED else []
    chosen = [path for path in records if Path(path).parts[2].split("_")[0] in about]
    own = [f"notebooks/pages/{wildcards.page}.ipynb", "book/paper_numbers.json"]  # its prose, too
    return [*own, *READS.get(wildcards.page, ()), *chosen] + [path for path in fresh if Path(path).parts[-3].split("_")[0] in about]


def drawing_parameters(page, kind):
    """Where a page finds its records: of a profile that pages name (`photos_folder`), beside the miniature's."""
    fresh = f"{BUILD}/records" if COMMITTED and kind == "book" else ""
    named = any(f"{PROFILE}_folder" in declared_parameters(name) for name in PAGES)
    folder = f"{PROFILE}_folder" if named else "records_folder"
    values = {folder: COMMITTED or f"{BUILD}/records", "recomputed": fresh}
    known = declared_parameters(page)
    return " ".join(f"-p {name} {as_argument(value)}" for name, value in values.items() if name in known)


rule page:
    input: drawn_from
    output: notebook=BUILD + "/{kind}/pages/{page}.ipynb"
    log: BUILD + "/logs/{kind}/{page}.log"
    message: "draw the page {wildcards.page}"
    params:
        code=lambda w: code_hash(w.page),
        given=lambda w: drawing_parameters(w.page, w.kind),
    wildcard_constraints: page="|".join(PAGES)
    resources: seconds=12
    shell:
        "python -m report.notebooks notebooks/pages/{wildcards.page}.ipynb {output.notebook:q}"
        " {params.given} > {log:q} 2>&1"


rule html:
    input:
        pages=expand(rules.page.output.notebook, page=PAGES, allow_missing=True),
        sources=["_config.yml", "_toc.yml", "CITATION.cff", "CONTRIBUTING.md", "tools/book.py", "tools/supplements.py", *map(str, listed("book", "**/*.*"))],
        documented=list(map(str, listed("simo", "**/*.py"))),  # in the API's pages
        notebooks=list(map(str, [*listed("notebooks", "*/*.ipynb"), *listed("notebooks/params", "paper/*.yaml")])),
    output: BUILD + "/{kind}/_build/html/index.html"
    log: BUILD + "/logs/{kind}/html.log"
    message: "build the book"
    params: executed=lambda w: f"{BUILD}/notebooks/{STUDIES[0]}/seed{SEEDS[0]}" if w.kind == "book" else ""
    resources: seconds=15
    shell: "python tools/book.py build {BUILD:q}/{wildcards.kind} --executed={params.executed:q} > {log:q} 2>&1"
