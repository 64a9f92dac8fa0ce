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

import yaml

sys.path.insert(0, workflow.basedir)
from data_scripts.sources import RAW, data_folder
from simo.errors import SimoError
from simo.notebooks import code_hash, declared_parameters, read_parameters
from simo.records import PLACES
from simo.tasks import TASKS, tasks_of


def typed(value):
    """Numbers, lists and so on of a YAML value, of which Snakemake's command line makes text throughout."""
    if isinstance(value, dict):
        return {name: typed(each) for name, each in value.items()}
    if isinstance(value, list):
        return [typed(each) for each in value]
    return yaml.safe_load(value) if isinstance(value, str) else value


PROFILE = config.get("profile", "miniature")
SEEDS = [int(seed) for seed in str(config.get("seeds", 0)).split()]
# a study is a data set with one way to treat it, and has a parameter file of its name
STUDIES = str(config.get("studies") or "nyuv2 cityscapes taskonomy").split()
CONTROLS = ["merge_pretrained", "realign_pretrained", "control"]  # without any merging
BEYOND = ["closed_form", "closed_form_control", "field", "joint_variants", "variations", "mechanism"]
BEYOND += ["frozen_decoder", "own_models"]
# notebooks that draw; they read records only
PAGES = ["introduction", "nyuv2", "cityscapes", "taskonomy", "claims", "deviations", "results"]
PAGES += ["beyond", "wider_field", "fair_joint", "what_varies", "why_it_breaks", "model", "status"]

# a profile without committed records is drawn from what was just computed
COMMITTED = f"records/{PROFILE}" if Path(f"records/{PROFILE}").is_dir() else ""
# controls, further methods and variants: minutes (paper) or hours (all, beyond the paper) in miniature that are
# spared where their committed records can be drawn
FURTHER = config.get("further", "no" if COMMITTED else "paper") or "no"  # YAML reads no as false
if FURTHER not in ("no", "paper", "all"):
    raise SimoError(f"further={FURTHER}: expected no, paper or all")

BUILD = str(config.get("build") or f"build/{PROFILE}")
# parameters of all studies, as a YAML mapping: set="{finetune_steps: 10, realign_steps: 5}"
CHANGED = typed(config.get("set") or {})
VALUES = {study: read_parameters(f"notebooks/params/{PROFILE}/{study}.yaml") | CHANGED for study in STUDIES}
RENDERED = Path(f"notebooks/params/{PROFILE}/data.yaml")
DATASETS = sorted({values["dataset"] for values in VALUES.values()})
if not RENDERED.exists() and not config.get("data"):
    raise SimoError(
        f"the profile {PROFILE!r} needs the real data: make book PROFILE={PROFILE} DATA=folder, with "
        + " and ".join(f"folder/{name} ({RAW[name]})" for name in DATASETS)
    )
DATA = {name: data_folder(config.get("data"), name, BUILD) for name in DATASETS}
# expected seconds of a miniature's step on one core, for the time left, which corrects itself as steps end
SECONDS = {"expert": 120, "joint": 150, "merge": 20, "realign": 50, "control": 80, "relationships": 70}
SECONDS |= {"masks": 40, "adamerging": 50, "released": 40, "subsets": 160, "mechanism": 60, "own_models": 40}
SECONDS |= {"closed_form": 300, "closed_form_control": 90, "field": 900, "joint_variants": 1200, "variations": 1400}
SECONDS |= {"frozen_decoder": 400}

CHECKPOINTS = BUILD + "/checkpoints/{study}/seed{seed}"
RECORDS = BUILD + "/records/{study}/seed{seed}"
EXECUTED = BUILD + "/notebooks/{study}/seed{seed}"
LOGS = BUILD + "/logs/{study}/seed{seed}"
WEIGHTS = BUILD + "/weights/dinov2.safetensors"
COMPUTE = (
    "python -m simo.notebooks notebooks/{params.notebook}.ipynb {output.notebook:q} -f {params.file:q}"
    " -p data {params.data:q} -p checkpoints {params.checkpoints:q} -p records {params.records:q}"
    " -p backbone_weights {input.weights:q} -p seed {wildcards.seed} {params.more} > {log:q} 2>&1"
)


def seconds(step):
    """Expected seconds; 0, not known, where the model, the data and the machine are the user's."""
    return {"smoke": 12, "miniature": SECONDS.get(step, 12)}.get(PROFILE, 0)


def task_names(study):
    return [task.name for task in tasks_of(VALUES[study]["dataset"])]


def compute(notebook, more=""):
    """Params of a rule that runs a notebook: what it runs, on which values, and what it must run again for."""
    known = declared_parameters(notebook).keys()
    return dict(
        notebook=notebook,
        # values are compared below; a param that asks for `threads`, as this does, Snakemake does not compare
        more=lambda w, threads: " ".join([more.format(**w), *changed_in(notebook)]),
        file=lambda w: f"notebooks/params/{PROFILE}/{w.study}.yaml",
        data=lambda w: DATA[VALUES[w.study]["dataset"]],
        checkpoints=lambda w: CHECKPOINTS.format(**w),
        records=lambda w: RECORDS.format(**w),
        values=lambda w: {k: v for k, v in VALUES[w.study].items() if k in known - set(PLACES)},
        code=lambda w: code_hash(notebook),
    )


def changed_in(notebook):
    declared = declared_parameters(notebook)
    return [f"-p {name} {shlex.quote(json.dumps(value))}" for name, value in CHANGED.items() if name in declared]


def prepared(wildcards):
    return DATA[VALUES[wildcards.study]["dataset"]] + "/prepared.json"


def weights(wildcards):
    """The pretrained encoder: a file of the repository, or one that is converted for this build."""
    given = VALUES[wildcards.study]["backbone_weights"]
    return WEIGHTS if given == "dinov2" else given


def experts(wildcards):
    return [CHECKPOINTS.format(**wildcards) + f"/expert_{task}.safetensors" for task in task_names(wildcards.study)]


def experiments(study):
    """Names of the records of one seed."""
    main = (
        [f"expert_{task}" for task in task_names(study)]
        + [f"{step}_{method}" for step in ("merge", "realign") for method in ("task_arithmetic", "ties")]
        + ["joint", "relationships", "qualitative"]
    )
    further = [*CONTROLS, "merge_average", "merge_ties_untrimmed", "masks", "adamerging", "released"]
    further += ["subsets"] * (VALUES[study]["dataset"] == "taskonomy")  # Figure 1
    return main + further * (FURTHER != "no") + BEYOND * (FURTHER == "all")


def recomputed(wildcards=None):
    return [
        f"{RECORDS.format(study=study, seed=seed)}/{name}.json"
        for study in STUDIES
        for seed in SEEDS
        for name in experiments(study)
    ]


wildcard_constraints:
    dataset="|".join(DATASETS),
    study="|".join(STUDIES),
    seed=r"\d+",
    kind="book|redraw",


rule book:
    input: BUILD + "/book/_build/html/index.html"


rule redraw:
    input: BUILD + "/redraw/_build/html/index.html"


rule data:
    input: [f"{folder}/prepared.json" for folder in DATA.values()]


rule records:
    input: recomputed
    message: "copy the recomputed records to records/"
    resources: seconds=5
    log: BUILD + "/logs/records.log"
    shell: "python tools/book.py records {BUILD}/records records/{PROFILE} > {log:q} 2>&1"


if RENDERED.exists() and not config.get("data"):

    rule render:
        output: BUILD + "/data/{dataset}/prepared.json"
        log: BUILD + "/logs/{dataset}/render.log"
        message: "render the data of {wildcards.dataset}"
        params:
            options=lambda w: " ".join(
                f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
                for name, value in yaml.safe_load(RENDERED.read_text())[w.dataset].items()
            ),
            code=lambda w: code_hash("data_scripts/miniature.py"),
        resources: seconds=45
        shell:
            "python -m data_scripts.miniature {wildcards.dataset} --out $(dirname {output:q}) --replace"
            " {params.options} --workers 1 > {log:q} 2>&1"

else:

    rule prepare:
        output: BUILD + "/data/{dataset}/prepared.json"
        log: BUILD + "/logs/{dataset}/prepare.log"
        message: "prepare {wildcards.dataset} from the raw data"
        params:
            raw=lambda w: f"{config['data']}/{w.dataset}",
            code=lambda w: code_hash(f"data_scripts/{w.dataset}.py"),
        threads: workflow.cores
        resources: seconds=0  # not known
        shell:
            "python -m data_scripts.{wildcards.dataset} --raw {params.raw:q} --out $(dirname {output:q})"
            " --workers {threads} > {log:q} 2>&1"


rule weights:
    output: WEIGHTS
    log: BUILD + "/logs/weights.log"
    message: "bring the encoder's weights into one file"
    params:
        source=config.get("weights") or "timm",
        backbone=VALUES[STUDIES[0]]["backbone"],
        size=json.dumps(VALUES[STUDIES[0]]["backbone_args"]),  # of random weights
    resources: seconds=60
    shell:
        "python -m data_scripts.weights --out {output:q} --weights {params.source:q}"
        " --backbone {params.backbone:q} --backbone-args {params.size:q} > {log:q} 2>&1"


rule joint:
    input:
        data=prepared,
        weights=weights,
    output:
        notebook=EXECUTED + "/joint.ipynb",
        record=RECORDS + "/joint.json",
        model=CHECKPOINTS + "/joint.safetensors",
    log: LOGS + "/joint.log"
    message: "joint training on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("joint")
    priority: 1  # the longest: begun before what does not wait for it
    threads: lambda w: 1 if VALUES[w.study]["threads"] else workflow.cores  # without a limit, one notebook at a time
    resources: seconds=seconds("joint")
    shell: COMPUTE


use rule joint as joint_variants with:
    output:
        notebook=EXECUTED + "/joint_variants.ipynb",
        record=RECORDS + "/joint_variants.json",
    log: LOGS + "/joint_variants.log"
    message: "joint training done fairly on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("joint_variants")
    resources: seconds=seconds("joint_variants")


use rule joint as expert with:
    output:
        notebook=EXECUTED + "/expert_{task}.ipynb",
        record=RECORDS + "/expert_{task}.json",
        model=CHECKPOINTS + "/expert_{task}.safetensors",
    log: LOGS + "/expert_{task}.log"
    message: "expert for {wildcards.task} on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("expert", "-p task {task}")
    priority: 2  # all that follows waits for the experts
    resources: seconds=seconds("expert")


use rule joint as merge with:
    input:
        data=prepared,
        weights=weights,
        experts=experts,
    output:
        notebook=EXECUTED + "/merge_{method}.ipynb",
        record=RECORDS + "/merge_{method}.json",
        model=CHECKPOINTS + "/merged_{method}.safetensors",
    log: LOGS + "/merge_{method}.log"
    message: "merge by {wildcards.method} on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("merge", "-p method {method}")
    resources: seconds=seconds("merge")


use rule joint as realign with:
    input:
        data=prepared,
        weights=weights,
        model=rules.merge.output.model,
    output:
        notebook=EXECUTED + "/realign_{method}.ipynb",
        record=RECORDS + "/realign_{method}.json",
        heads=CHECKPOINTS + "/realigned_{method}_heads.safetensors",
        representation=CHECKPOINTS + "/realigned_{method}_representation.safetensors",
    log: LOGS + "/realign_{method}.log"
    message: "realign {wildcards.method} on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("realign", "-p method {method}")
    resources: seconds=seconds("realign")


use rule joint as control with:
    input:
        data=prepared,
        weights=weights,
        experts=experts,
    output:
        notebook=EXECUTED + "/control.ipynb",
        record=RECORDS + "/control.json",
    log: LOGS + "/control.log"
    message: "control: experts with realignment's budget on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("control")
    resources: seconds=seconds("control")


use rule control as relationships with:
    output:
        notebook=EXECUTED + "/relationships.ipynb",
        record=RECORDS + "/relationships.json",
    log: LOGS + "/relationships.log"
    message: "task relationships on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("relationships")
    resources: seconds=seconds("relationships")


use rule control as masks with:
    output:
        notebook=EXECUTED + "/masks.ipynb",
        record=RECORDS + "/masks.json",
    log: LOGS + "/masks.log"
    message: "an encoder a task by masks on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("masks")
    resources: seconds=seconds("masks")


use rule control as adamerging with:
    output:
        notebook=EXECUTED + "/adamerging.ipynb",
        record=RECORDS + "/adamerging.json",
    log: LOGS + "/adamerging.log"
    message: "layer-wise AdaMerging on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("adamerging")
    resources: seconds=seconds("adamerging")


use rule control as subsets with:
    output:
        notebook=EXECUTED + "/subsets.ipynb",
        record=RECORDS + "/subsets.json",
    log: LOGS + "/subsets.log"
    message: "every subset of the tasks on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("subsets")
    resources: seconds=seconds("subsets")


use rule control as own_models with:
    output:
        notebook=EXECUTED + "/own_models.ipynb",
        record=RECORDS + "/own_models.json",
    log: LOGS + "/own_models.log"
    message: "one's own models, with the experts of {wildcards.study}, seed {wildcards.seed}"
    params: **compute("own_models")
    resources: seconds=seconds("own_models")


use rule joint as released with:
    input:
        data=prepared,
        weights=weights,
        model=expand(rules.merge.output.model, method="task_arithmetic", allow_missing=True),
    output:
        notebook=EXECUTED + "/released.ipynb",
        record=RECORDS + "/released.json",
    log: LOGS + "/released.log"
    message: "the released code's adapter on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("released")
    resources: seconds=seconds("released")


use rule joint as closed_form with:
    input:
        data=prepared,
        weights=weights,
        experts=experts,
        model=expand(rules.merge.output.model, method="task_arithmetic", allow_missing=True),
    output:
        notebook=EXECUTED + "/closed_form.ipynb",
        record=RECORDS + "/closed_form.json",
    log: LOGS + "/closed_form.log"
    message: "closed form and few images on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("closed_form")
    resources: seconds=seconds("closed_form")


use rule closed_form as closed_form_control with:
    output:
        notebook=EXECUTED + "/closed_form_control.ipynb",
        record=RECORDS + "/closed_form_control.json",
    log: LOGS + "/closed_form_control.log"
    message: "controls of closed form on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("closed_form_control")
    resources: seconds=seconds("closed_form_control")


use rule control as field with:
    output:
        notebook=EXECUTED + "/field.ipynb",
        record=RECORDS + "/field.json",
    log: LOGS + "/field.log"
    message: "the wider field of merging on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("field")
    resources: seconds=seconds("field")


use rule closed_form as variations with:
    output:
        notebook=EXECUTED + "/variations.ipynb",
        record=RECORDS + "/variations.json",
    log: LOGS + "/variations.log"
    message: "what the paper did not vary on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("variations")
    resources: seconds=seconds("variations")


use rule closed_form as frozen_decoder with:
    output:
        notebook=EXECUTED + "/frozen_decoder.ipynb",
        record=RECORDS + "/frozen_decoder.json",
    log: LOGS + "/frozen_decoder.log"
    message: "experts under one frozen decoder on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("frozen_decoder")
    resources: seconds=seconds("frozen_decoder")


use rule closed_form as mechanism with:
    input:
        data=prepared,
        weights=weights,
        experts=experts,
        model=expand(rules.merge.output.model, method="task_arithmetic", allow_missing=True),
        adapted=expand(rules.realign.output.representation, method="task_arithmetic", allow_missing=True),
    output:
        notebook=EXECUTED + "/mechanism.ipynb",
        record=RECORDS + "/mechanism.json",
    log: LOGS + "/mechanism.log"
    message: "features and task vectors on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("mechanism")
    resources: seconds=seconds("mechanism")


use rule joint as qualitative with:
    input:
        data=prepared,
        weights=weights,
        experts=experts,
        joint=rules.joint.output.model,
        realigned=expand(rules.realign.output.heads, method="task_arithmetic", allow_missing=True),
    output:
        notebook=EXECUTED + "/qualitative.ipynb",
        record=RECORDS + "/qualitative.json",
        pictures=RECORDS + "/qualitative.npz",
    log: LOGS + "/qualitative.log"
    message: "pictures of predictions on {wildcards.study}, seed {wildcards.seed}"
    params: **compute("qualitative")
    resources: seconds=seconds("qualitative")


def drawn_from(wildcards):
    """What a page reads: itself, the paper's numbers, and records of its data set, of all, or none."""
    about = {"model": (), "deviations": ()}.get(wildcards.page, TASKS)
    about = [wildcards.page] if wildcards.page in TASKS else about
    committed = {Path(COMMITTED or "-"), Path("records/paper")}  # the paper's scale stands beside
    records = [str(path) for folder in sorted(committed) for path in sorted(folder.glob("*/*/*.*"))]
    beside = wildcards.kind == "book" and "recomputed" in declared_parameters(wildcards.page)
    fresh = recomputed() if beside or not COMMITTED else []
    chosen = [path for path in records if Path(path).parts[2].split("_")[0] in about]
    own = f"notebooks/{wildcards.page}.ipynb"  # its prose, too
    return [own, "book/paper_numbers.json", *chosen] + [path for path in fresh if Path(path).parts[-3].split("_")[0] in about]


def drawing_parameters(page, kind):
    fresh = f"{BUILD}/records" if COMMITTED and kind == "book" else ""
    values = {"records_folder": COMMITTED or f"{BUILD}/records", "recomputed": fresh}
    known = declared_parameters(page)
    return " ".join(f"-p {name} {shlex.quote(value or repr(''))}" for name, value in values.items() if name in known)


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
        "python -m simo.notebooks notebooks/{wildcards.page}.ipynb {output.notebook:q}"
        " {params.given} > {log:q} 2>&1"


rule html:
    input:
        pages=expand(rules.page.output.notebook, page=PAGES, allow_missing=True),
        sources=["_config.yml", "_toc.yml", "tools/book.py", *map(str, Path("book").glob("**/*.*"))],
        notebooks=sorted(map(str, Path("notebooks").glob("*.ipynb"))),
    output: BUILD + "/{kind}/_build/html/index.html"
    log: BUILD + "/logs/{kind}/html.log"
    message: "build the book"
    params: executed=lambda w: f"{BUILD}/notebooks/{STUDIES[0]}/seed{SEEDS[0]}" if w.kind == "book" else ""
    resources: seconds=15
    shell: "python tools/book.py build {BUILD}/{wildcards.kind} --executed={params.executed:q} > {log:q} 2>&1"
