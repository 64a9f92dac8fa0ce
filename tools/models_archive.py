"""Trained models of the miniature as files for others: which, whether they are the records', and cards."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report.experiments import EACH_TASK, EXPERIMENTS
from report.overview import TITLES
from report.records import commit_of
from report.tables import MODELS
from simo.checkpoints import load_recipe
from simo.errors import SimoError
from simo.files import listed, read_json
from simo.tasks import tasks_of

CHECKPOINTS, RECORDS = "build/miniature/checkpoints", "records/miniature"
STUDIES = (
    "nyuv2",
    "cityscapes",
)  # seed 0 of them; with Taskonomy's seven encoders more, nobody would fetch it
NOTEBOOKS = ("expert", "merge", "realign")  # whose main runs leave the models
CARD = """# Models of {title} in miniature, seed 0

Trained on rendered scenes, not on photographs: small ones to try code on. They are the models behind
`{records}`, made by commit {commit} of the companion to
[Single-Input Multi-Output Model Merging](https://arxiv.org/abs/2504.11268), under the MIT licence. Scores are
those of the test split.

{table}

`model` takes images `(B, 3, H, W)` in [0, 1] to a map `(B, C, H, W)` a task:

```python
from simo.checkpoints import load_recipe
from simo.models import load_model

path = "merged_ties.safetensors"
model = load_model(path, load_recipe(path)["model"])
```

An expert's parts as files of their own, as the book's page "Use it on your own models" begins with them:

```python
from simo.checkpoints import TensorFile, save_tensors

for task in {tasks}:
    for part, prefix in (("encoder", "encoder.backbone."), ("head", f"heads.{{task}}.")):
        save_tensors(f"{{task}}_{{part}}.safetensors", TensorFile(f"expert_{{task}}.safetensors", prefix))
```
"""


def names_of(study):
    """Yield names of a study's models, each with that of its record."""
    tasks = [task.name for task in tasks_of(study)]
    for each in EXPERIMENTS:
        values = each.runs["main"] if each.notebook in NOTEBOOKS else ()
        for value in tasks if values == EACH_TASK else values:
            for checkpoint in each.writes:
                yield tuple(name.format(**{each.wildcard: value}) for name in (checkpoint, each.name))


def check_models(root):
    """Yield what is missing of models that were trained, and which are not those of the committed records.

    Parameters
    ----------
    root : Path
        Of the project. Where nothing was trained, there is nothing to check.
    """
    for study in STUDIES if (root / CHECKPOINTS).is_dir() else ():
        records = map(read_json, listed(root / RECORDS / study / "seed0", "*.json"))
        made = {each["experiment"]: each["provenance"]["hashes"] for each in records}
        used = {name: sha for hashes in made.values() for name, sha in hashes.items()}
        for name, maker in names_of(study):
            path = f"{CHECKPOINTS}/{study}/seed0/{name}.safetensors"
            try:
                recipe = load_recipe(root / path)
            except SimoError as error:
                yield f"{error}; make records"
                continue
            # what none has read is known by what its own maker read
            if recipe["hashes"] != made.get(maker) or recipe["sha256"] != used.get(name, recipe["sha256"]):
                yield f"{path} is not the one behind {RECORDS}/{study}: make records, or remove {CHECKPOINTS}"


def models_of(root):
    """Trained models with their recipes and a card a study.

    Parameters
    ----------
    root : Path

    Returns
    -------
    dict of str to bytes or Path
        By name in the archive; empty where nothing was trained.
    """
    if not (root / CHECKPOINTS).is_dir():
        return {}
    files = {"LICENSE": root / "LICENSE"}
    for study in STUDIES:
        for name, _ in names_of(study):
            path = root / CHECKPOINTS / study / "seed0" / f"{name}.safetensors"
            files |= {f"{study}/{each.name}": each for each in (path, path.with_suffix(".json"))}
        files[f"{study}/README.md"] = card(root, study).encode()
    return files


def card(root, study):
    """Markdown that says what a study's models are, how good they were found to be, and how to load them."""
    tasks, lines, records = tasks_of(study), [], f"{RECORDS}/{study}/seed0"
    for name, experiment in names_of(study):
        recipe = load_recipe(root / CHECKPOINTS / study / "seed0" / f"{name}.safetensors")
        record = read_json(root / records / f"{experiment}.json")
        model = "+".join(filter(None, (recipe.get("method", "expert"), recipe.get("realignment"))))
        scores = next(r["metrics"] for r in record["results"] if (r["model"], r["split"]) == (model, "test"))
        values = [f"{scores[task.name]:.4g}" if task.name in scores else "" for task in tasks]
        lines.append([f"`{name}`", MODELS[model], str(recipe.get("alpha", "")), *values])
    head = ["file", "model", "α", *(f"{t.name}: {t.metric}{f', {t.unit}' * bool(t.unit)}" for t in tasks)]
    rows = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)]
    names = tuple(task.name for task in tasks)
    what = {"title": TITLES[study], "records": records, "commit": commit_of(record["provenance"])}
    return CARD.format(**what, tasks=names, table="\n".join(rows))
