# The graph of everything that is computed and drawn. The Makefile runs it through tools/pipeline.py.
#
#   data ──► expert ──► merge ──► realign ──► records ──► pages ──► book
#
# A step runs again if its parameters, its inputs or the code that it runs changed: `params.code` is a hash
# of the notebook and of the modules that it imports, without comments and docstrings.
import sys
from pathlib import Path

import yaml

sys.path.insert(0, workflow.basedir)
from simo.notebooks import code_hash, declared_parameters, read_parameters
from simo.tasks import tasks_of

PROFILE = config.get("profile", "miniature")
SEEDS = [int(seed) for seed in str(config.get("seeds", 0)).split()]
DATASETS = ["nyuv2"]
METHODS = ["pretrained", "average", "task_arithmetic", "ties"]
REALIGNED = ["pretrained", "task_arithmetic", "ties"]  # pretrained: the control without any merging
PAGES = ["introduction", "nyuv2", "status"]  # notebooks that draw; they read records only

BUILD = f"build/{PROFILE}"
DATA = str(config.get("data") or f"{BUILD}/data")
VALUES = {dataset: read_parameters(f"notebooks/params/{PROFILE}/{dataset}.yaml") for dataset in DATASETS}
RENDERS = yaml.safe_load(Path(f"notebooks/params/{PROFILE}/data.yaml").read_text())
# expected seconds of a step on one core, for the time left, which corrects itself as steps end
SECONDS = {"expert": 120, "joint": 150, "merge": 20, "realign": 50, "control": 80, "relationships": 70}

CHECKPOINTS = BUILD + "/checkpoints/{dataset}/seed{seed}"
RECORDS = BUILD + "/records/{dataset}/seed{seed}"
EXECUTED = BUILD + "/notebooks/{dataset}/seed{seed}"
LOGS = BUILD + "/logs/{dataset}/seed{seed}"
PREPARED = DATA + "/{dataset}/prepared.json"
COMPUTE = (
    "python -m simo.notebooks notebooks/{params.notebook}.ipynb {output.notebook:q} -f {params.file:q}"
    " -p data {params.data:q} -p checkpoints {params.checkpoints:q}"
    " -p records {params.records:q} -p seed {wildcards.seed} {params.more} > {log:q} 2>&1"
)


def seconds(step):
    return SECONDS[step] if PROFILE != "smoke" and step in SECONDS else 12


def task_names(dataset):
    return [task.name for task in tasks_of(dataset)]


def compute(notebook, more=""):
    """Params of a rule that runs a notebook: what it runs, on which values, and what it must run again for."""
    return dict(
        notebook=notebook,
        more=more,
        file=lambda w: f"notebooks/params/{PROFILE}/{w.dataset}.yaml",
        data=lambda w: f"{DATA}/{w.dataset}",
        checkpoints=lambda w: CHECKPOINTS.format(**w),
        records=lambda w: RECORDS.format(**w),
        values=lambda w: {k: v for k, v in VALUES[w.dataset].items() if k in declared_parameters(notebook)},
        code=lambda w: code_hash(notebook),
    )


def experts(wildcards):
    return [CHECKPOINTS.format(**wildcards) + f"/expert_{task}.safetensors" for task in task_names(wildcards.dataset)]


def experiments(dataset):
    """Names of the records of one seed."""
    return (
        [f"expert_{task}" for task in task_names(dataset)]
        + [f"merge_{method}" for method in METHODS]
        + [f"realign_{method}" for method in REALIGNED]
        + ["joint", "control", "relationships", "qualitative"]
    )


def recomputed(wildcards=None):
    return [
        f"{RECORDS.format(dataset=dataset, seed=seed)}/{name}.json"
        for dataset in DATASETS
        for seed in SEEDS
        for name in experiments(dataset)
    ]


wildcard_constraints:
    dataset="|".join(DATASETS),
    seed=r"\d+",
    kind="book|redraw",


rule book:
    input: BUILD + "/book/_build/html/index.html"


rule redraw:
    input: BUILD + "/redraw/_build/html/index.html"


rule data:
    input: expand(PREPARED, dataset=DATASETS)


rule records:
    input: recomputed
    message: "copy the recomputed records to records/"
    resources: seconds=5
    log: BUILD + "/logs/records.log"
    shell: "python tools/book.py records {BUILD}/records records/{PROFILE} > {log:q} 2>&1"


if not config.get("data"):

    rule render:
        output: PREPARED
        log: BUILD + "/logs/{dataset}/render.log"
        message: "render the data of {wildcards.dataset}"
        params:
            options=lambda w: " ".join(
                f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
                for name, value in RENDERS[w.dataset].items()
            ),
            code=lambda w: code_hash("data_scripts/miniature.py"),
        threads: workflow.cores
        resources: seconds=15
        shell:
            "python -m data_scripts.miniature {wildcards.dataset} --out $(dirname {output:q}) --replace"
            " {params.options} --workers {threads} > {log:q} 2>&1"


rule joint:
    input: data=PREPARED
    output:
        notebook=EXECUTED + "/joint.ipynb",
        record=RECORDS + "/joint.json",
    log: LOGS + "/joint.log"
    message: "joint training on {wildcards.dataset}, seed {wildcards.seed}"
    params: **compute("joint")
    priority: 1  # the longest: begun before what does not wait for it
    resources: seconds=seconds("joint")
    shell: COMPUTE


use rule joint as expert with:
    output:
        notebook=EXECUTED + "/expert_{task}.ipynb",
        record=RECORDS + "/expert_{task}.json",
        model=CHECKPOINTS + "/expert_{task}.safetensors",
    log: LOGS + "/expert_{task}.log"
    message: "expert for {wildcards.task} on {wildcards.dataset}, seed {wildcards.seed}"
    params: **compute("expert", "-p task {task}")
    priority: 2  # all that follows waits for the experts
    resources: seconds=seconds("expert")


use rule joint as merge with:
    input:
        data=PREPARED,
        experts=experts,
    output:
        notebook=EXECUTED + "/merge_{method}.ipynb",
        record=RECORDS + "/merge_{method}.json",
        model=CHECKPOINTS + "/merged_{method}.safetensors",
    log: LOGS + "/merge_{method}.log"
    message: "merge by {wildcards.method} on {wildcards.dataset}, seed {wildcards.seed}"
    params: **compute("merge", "-p method {method}")
    resources: seconds=seconds("merge")


use rule joint as realign with:
    input:
        data=PREPARED,
        model=rules.merge.output.model,
    output:
        notebook=EXECUTED + "/realign_{method}.ipynb",
        record=RECORDS + "/realign_{method}.json",
        heads=CHECKPOINTS + "/realigned_{method}_heads.safetensors",
        representation=CHECKPOINTS + "/realigned_{method}_representation.safetensors",
    log: LOGS + "/realign_{method}.log"
    message: "realign {wildcards.method} on {wildcards.dataset}, seed {wildcards.seed}"
    params: **compute("realign", "-p method {method}")
    resources: seconds=seconds("realign")


use rule joint as control with:
    input:
        data=PREPARED,
        experts=experts,
    output:
        notebook=EXECUTED + "/control.ipynb",
        record=RECORDS + "/control.json",
    log: LOGS + "/control.log"
    message: "control: experts with realignment's budget on {wildcards.dataset}, seed {wildcards.seed}"
    params: **compute("control")
    resources: seconds=seconds("control")


use rule control as relationships with:
    output:
        notebook=EXECUTED + "/relationships.ipynb",
        record=RECORDS + "/relationships.json",
    log: LOGS + "/relationships.log"
    message: "task relationships on {wildcards.dataset}, seed {wildcards.seed}"
    params: **compute("relationships")
    resources: seconds=seconds("relationships")


use rule joint as qualitative with:
    input:
        data=PREPARED,
        experts=experts,
        realigned=expand(rules.realign.output.heads, method="task_arithmetic", allow_missing=True),
    output:
        notebook=EXECUTED + "/qualitative.ipynb",
        record=RECORDS + "/qualitative.json",
        pictures=RECORDS + "/qualitative.npz",
    log: LOGS + "/qualitative.log"
    message: "pictures of predictions on {wildcards.dataset}, seed {wildcards.seed}"
    params: **compute("qualitative")
    resources: seconds=seconds("qualitative")


# a profile without committed records is drawn from what was just computed
COMMITTED = f"records/{PROFILE}" if Path(f"records/{PROFILE}").is_dir() else ""


def drawn_from(wildcards):
    committed = sorted(map(str, Path(COMMITTED or "-").glob("**/*.*")))
    return committed + (recomputed() if wildcards.kind == "book" or not COMMITTED else [])


rule page:
    input: drawn_from
    output: notebook=BUILD + "/{kind}/pages/{page}.ipynb"
    log: BUILD + "/logs/{kind}/{page}.log"
    message: "draw the page {wildcards.page}"
    params:
        code=lambda w: code_hash(w.page),
        records=COMMITTED or f"{BUILD}/records",
        recomputed=lambda w: f"{BUILD}/records" if COMMITTED and w.kind == "book" else "''",
    wildcard_constraints: page="|".join(PAGES)
    resources: seconds=12
    shell:
        "python -m simo.notebooks notebooks/{wildcards.page}.ipynb {output.notebook:q}"
        " -p records_folder {params.records:q} -p recomputed {params.recomputed:q} > {log:q} 2>&1"


rule html:
    input:
        pages=expand(rules.page.output.notebook, page=PAGES, allow_missing=True),
        sources=["_config.yml", "_toc.yml", "tools/book.py", *map(str, Path("book").glob("**/*.*"))],
        notebooks=sorted(map(str, Path("notebooks").glob("*.ipynb"))),
    output: BUILD + "/{kind}/_build/html/index.html"
    log: BUILD + "/logs/{kind}/html.log"
    message: "build the book"
    params: executed=lambda w: f"{BUILD}/notebooks/{DATASETS[0]}/seed{SEEDS[0]}" if w.kind == "book" else ""
    resources: seconds=15
    shell: "python tools/book.py build {BUILD}/{wildcards.kind} --executed={params.executed:q} > {log:q} 2>&1"
