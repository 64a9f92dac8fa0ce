"""What installs, builds and checks the project: one set of versions, one set of commands."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from simo import _torchvision
from tools import bootstrap

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def name_of(requirement):
    """The normalised name of the package that a requirement is about."""
    return re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-")


def pins():
    """The lines of constraints.txt that apply everywhere or somewhere, as a dict of name to version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(re.match(r"([\w.-]+)==(\S+)", line).groups() for line in lines if not line.startswith("#"))


def python(code):
    """Run a line of Python in a fresh process; return what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def make(folder, *arguments):
    """Run make in a folder, without the settings of a make that runs the tests; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_every_direct_dependency_is_pinned():
    """Everybody gets the versions that were tried together, whatever was released since."""
    extras = PROJECT["optional-dependencies"].values()
    direct = {
        name_of(line) for line in PROJECT["dependencies"] + [line for extra in extras for line in extra]
    }
    assert direct <= pins().keys()


def test_constraints_name_no_build_of_torch():
    """Constraints that named CUDA's packages would make a machine without GPU download gigabytes."""
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]
    assert "+" not in pins()["torch"] + pins()["torchvision"]


def test_constraints_are_what_is_installed():
    """The tests run with the versions that constraints.txt promises."""
    for name in ("numpy", "timm", "snakemake"):
        assert version(name) == pins()[name]


def test_environment_yml_agrees_with_pyproject():
    """conda's users get the same packages, and a Python that the project supports."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[book,data,onnx,slurm,test]"]}
    assert {"book", "test"} <= PROJECT["optional-dependencies"].keys()
    versions = [line.removeprefix("python=") for line in conda if line.startswith("python=")]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert [int(part) for part in versions[0].split(".")] >= [int(part) for part in oldest.split(".")]


def test_one_licence_is_named_everywhere():
    """Package, citation and text of the licence agree; the book has a licence of its own beside it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["license"] == citation["license"] == "MIT"
    (file,) = PROJECT["license-files"]
    code, book = ((ROOT / name).read_text(encoding="utf-8") for name in (file, "LICENSE-book"))
    assert code.startswith(f"{PROJECT['license']} License\n")
    holder = citation["authors"][0]["name"].removeprefix("The ")
    assert all(f"Copyright (c) 2026 the {holder}\n" in text for text in (code, book))
    assert "SPDX-License-Identifier: CC-BY-4.0\n" in book


def test_bootstrap_asks_for_the_python_of_pyproject():
    """The installer refuses exactly the Pythons that the package refuses."""
    assert ">=" + ".".join(map(str, bootstrap.OLDEST)) == PROJECT["requires-python"]


def test_an_interrupted_upgrade_is_not_taken_for_what_was_before(monkeypatch, tmp_path):
    """After Ctrl-C in an installation the versions of before are half gone: no stamp names them."""
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(bootstrap, "LOG", tmp_path / "install.log")
    (tmp_path / ".ok").write_text(before := bootstrap.stamp())
    done = []

    def step(what, *ways):
        done.append(what)
        if interrupted and what.startswith("installing the packages"):
            raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "step", step)
    monkeypatch.setattr(bootstrap, "stamp", lambda: before + "another version\n")
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        bootstrap.main()
    interrupted = False
    done.clear()
    monkeypatch.setattr(bootstrap, "stamp", lambda: before)
    bootstrap.main()
    assert [what.split()[0] for what in done] == ["installing", "checking"]  # nothing is made from nothing
    done.clear()
    bootstrap.main()
    assert done == []


def test_the_environment_behind_a_link_is_not_emptied(monkeypatch, tmp_path, capsys):
    """Of a clone whose `.venv` is a link the environment is another project's: it is told, and left alone."""
    (tmp_path / "theirs").mkdir()
    for name, text in {".ok": "/another/project\n3.11.7\nhash\n", "pyvenv.cfg": "home = /usr\n"}.items():
        (tmp_path / "theirs" / name).write_text(text)
    (tmp_path / ".venv").symlink_to(tmp_path / "theirs")
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "step", lambda *_: pytest.fail("something was run"))
    with pytest.raises(SystemExit):
        bootstrap.main()
    assert "which would be emptied: remove the link" in capsys.readouterr().err
    assert len(list((tmp_path / "theirs").iterdir())) == 2


def test_bootstrap_refuses_an_old_python(monkeypatch, capsys):
    """With an old Python the reader learns which was found, which is needed and what to type."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit) as stop:
        bootstrap.main()
    message = capsys.readouterr().err
    assert stop.value.code == 1
    assert "needs Python 3.11 or newer" in message
    assert "is Python 3.9.1" in message
    assert "make PYTHON=" in message


def test_bootstrap_failure_shows_the_end_of_the_log(monkeypatch, capsys, tmp_path):
    """When an installation fails, its last lines and the path of the log are on the screen."""
    monkeypatch.setattr(bootstrap, "LOG", tmp_path / "install.log")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        bootstrap.step(
            "trying", lambda: bootstrap.call([sys.executable, "-c", "raise SystemExit('disk full')"])
        )
    captured = capsys.readouterr()
    assert re.match(r"trying +FAILED after \d+ s", captured.out)
    assert "    | disk full" in captured.err
    assert str(tmp_path / "install.log") in captured.err


def test_torch_choices(tmp_path):
    """A machine without GPU tries a CPU build first, one with a GPU never, and PyPI comes last for both."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    assert bootstrap.cpu_wheel_folder([tmp_path / "none", folder], "2.13.0") is None
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    (folder / f"torch-2.13.0+cpu-{tag}-{tag}-linux_x86_64.whl").touch()
    assert bootstrap.cpu_wheel_folder([tmp_path / "none", folder], "2.13.0") == folder
    assert bootstrap.cpu_wheel_folder([folder], "2.12.0") is None
    assert bootstrap.torch_choices(False, folder)[0] == ([], {"UV_FIND_LINKS": str(folder)})
    assert all(bootstrap.torch_choices(gpu, None)[-1] == ([], {}) for gpu in (True, False))
    assert bootstrap.torch_choices(True, folder)[0] == (["--torch-backend=auto"], {})


def test_pip_settings():
    """Folders and mirrors that people gave to pip, in a file or a variable, are found."""
    text = "global.index-url='https://a/simple'\n:env:.find-links='/b /c'\nglobal.find-links='\\n/d'\n"
    assert bootstrap.pip_settings(text) == {
        "index-url": ["https://a/simple"],
        "find-links": ["/d", "/b", "/c"],
    }


def test_import_is_instant():
    """`import simo` imports nothing heavy, so that every command line answers at once."""
    heavy = "{'torch', 'torchvision', 'timm', 'numpy', 'pandas'}"
    assert python(f"import sys, simo; print(sorted({heavy} & sys.modules.keys()))").strip() == "[]"


def test_timm_can_be_imported_after_simo():
    """Whatever builds of torch and torchvision were installed, timm and torchvision's transforms work."""
    resized = "torchvision.transforms.v2.functional.resize(torch.ones(3, 4, 4), [8, 8])"
    code = f"import simo, timm, torch, torchvision.transforms.v2; print(*{resized}.shape)"
    assert python(code).split() == ["3", "8", "8"]


@pytest.mark.parametrize(
    ("torchvision", "cuda", "needed"),
    [
        ("0.28.0+cu130", None, True),
        ("0.28.0+cu130", "13.0", False),
        ("0.28.0+cpu", None, False),
        ("0.28.0", None, False),
        ("", None, False),
    ],
)
def test_torchvision_is_helped_only_if_it_does_not_fit(monkeypatch, torchvision, cuda, needed):
    """A matching pair of torch and torchvision keeps its own operators; others are declared, once."""
    declared = []
    library = SimpleNamespace(define=declared.append)
    monkeypatch.setattr(_torchvision, "installed_version", lambda: torchvision)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.library, "Library", lambda *where: library)
    finder = _torchvision.TorchvisionFinder()
    for name in ("timm", "torchvision", "torchvision"):
        assert finder.find_spec(name) is None
    assert [schema.partition("(")[0] for schema in declared] == (["nms", "qnms"] if needed else [])


def test_torchvision_version_is_read_without_import(monkeypatch, tmp_path):
    """The build is known before the import that would fail; no torchvision at all is no error."""
    assert _torchvision.installed_version().startswith(pins()["torchvision"])
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError")
    (package / "version.py").write_text("__version__: str = '9.9+cu999'\ngit_version = 'abc'\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert _torchvision.installed_version() == "9.9+cu999"
    monkeypatch.setattr(sys, "path", [])
    assert _torchvision.installed_version() == ""


def test_make_help_lists_every_target(tmp_path):
    """`make`, and `make help`, tell all that can be made, in a folder with a space as well."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    shown = make(folder)
    assert shown == make(folder, "help")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    assert re.findall(r"^  ([a-z0-9-]+) +\S", shown, re.MULTILINE) == targets
    variables = re.findall(r"^([A-Z]+) =", makefile, re.MULTILINE)
    assert all(f"{variable}=" in shown for variable in variables)


def test_make_hands_its_variables_to_the_pipeline():
    """PROFILE, SEEDS, DATA and the rest reach Snakemake, spaces included; what is not given is left out."""
    plain = r"pipeline.py book --config 'profile=miniature' 'seeds=0' +'build=build/miniature' *\n"
    assert re.search(plain, make(ROOT, "-n", "book"))
    given = make(ROOT, "-n", "book", "PROFILE=paper", "SEEDS=0 1", "DATA=/a b", "CORES=2")
    words = re.search(r"pipeline.py (.*)", given).group(1).split()
    expected = "book --config 'profile=paper' 'seeds=0 1' 'data=/a b' 'build=build/paper' --cores '2'"
    assert words == expected.split()
    assert "'seeds=0 1 2'" in make(ROOT, "-n", "records")
    assert "'seeds=0' 'studies=taskonomy'" in make(ROOT, "-n", "taskonomy")
    given = make(ROOT, "-n", "book", "SET={clip: 2.0, scales: [1.0]}", "WEIGHTS=a.pth", "BUILD=b")
    assert "'weights=a.pth' 'set={clip: 2.0, scales: [1.0]}'" in given
    assert "'build=b'" in given
    assert "pipeline.py --executor 'slurm' book" in make(ROOT, "-n", "book", "EXECUTOR=slurm")


def test_readers_and_ci_run_the_same_commands():
    """Continuous integration has no commands of its own: what is green there is green for a reader."""
    runs = {path.stem: re.findall(r"run: (.*)", path.read_text(encoding="utf-8")) for path in WORKFLOWS}
    assert runs == {"book": ["make book"], "links": ["make links", "make audit"], "test": [".ci/run"]}
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_ask_for_little(path):
    """A workflow may only read unless a job says why, ends in time, and pins what it uses."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert re.search(r"@v\d+$", step.get("uses", "@v0"))
            asked = step.get("with", {}).get("python-version", "3.11")
            assert asked in ("3.11", "${{ matrix.python }}")
        pythons = job.get("strategy", {}).get("matrix", {}).get("python", ["3.11"])
        assert set(pythons) <= {"3.11", "3.12", "3.13"}


def test_the_published_page_is_the_one_that_make_names():
    """The workflow uploads the folder in which `make book` says the book is."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    page = re.search(r"^page = (.*)$", makefile, re.MULTILINE).group(1).replace("$(BUILD)", "build/miniature")
    workflow = (ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
    assert workflow.count(f"path: {Path(page).parent}\n") == 2
