"""tools/release.py and tools/models_archive.py on a tiny project: the checklist, and what archives hold."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile

import pytest
import torch

from simo.adapters import add_adapters
from simo.checkpoints import save_checkpoint
from simo.files import read_json, write_json
from simo.models import create_model
from simo.own import load_expert
from simo.tasks import tasks_of
from tools import models_archive, release

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SETTINGS = {"backbone": "vit_tiny_patch16_224", "backbone_args": SMALL, "blocks": [1, 2]}
SETTINGS |= {"head": "linear", "head_options": {}, "input_scale": "signed"}
CHANGES = "# Changelog\n\n## 2.0.0 - 2030-01-02\n\n- All.\n\n## 1.0.0 - 2029-01-02\n"
DATE = 1893542400  # 2030-01-02, UTC
TREE = {
    "simo/__init__.py": '"""It."""\n\n__version__ = "2.0.0"\n',
    "CHANGELOG.md": CHANGES,
    "CITATION.cff": "version: 2.0.0\ndate-released: 2030-01-02\n",
    "LICENSE": "MIT\n",
    ".gitignore": "build/\n.pytest_cache/\n__pycache__/\n",
    "tests/report/test_committed_records.py": "def test_it():\n    assert 1 + 1 == 2\n",
    "tools/pipeline.py": "print('nothing to be done: everything is up to date')\n",
}


def git(folder, *arguments):
    """Run git as nobody in particular, on one day; return its output."""
    names = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    dates = {f"GIT_{who}_DATE": f"{DATE} +0000" for who in ("AUTHOR", "COMMITTER")}
    command = ["git", "-c", "init.defaultBranch=main", "-C", folder, *arguments]
    done = subprocess.run(command, env=os.environ | names | dates, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def train(folder, commit):
    """Write the nine models of NYUv2 that a build leaves, untrained, and their records."""
    tasks, written, shas = tasks_of("nyuv2"), {}, {"code": "c", "data": "d", "backbone": "b"}
    for name, experiment in models_archive.names_of("nyuv2"):
        own = [task for task in tasks if experiment == f"expert_{task.name}"] or tasks
        model, recipe = create_model(own, seed=0, **SETTINGS), {"dataset": "nyuv2", "model": SETTINGS}
        kind, _, method = experiment.partition("_")
        read = {"expert": (), "merge": [f"expert_{task.name}" for task in tasks]}.get(
            kind, [f"merged_{method}"]
        )
        recipe["hashes"] = {used: shas[used] for used in ("code", "data", "backbone", *read)}
        if kind != "expert":
            recipe |= {"method": method, "alpha": 0.3}
        if kind == "realign":
            recipe |= {"realignment": name.rpartition("_")[2]}
        if name.endswith("representation"):
            add_adapters(model.encoder, 2)
            recipe |= {"adapter_rank": 2}
        path = folder / models_archive.CHECKPOINTS / f"nyuv2/seed0/{name}.safetensors"
        save_checkpoint(path, model.state_dict(), recipe | {"tasks": [task.name for task in own]})
        title = "+".join(filter(None, ("expert" if kind == "expert" else method, recipe.get("realignment"))))
        scores = {task.name: 0.25 for task in own}
        written.setdefault(experiment, {"results": [], "hashes": recipe["hashes"]})
        written[experiment]["results"] += [{"model": title, "split": "test", "metrics": scores}]
        shas[name] = read_json(path.with_suffix(".json"))["sha256"]
    for experiment, found in written.items():
        what = {
            "experiment": experiment,
            "profile": "miniature",
            "dataset": "nyuv2",
            "seed": 0,
            "details": {},
        }
        made = {"commit": commit, "clean": True, "started": "2026-11-01", "hashes": found.pop("hashes")}
        path = folder / f"records/miniature/nyuv2/seed0/{experiment}.json"
        write_json(path, what | found | {"provenance": made})


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A tiny project with all that a release needs."""
    folder = tmp_path_factory.mktemp("release") / "project"
    for name, text in TREE.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder.parent, "init", "-q", folder)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Code")
    train(folder, git(folder, "rev-parse", "HEAD"))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Records")
    html = folder / release.BOOK / "_build/html"
    (html / "b").mkdir(parents=True)
    for name in ("index.html", "b/page.html"):
        (html / name).write_text(name)
    (folder / release.BOOK / "book.pdf").write_bytes(b"%PDF")
    return folder


@pytest.fixture
def project(template, tmp_path, monkeypatch):
    """A copy of it that the tools take for the project."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.setattr(release, "ROOT", folder)
    monkeypatch.setattr(models_archive, "STUDIES", ("nyuv2",))
    return folder


def opened(content):
    """An archive's entries, and their content by name."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        entries = [entry for entry in archive.getmembers() if entry.isfile()]
        return entries, {entry.name: archive.extractfile(entry).read() for entry in entries}


def test_a_complete_project_is_released(project, capsys):
    """All five parts with their hashes; names sorted, nobody's, of the commit's date, and as committed."""
    assert release.main([]) == 0
    assert capsys.readouterr().out.count("\nok ") + 1 == len(release.CHECKS)
    target = project / release.TARGET
    kinds = ["-book.tar.xz", "-models.tar.xz", "-records.tar.xz", "-source.tar.xz", ".pdf"]
    assert sorted(path.name for path in target.iterdir()) == [
        "SHA256SUMS",
        *(f"simo-2.0.0{k}" for k in kinds),
    ]
    for line in (target / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((target / name).read_bytes()).hexdigest() == digest
    held = {}
    for kind in kinds[:-1]:
        entries, held[kind] = opened((target / f"simo-2.0.0{kind}").read_bytes())
        assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
        assert {(entry.uid, entry.gid, entry.mtime) for entry in entries} == {(0, 0, DATE)}
        assert {oct(entry.mode) for entry in entries} <= {"0o644", "0o755"}
    assert held["-book.tar.xz"] == {f"simo-2.0.0-book/{n}": n.encode() for n in ("b/page.html", "index.html")}
    assert held["-source.tar.xz"]["simo-2.0.0/CHANGELOG.md"].decode() == CHANGES
    records = {
        f"simo-2.0.0/{p.relative_to(project)}": p.read_bytes() for p in project.glob("records/*/*/*/*")
    }
    assert held["-records.tar.xz"] == records
    assert len(held["-models.tar.xz"]) == 2 * (3 + 2 + 4) + 2  # weights and recipes; a card, a licence


def test_the_same_project_gives_the_same_archives(project):
    """Another day, another folder and other times of files change no byte."""
    before = release.contents()
    for path in (project / release.BOOK).rglob("*"):
        os.utime(path, (1, 1))
    assert release.contents() == before


def change(name, old, new):
    """From a project to one in which a file says something else."""

    def changed(project):
        text = (project / name).read_text()
        assert old in text
        (project / name).write_text(text.replace(old, new, 1))

    return changed


def remove(name):
    """From a project to one that lacks a file."""
    return lambda project: (project / name).unlink()


EXPERT = f"{models_archive.CHECKPOINTS}/nyuv2/seed0/expert_depth"
MERGED = "records/miniature/nyuv2/seed0/merge_ties.json"


@pytest.mark.parametrize(
    ("damage", "item", "said"),
    [
        (remove("LICENSE"), "everything is committed", "1 files differ from the commit, such as LICENSE"),
        (change("simo/__init__.py", "2.0.0", "2.0.1"), "version and date", "expected '2.0.1 - YYYY-MM-DD'"),
        (change("CHANGELOG.md", "2.0.0 - 2030-01-02", "Unreleased"), "version and date", "begins with 'Un"),
        (change("CITATION.cff", "2030-01-02", "2030-01-03"), "version and date", "make them agree"),
        (change(MERGED, '"clean": true', '"clean": false'), "records of one commit", "make records PROFILE="),
        (
            change("tests/report/test_committed_records.py", "== 2", "== 3"),
            "tests of the records",
            "test_committed_records.py: 1 failed",
        ),
        (change("tools/pipeline.py", "nothing to be done", "steps"), "book and PDF", "date: make pdf"),
        (remove(f"{release.BOOK}/book.pdf"), "book and PDF", "missing or older than the book: make pdf"),
        (remove(f"{EXPERT}.safetensors"), "models", "expert_depth.safetensors does not exist"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_what_to_do(project, damage, item, said):
    """Each item of the checklist finds its own damage, and none finds anything in the whole project."""
    assert not list(release.CHECKS[item]())
    damage(project)
    assert said in "\n".join(release.CHECKS[item]())


def test_records_of_a_commit_that_history_lacks_are_refused(project):
    """A commit that was rebased away is one that no reader can check out."""
    for path in project.glob("records/*/*/*/*.json"):
        record = read_json(path)
        write_json(path, record | {"provenance": record["provenance"] | {"commit": "0" * 40}})
    (problem,) = release.check_records()
    assert "of commit 00000000, which HEAD does not come from" in problem


def test_records_of_several_commits_are_named_or_refused(project, monkeypatch, capsys):
    """A study is of one commit, or the checklist names it; then, too, each commit is clean and in history."""
    path = project / MERGED
    record = read_json(path)

    def name(commit, clean=True):
        write_json(path, record | {"provenance": record["provenance"] | {"commit": commit, "clean": clean}})

    name(git(project, "rev-parse", "HEAD"))
    (problem,) = release.check_records()
    assert "records/miniature/nyuv2 are not of one clean commit" in problem
    monkeypatch.setattr(release, "SEVERAL", {"miniature/nyuv2"})
    assert not list(release.check_records())
    release.check()
    assert "records/miniature/nyuv2 are of several commits: CHANGELOG.md" in capsys.readouterr().out
    name("0" * 40)
    (problem,) = release.check_records()
    assert "of commit 00000000, which HEAD does not come from" in problem
    name(git(project, "rev-parse", "HEAD"), clean=False)
    (problem,) = release.check_records()
    assert "not of one clean commit" in problem


@pytest.mark.parametrize("name", ["expert_depth", "realigned_ties_heads"])
def test_models_of_another_run_are_refused(project, name):
    """What is handed out is what records were measured on, by its hash, or by the hashes of what made it."""
    path = project / f"{EXPERT.replace('expert_depth', name)}.safetensors"
    model = create_model(tasks_of("nyuv2", ["depth"]), seed=1, **SETTINGS)
    recipe = read_json(path.with_suffix(".json"))
    if name != "expert_depth":  # which no record has read
        recipe["hashes"]["merged_ties"] = "of another run"
    save_checkpoint(path, model.state_dict(), recipe)
    (problem,) = models_archive.check_models(project)
    assert f"{name}.safetensors is not the one behind records/miniature/nyuv2" in problem


def test_nothing_is_written_by_a_check_or_where_something_is_missing(project, monkeypatch, capsys):
    """A dry run writes nothing; nor does a release that lacks something, or whose models are too large."""
    assert release.main(["--check"]) == 0
    monkeypatch.setattr(release, "LIMIT", 1000)
    assert release.main([]) == 1
    assert "name fewer studies" in capsys.readouterr().err
    remove(f"{release.BOOK}/book.pdf")(project)
    assert release.main([]) == 1
    assert re.search(
        r"^MISSING  book and PDF\n +- .*book\.pdf is missing", capsys.readouterr().out, re.MULTILINE
    )
    assert not (project / release.TARGET).exists()


def test_without_trained_models_there_is_no_archive_of_them(project, capsys):
    """Records from a colleague need no checkpoints here; the release says what is left out."""
    shutil.rmtree(project / models_archive.CHECKPOINTS)
    assert release.check()
    assert "no archive of models" in capsys.readouterr().out
    assert not [name for name in release.contents() if "models" in name]


def test_a_card_says_how_to_load_its_models(project, monkeypatch):
    """Its table has every model; its lines load one, and write the parts that `simo.own` begins with."""
    text = models_archive.card(project, "nyuv2")
    assert "| `realigned_ties_heads` | TIES + heads | 0.3 | 0.25 | 0.25 | 0.25 |" in text
    assert text.count("\n| `") == 9
    monkeypatch.chdir(project / models_archive.CHECKPOINTS / "nyuv2/seed0")
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    image = torch.rand(1, 3, 16, 16)
    assert list(names["model"](image)) == ["segmentation", "depth", "normals"]
    (task,) = tasks_of("nyuv2", ["depth"])
    parts = load_expert("depth_encoder.safetensors", "depth_head.safetensors", task, SETTINGS)
    whole = names["load_model"]("expert_depth.safetensors", SETTINGS)
    assert torch.equal(parts(image)["depth"], whole(image)["depth"])
