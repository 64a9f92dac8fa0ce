"""The whole of it at smoke size, in a copy of the project whose path has spaces."""

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml

from simo.checkpoints import TensorFile
from simo.merging.task_vectors import TaskVector, is_matrix
from simo.tasks import TASKS

# one data set; the pages of the others are drawn without records. The rehearsal runs all three
CONFIG = ["--config", "profile=smoke", "studies=nyuv2", "further=all"]
EXPERIMENTS = {"joint", "relationships", "qualitative"}
EXPERIMENTS |= {f"{step}_{how}" for step in ("merge", "realign") for how in ("task_arithmetic", "ties")}
FURTHER = {"control", "control_train", "masks", "adamerging", "released", "merge_average"}
FURTHER |= {"merge_ties_untrimmed", "merge_pretrained", "realign_pretrained"}
FROM_EXPERTS = {"closed_form", "closed_form_control", "neighbours", "unlabelled_alpha", "field"}
FROM_EXPERTS |= {"variations", "mechanism", "frozen_decoder"}
BEYOND = FROM_EXPERTS | {"joint_variants"}  # the paper


def experts(dataset):
    """Names of its experts' records."""
    return {f"expert_{task.name}" for task in TASKS[dataset]}


def run(project, *command):
    """Run a command of the project; return the finished process with its output as text."""
    return subprocess.run(
        [sys.executable, *command], cwd=project, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def planned(project):
    """Names of the rules that Snakemake would run now, targets and the book itself left out."""
    done = run(project, "-m", "snakemake", "-n", "book", "--cores", "2", *CONFIG)
    assert done.returncode == 0, done.stdout
    table = re.findall(r"^(\w+) +\d+$", done.stdout, re.MULTILINE)  # "job  count"
    return set(table) - {"total", "book", "page", "html"}


@pytest.fixture(scope="module")
def project(tmp_path_factory, copy_project):
    """A copy of the project, after one `make book` at smoke size."""
    folder = copy_project(tmp_path_factory.mktemp("smoke") / "a path with spaces")
    done = run(folder, "tools/pipeline.py", "book", *CONFIG)
    assert done.returncode == 0, done.stdout
    return folder


def test_every_experiment_leaves_a_record_with_its_provenance(project):
    """One command from nothing writes all records, each with hashes, versions, device and time."""
    paths = (project / "build/smoke/records/nyuv2").glob("seed0/*.json")
    records = {path.stem: json.loads(path.read_text()) for path in paths}
    assert records.keys() == EXPERIMENTS | experts("nyuv2") | FURTHER | BEYOND
    for record in records.values():
        assert record["provenance"]["hashes"].keys() >= {"code", "data", "backbone"}
        assert record["provenance"]["seconds"] > 0


def test_experts_that_are_adapters_change_few_directions(project):
    """LoRA of rank 2 is in the linear layers' weights, and in nothing else; no adapter is left."""
    record = "build/smoke/records/nyuv2_lora/seed0/expert_depth.json"
    done = run(project, "tools/pipeline.py", record, *CONFIG[:2], "studies=nyuv2_lora")
    assert done.returncode == 0, done.stdout
    folder = project / "build/smoke/checkpoints/nyuv2_lora/seed0"
    expert = TensorFile(folder / "expert_depth.safetensors", "encoder.backbone.")
    base = TensorFile(project / "simo/weights/miniature_vit.safetensors")
    change = {name: values for name, values in TaskVector.between(base, expert).items() if values.any()}
    assert {name for name in base if is_matrix(name, base[name])} == change.keys()
    for values in map(torch.linalg.svdvals, change.values()):
        assert values[1] > 100 * values[2]  # which is rounding
    trained = json.loads((project / record).read_text())["results"][0]["cost"]["parameters"]
    heads = sum(
        tensor.numel() for tensor in TensorFile(folder / "expert_depth.safetensors", "heads.").values()
    )
    assert trained == heads + sum(2 * sum(values.shape) for values in change.values())


def test_every_page_of_the_contents_is_built(project):
    """The book holds every page that its table of contents promises, and no leftovers of training remain."""
    toc = yaml.safe_load((project / "_toc.yml").read_text())
    pages = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    html = project / "build/smoke/book/_build/html"
    assert [page for page in pages if not (html / f"{page}.html").is_file()] == []
    assert list(project.glob("build/smoke/checkpoints/**/partial/*")) == []


def test_second_run_does_nothing(project):
    """What is up to date is not run again."""
    done = run(project, "tools/pipeline.py", "book", *CONFIG)
    assert done.returncode == 0
    assert "nothing to be done" in done.stdout


AFTER_EXPERTS = {"merge", "realign", "control", "control_train", "relationships", "qualitative"}
AFTER_EXPERTS |= {"masks", "adamerging", "released"} | FROM_EXPERTS
WITHOUT_METHODS = {
    "control",
    "control_train",
    "relationships",
    "adamerging",
}  # which neither merge by a method nor read the result
NYUV2 = "notebooks/params/smoke/nyuv2.yaml"
CHANGES = [
    (
        NYUV2,
        "\nadapter_lr: 0.01",  # not expert_adapter_lr
        "\nadapter_lr: 0.02",
        {"realign", "released", "control", "control_train", "qualitative"}
        | {"closed_form", "neighbours", "field", "variations", "mechanism"},
    ),
    (NYUV2, "lambdas: [0.0, 1.0]", "lambdas: [0.0, 0.5, 1.0]", {"relationships"}),
    (NYUV2, "workers: 0", "workers: 1", set()),  # where it is computed, not what
    ("simo/training.py", "# dropout", "# what drops out", set()),
    ("simo/training.py", "Minimise the tasks' losses", "Lower the tasks' losses", set()),
    ("simo/merging/methods.py", "density=0.2", "density=0.3", AFTER_EXPERTS - WITHOUT_METHODS),
    (
        "notebooks/params/smoke/data.yaml",
        "train: 12",
        "train: 13",
        {"render", "joint", "expert"} | AFTER_EXPERTS | BEYOND,
    ),
]


@pytest.mark.parametrize(("file", "old", "new", "again"), CHANGES)
def test_a_change_runs_again_what_depends_on_it(project, file, old, new, again):
    """A change of parameters, code or data re-runs what depends on it and nothing else; comments nothing."""
    path = project / file
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    try:
        assert planned(project) == again
    finally:
        path.write_text(before)


def test_only_affected_pages_are_drawn_again(project):
    """A value of one data set changes its page and those about all data sets, no other page."""
    path = project / NYUV2
    before = path.read_text()
    path.write_text(before.replace("\nadapter_lr: 0.01", "\nadapter_lr: 0.02"))
    try:
        done = run(project, "-m", "snakemake", "-n", "book", "--cores", "2", *CONFIG)
    finally:
        path.write_text(before)
    drawn = set(re.findall(r"draw the page (\w+)", done.stdout))
    assert drawn == {
        "nyuv2",
        "nyuv2_variants",
        "introduction",
        "claims",
        "evidence",
        "results",
        "status",
        "beyond",
        "wider_field",
        "fair_joint",
        "what_varies",
        "why_it_breaks",
        "along_vectors",
        "which_method",
    }


def test_misspelt_parameter_stops_before_anything_runs(project):
    """A key of a parameter file that no notebook knows is named, and nothing is computed with defaults."""
    path = project / "notebooks/params/smoke/nyuv2.yaml"
    before = path.read_text()
    path.write_text(before + "finetune_step: 5\n")
    try:
        done = run(project, "tools/pipeline.py", "book", *CONFIG)
    finally:
        path.write_text(before)
    assert done.returncode != 0
    assert "no notebook has a parameter 'finetune_step'" in done.stdout


def test_page_without_records_is_built(project):
    """A data set that was not run has its page, which says so, instead of breaking the book."""
    html = project / "build/smoke/book/_build/html"
    page = (html / "notebooks/pages/cityscapes.html").read_text(encoding="utf-8")
    assert page.count("Not run: there are no records of cityscapes at this scale.") > 5


def test_real_data_that_are_missing_stop_the_run_at_once(project):
    """Without data the paper's profile says which it needs, and which is missing."""
    done = run(project, "tools/pipeline.py", "book", "--config", "profile=paper")
    assert done.returncode != 0
    assert "make book PROFILE=paper DATA=folder" in done.stdout
    assert all(f"folder/{dataset} " in done.stdout for dataset in TASKS)
    done = run(project, "tools/pipeline.py", "book", "--config", "profile=paper", "data=records")
    assert done.returncode != 0
    assert "records/cityscapes does not exist: expected cityscapes there, prepared or raw" in done.stdout


OVER_ALL = ("introduction", "claims", "results")  # pages over all data sets


@pytest.fixture(scope="module")
def rehearsal(project):
    """`make rehearsal` with a narrower model: the paper's profile from made-up raw data to pages.

    Without what `project` has run, to spare minutes: controls, further methods, the pages' HTML.
    """
    for dataset in ("cityscapes", "taskonomy"):
        path = project / f"notebooks/params/paper/{dataset}.yaml"
        full = "{channels: [24, 48, 96, 192], width: 128}"
        assert full in path.read_text()
        path.write_text(path.read_text().replace(full, "{channels: [4, 8, 16, 32], width: 16}"))
    done = subprocess.run(["make", "-n", "rehearsal"], cwd=project, text=True, stdout=subprocess.PIPE)
    values = yaml.safe_load(re.search(r"'set=(.*?)'", done.stdout).group(1))
    values |= {"backbone_args": {"embed_dim": 48, "depth": 12, "num_heads": 3}}
    config = ["profile=paper", "data=build/rehearsal/raw", "weights=random", "build=build/rehearsal"]
    config += ["further=no"]
    config += [f"set={json.dumps(values)}"]
    drawn = [f"build/rehearsal/book/pages/{page}.ipynb" for page in (*TASKS, *OVER_ALL)]
    subsets = "build/rehearsal/records/taskonomy/seed0/subsets.json"  # no other test runs that notebook
    for command in (
        ["-m", "data_scripts.fixtures", "build/rehearsal/raw"],
        ["tools/pipeline.py", *drawn, subsets, "--config", *config],
    ):
        done = run(project, *command)
        assert done.returncode == 0, done.stdout
    return project / "build" / "rehearsal"


def test_rehearsal_runs_the_paper_profile(rehearsal):
    """All three data sets, from raw files through preparation and one training step of each to records."""
    for dataset in TASKS:
        paths = (rehearsal / "records" / dataset).glob("seed0/*.json")
        records = {path.stem: json.loads(path.read_text()) for path in paths}
        assert records.keys() == EXPERIMENTS | experts(dataset) | (
            {"subsets"} if dataset == "taskonomy" else set()
        )
        for record in records.values():
            assert record["profile"] == "paper"
            assert record["provenance"]["fixture"] is True


def shown_on(path):
    """All HTML and Markdown that an executed page displays."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    return "\n".join(
        "".join(data.get(kind, "")) for data in outputs for kind in ("text/html", "text/markdown")
    )


def test_every_number_of_a_rehearsal_is_marked(rehearsal):
    """Numbers of made-up data cannot be taken for results: rows of tables and verdicts say it."""
    pages = {page: shown_on(rehearsal / f"book/pages/{page}.ipynb") for page in (*TASKS, *OVER_ALL)}
    for page in TASKS:
        text = pages[page]
        assert "Every number on this page was computed from a fixture" in text
        tables = re.findall(r'<div id="[^"]*" class="results.*?</table>', text, re.DOTALL)
        marked = []
        for table in tables:
            head, body = table.split("<tbody>")
            rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
            marked.append("[fixture]" in head or all("[fixture]" in row for row in rows))
        assert sum(marked) >= 4
        # beside those of photographs, which are real, no table is unmarked
        names = [re.match('<div id="([^"]*)"', table)[1] for table in tables]
        assert all(own or "-photos" in name for own, name in zip(marked, names, strict=True)), page
    for page in OVER_ALL:
        assert "Every number on this page was computed from a fixture" in pages[page]
