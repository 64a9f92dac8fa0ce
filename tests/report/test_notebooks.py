"""report.notebooks: strict parameters, what code depends on, atomic runs; and our own notebooks."""

import json
import re
from pathlib import Path

import pytest
import yaml

from report import notebooks
from report.notebooks import (
    check_parameters,
    code_hash,
    declared_parameters,
    main,
    read_parameters,
    run_notebook,
)
from simo.errors import SimoError
from simo.files import write_json
from simo.tasks import TASKS

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "notebooks").glob("*/*.ipynb"))
PARAMS = ROOT / "notebooks" / "params"
PARAMETERS = """
name = "a"
rate = 0.5
count = 3
flag = False
sizes = [1, 2]
options = {"x": 1}
"""


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def write_notebook(path, *sources, tags=("parameters",)):
    """A notebook of code cells, the first of them tagged."""
    cells = [
        {
            "cell_type": "code",
            "id": str(number),
            "metadata": {"tags": list(tags)} if number == 0 else {},
            "source": source.splitlines(keepends=True),
            "outputs": [],
            "execution_count": None,
        }
        for number, source in enumerate(sources)
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    write_json(path, {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})
    return path


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "some notebook.ipynb", PARAMETERS)


def test_parameters_are_read_with_their_defaults(notebook):
    """Names, order and types of the cell tagged `parameters`; a notebook without one has none."""
    assert list(declared_parameters(notebook).items()) == [
        ("name", "a"),
        ("rate", 0.5),
        ("count", 3),
        ("flag", False),
        ("sizes", [1, 2]),
        ("options", {"x": 1}),
    ]
    assert declared_parameters(write_notebook(notebook.with_name("b.ipynb"), "x = 1", tags=())) == {}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"name": "b", "count": 0, "flag": True, "sizes": [7], "options": {}},
        {"rate": 1},
    ],
)
def test_parameters_of_the_right_type_are_accepted(notebook, parameters):
    """A whole number may stand for a float."""
    check_parameters(notebook, parameters)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", True, "int"),
        ("count", 1.0, "int"),
        ("count", "3", "int"),
        ("rate", True, "float"),
        ("rate", "1e-3", "float"),
        ("flag", 1, "bool"),
        ("flag", "false", "bool"),
        ("name", None, "str"),
        ("sizes", (1, 2), "list"),
        ("options", [1], "dict"),
    ],
)
def test_parameters_of_another_type_are_refused(notebook, name, value, expected):
    """`1e-3` is text in YAML: it must not reach an optimiser after minutes of other work."""
    with pytest.raises(SimoError) as error:
        check_parameters(notebook, {name: value})
    message = str(error.value)
    assert f"parameter {name} of some notebook.ipynb: expected {expected} like its default" in message
    assert repr(value) in message


def test_misspelt_parameter_is_refused(notebook):
    """papermill alone would log it and run on defaults."""
    with pytest.raises(SimoError, match="has no parameter 'ratte': did you mean 'rate'"):
        check_parameters(notebook, {"rate": 0.1, "ratte": 0.2})


def test_parameter_file_with_an_unknown_key_is_refused(tmp_path):
    """A key that no notebook declares is a typo."""
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\nhead_lr: 0.1\n")
    assert read_parameters(path) == {"seed": 1, "head_lr": 0.1}
    path.write_text("seed: 1\nhead_rl: 0.1\n")
    with pytest.raises(SimoError, match="params.yaml: no notebook has a parameter 'head_rl'"):
        read_parameters(path)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), ("- seed", "found list"), ("", "found NoneType")]
)
def test_unusable_parameter_file_is_refused(tmp_path, content, message):
    """A missing file and one that is no mapping are named."""
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SimoError, match=f"params.yaml.*{message}"):
        read_parameters(path)


@pytest.mark.parametrize("arguments", [["-p", "ratte", "1"], ["-p", "count", "x"], ["-f", "missing.yaml"]])
def test_command_line_refuses_before_it_runs(notebook, tmp_path, monkeypatch, arguments):
    """The command ends with one line that says what is wrong, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^error: .*(ratte|count|missing.yaml)"):
        main([str(notebook), str(tmp_path / "out" / "a.ipynb"), *arguments])
    assert not (tmp_path / "out").exists()


def test_command_line_takes_declared_values_from_the_file(notebook, tmp_path, monkeypatch):
    """A profile's file serves all notebooks: each takes what it declares, `-p` overrides, values are YAML."""
    seen = []
    monkeypatch.setattr(notebooks, "read_parameters", lambda path: {"count": 5, "rate": 0.25, "crop": [8, 8]})
    monkeypatch.setattr(notebooks, "run_notebook", lambda *arguments: seen.append(arguments))
    main([str(notebook), "out.ipynb", "-f", "some.yaml", "-p", "count", "7", "-p", "sizes", "[3]"])
    assert seen == [(str(notebook), "out.ipynb", {"count": 7, "rate": 0.25, "sizes": [3]})]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository whose notebook imports simo.a, which imports simo.b; nothing imports simo.c."""
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    (tmp_path / "simo").mkdir()
    modules = {
        "a": '"""About a."""\nfrom simo.b import f\n\n\ndef g():\n    """About g."""\n    return f(1)\n',
        "b": "def f(x):\n    return x + 1\n",
        "c": "y = 1\n",
    }
    for name, code in modules.items():
        (tmp_path / "simo" / f"{name}.py").write_text(code)
    write_notebook(tmp_path / "n.ipynb", "x = 1\n", "from simo import a\na.g()\n")
    return tmp_path


def hash_after(project, file, old, new):
    """The notebook's hash after a replacement in a file, which is undone again."""
    path = project / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    code_hash.cache_clear()
    digest = code_hash(project / "n.ipynb")
    path.write_text(text)
    code_hash.cache_clear()
    return digest


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("simo/a.py", "About a.", "Quite about\n    a."),
        ("simo/a.py", "About g.", "About\n    everything."),
        ("simo/b.py", "x + 1", "x  +  1  # one more"),
        ("simo/c.py", "y = 1", "y = 2"),
        ("n.ipynb", "a.g()", "a.g()  # call"),
    ],
    ids=["module docstring", "docstring", "comment and layout", "module not imported", "comment in a cell"],
)
def test_explaining_code_runs_nothing_again(project, file, old, new):
    """Comments, docstrings, layout and modules that are not imported do not count as code."""
    assert hash_after(project, file, old, new) == code_hash(project / "n.ipynb")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("simo/a.py", "f(1)", "f(2)"),
        ("simo/b.py", "x + 1", "x + 2"),
        ("n.ipynb", "a.g()", "a.g(), 1"),
        ("n.ipynb", "x = 1", "x = 2"),
        ("simo/b.py", "return x + 1", "from simo.c import y; return x + 1"),
    ],
    ids=["imported", "imported by the imported", "cell", "default", "new import"],
)
def test_changing_code_runs_it_again(project, file, old, new):
    """Code counts wherever it is: in cells, in what they import, and in what that imports."""
    assert hash_after(project, file, old, new) != code_hash(project / "n.ipynb")


SYNTAX = """import os
from a import b as c


@c(1)
class A(B, metaclass=M):
    x: int = 0

    async def f(self, a, /, b=None, *args, d: str = f"{os!r:>{3}} {1}", **more) -> None:
        global g
        with open(a) as g, b:
            return [i async for i in a if i] + [*args, -1, 1e400, b"x", ...]


def h():
    try:
        yield lambda x=(): x.y[1:2, ...] if not x else {**x, "a": 1}
    except* (E, F) as e:
        match e:
            case [1, *_] | {"k": None}:
                del e
"""


def test_the_hash_does_not_depend_on_the_python(tmp_path):
    """A record's hash of code can be checked with any Python: 3.11, 3.12 and 3.13 all said this one."""
    (tmp_path / "s.py").write_text(SYNTAX)
    assert code_hash(tmp_path / "s.py") == "dda467fe6f4829d8110dbd5a4070ca07139b3ef4f29d2e6ed718943ba85b7a06"


def test_code_of_a_function_that_only_explains_itself(project):
    """A string that is returned is code, though it looks like a docstring."""
    (project / "s.py").write_text('def f():\n    """A."""\n    return "A."\n')
    digest = code_hash(project / "s.py")
    (project / "s.py").write_text('def f():\n    """A."""\n    return "B."\n')
    code_hash.cache_clear()
    assert code_hash(project / "s.py") != digest


def test_expert_notebook_depends_on_what_it_uses():
    """The real expert notebook is run again for its loop and losses, not for figures or tables."""
    code = "\n".join(notebooks.notebook_code(ROOT / "notebooks" / "compute" / "expert.ipynb"))
    names = {module.stem for module in notebooks.imported(code)}
    assert {"training", "datasets", "models", "metrics", "tasks", "checkpoints"} <= names
    assert not {"plotting", "tables", "claims"} & names


def test_run_is_atomic(tmp_path, capsys):
    """A failed run keeps its notebook and leaves the last good output; a good one replaces both."""
    notebook = write_notebook(
        tmp_path / "my notebook.ipynb",
        "fail = True\nnumber = 1\n",
        "from pathlib import Path\nassert Path('pyproject.toml').is_file()\nprint('number is', number + 1)",
        "if fail:\n    raise ValueError('the depth is upside down')\n",
    )
    output = tmp_path / "executed" / "my notebook.ipynb"
    failed = output.with_name("my notebook.failed.ipynb")
    output.parent.mkdir()
    output.write_text("the last good one")
    with pytest.raises(
        SimoError, match=r"my notebook.ipynb failed in cell 4: ValueError: .*upside down"
    ) as error:
        run_notebook(notebook, output, {"number": 41})
    assert str(failed) in str(error.value)
    assert output.read_text() == "the last good one"
    assert "number is 42" in failed.read_text()
    assert "the depth is upside down" in failed.read_text()
    run_notebook(notebook, output, {"number": 6, "fail": False})
    assert "number is 7" in output.read_text()
    assert list(output.parent.iterdir()) == [output]
    assert all(not cell["outputs"] for cell in cells_of(notebook))


ENDS = {  # code that ends a notebook before its end, or fails without an exception of Python's own
    "import sys\nsys.exit()": "SystemExit: the cell ends the notebook; let it run to its end",
    "raise SystemExit(0)": "SystemExit: the cell ends the notebook",
    "exit()": "SystemExit: the cell ends the notebook",
    "%%capture\nraise SystemExit": "SystemExit: the cell ends the notebook",
    "%nosuchmagic": "UsageError: Line magic function `%nosuchmagic` not found",
    "%env NONE_OF_THIS_NAME": "UsageError: Environment does not have key",
    "%%capture\n1 / 0": "ZeroDivisionError: division by zero",
    "%%bash\nexit 3": "CalledProcessError: .* exit status 3",
    "%sx false": "CalledProcessError: .* exit status 1",
    "!exit 4": "SimoError: a command ended with status 4",
    "class A:\n    __repr__ = None\nA()": "TypeError: 'NoneType' object is not callable",
}


@pytest.mark.parametrize("code", ENDS)
def test_cell_that_ends_a_notebook(tmp_path, code):
    """It is no success, whatever papermill takes it for: the command fails and names notebook and cell."""
    marker, out = tmp_path / "later", tmp_path / "out" / "own method.ipynb"
    notebook = write_notebook(tmp_path / "own method.ipynb", "a = 1\n", code, f"open({str(marker)!r}, 'w')")
    with pytest.raises(SystemExit, match=rf"(?m)^error: own method\.ipynb failed in cell 3: {ENDS[code]}"):
        main([str(notebook), str(out), "-p", "a", "2"])
    assert [path.name for path in out.parent.iterdir()] == ["own method.failed.ipynb"]
    assert not marker.exists()


def test_kernel_that_dies(tmp_path):
    """What the system kills is named with the cell, and what the notebook had shown is kept."""
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    notebook = write_notebook(tmp_path / "n.ipynb", "a = 1\n", "print('shown')", code)
    with pytest.raises(SimoError, match=r"n.ipynb: the kernel died in cell 3, most often for lack of memory"):
        run_notebook(notebook, tmp_path / "out.ipynb", {})
    assert '"shown' in (tmp_path / "out.failed.ipynb").read_text()
    assert not (tmp_path / "out.ipynb").exists()


def test_missing_notebook_is_named(tmp_path):
    """A misspelt notebook is answered before papermill is imported."""
    with pytest.raises(SimoError, match="notebook .*nothing.ipynb does not exist"):
        run_notebook(tmp_path / "nothing.ipynb", tmp_path / "out.ipynb", {})


def expected_output(cell):
    """Whether a cell carries text that `pytest --nbval` compares with."""
    return "# NBVAL_CHECK_OUTPUT" in "".join(cell["source"])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_source_notebook_is_clean(path):
    """Sources hold no outputs: those are in the build, except the one that a test compares with."""
    checked = 0
    for cell in cells_of(path):
        if cell["cell_type"] == "code":
            if expected_output(cell):
                checked += 1
                assert cell["execution_count"] == 1  # whatever ran last, so that diffs stay quiet
                assert {output["output_type"] for output in cell["outputs"]} <= {"stream"}
            else:
                assert cell["execution_count"] is None
                assert cell["outputs"] == []
    assert checked == (path.stem in ("nyuv2", "cityscapes", "taskonomy"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_source_notebook_is_readable(path):
    """A title, any parameters cell at the top of the code, and no cell longer than a screen."""
    cells = cells_of(path)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown"
    assert "".join(cells[0]["source"]).startswith("# ")
    tagged = ["parameters" in cell["metadata"].get("tags", ()) for cell in code]
    assert tagged[0] == bool(declared_parameters(path))
    assert not any(tagged[1:])
    too_long = [
        source.splitlines()[0]
        for source, parameters in zip(("".join(cell["source"]) for cell in code), tagged, strict=True)
        if len(source.splitlines()) > 25 and not parameters
    ]
    assert not too_long


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_defaults_are_those_of_the_miniature(path):
    """A notebook opened by hand does what `make book` does."""
    miniature = read_parameters(ROOT / "notebooks" / "params" / "miniature" / "nyuv2.yaml")
    declared = declared_parameters(path)
    shared = declared.keys() & miniature.keys()
    assert {name: declared[name] for name in shared} == {name: miniature[name] for name in shared}
    check_parameters(path, {name: miniature[name] for name in shared})


def test_every_parameter_has_a_value_in_the_profile():
    """What no notebook reads is not in the profile, and what computing notebooks read is, or names a run."""
    miniature = read_parameters(ROOT / "notebooks" / "params" / "miniature" / "nyuv2.yaml")
    declared = set().union(*(declared_parameters(path) for path in SOURCES))
    of_a_run = {"data", "checkpoints", "records", "seed", "task", "method"}
    of_a_run |= {"records_folder", "photos_folder", "photos_gpu_folder", "recomputed"}
    assert declared - miniature.keys() == of_a_run


def test_profiles_have_the_same_keys():
    """Only values differ between profiles, so that what the smoke test runs is what the book runs."""
    folders = {name: PARAMS / name for name in ("miniature", "smoke", "photos", "photos_gpu", "paper")}
    names = {profile: {path.name for path in folder.glob("*.yaml")} for profile, folder in folders.items()}
    for photographs in ("photos", "photos_gpu"):
        names[photographs].remove("raw.yaml")
    assert names["miniature"] == names["smoke"]
    assert names["paper"] == {"nyuv2.yaml", "cityscapes.yaml", "taskonomy.yaml"}
    for profile, name in [(p, name) for p, own in names.items() for name in own]:
        other = yaml.safe_load((folders[profile] / name).read_text())
        known = name if name in names["miniature"] else f"{other.get('dataset')}.yaml"
        miniature = yaml.safe_load((folders["miniature"] / known).read_text())
        assert list(miniature) == list(other)
        for key, value in miniature.items():
            assert type(other[key]) is type(value), (profile, name, key)
            if key == "joint_variants":  # some of them may be left out where they cost days
                assert other[key].keys() <= value.keys(), (profile, name)
            elif isinstance(value, dict) and key not in ("backbone_args", "head_options"):
                assert value.keys() == other[key].keys(), (profile, name, key)


@pytest.mark.parametrize("path", sorted(PARAMS.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_parameter_file_knows_its_name(path):
    """Records say which profile and data set made them."""
    if path.stem in ("data", "raw"):
        assert yaml.safe_load(path.read_text()).keys() <= TASKS.keys()
    else:
        values = read_parameters(path)
        assert (values["profile"], values["dataset"]) == (path.parent.name, path.stem.split("_")[0])


def test_every_value_of_the_paper_has_a_source():
    """What the report or its code says is told from what we had to choose, value by value."""
    for path in (PARAMS / "paper").glob("*.yaml"):
        model, machine = path.read_text().split("# model")[1].split("# the machine")
        for line in model.splitlines():
            own = ("backbone_args", "backbone_weights", "alphas", "method_options", "images")
            if re.match(r" *[a-z_]+:", line) and not line.strip().startswith(own):
                fixed = line.strip() in ("pretrained: [0.0]", "average: [1.0]")
                assert fixed or re.search(r"# \[(paper|code|count|open)\]", line), (path.name, line)
        assert "device: auto" in machine


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_notebook_names_no_place_of_its_own(path):
    """No absolute path and no folder of whoever wrote it."""
    text = "".join("".join(cell["source"]) for cell in cells_of(path))
    assert not re.search(r"""["'`(\s](/(home|root|work|Users|tmp|mnt)/|~/|[A-Z]:\\)""", text)


@pytest.mark.parametrize(("failures", "succeeds"), [(2, True), (3, False)])
def test_kernel_that_did_not_start_is_started_again(notebook, tmp_path, monkeypatch, failures, succeeds):
    """Two notebooks side by side may be given the same port: nothing has run then, so it is tried again."""
    import papermill

    calls = []

    def execute(source, output, *arguments, **options):
        calls.append(source)
        if len(calls) <= failures:
            raise RuntimeError("Kernel died before replying to kernel_info")
        Path(output).write_text("{}")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    if succeeds:
        notebooks.run_notebook(notebook, tmp_path / "out.ipynb", {})
    else:
        with pytest.raises(SimoError, match="did not start in 3 attempts .Kernel died before replying"):
            notebooks.run_notebook(notebook, tmp_path / "out.ipynb", {})
    assert len(calls) == 3
    assert (tmp_path / "out.ipynb").exists() == succeeds


def test_other_errors_are_not_tried_again(notebook, tmp_path, monkeypatch):
    """A second attempt would hide them."""
    import papermill

    calls = []

    def execute(*arguments, **options):
        calls.append(1)
        raise RuntimeError("something else")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    with pytest.raises(RuntimeError, match="something else"):
        notebooks.run_notebook(notebook, tmp_path / "out.ipynb", {})
    assert calls == [1]


def test_photographs_are_tested_as_they_are_shown_in_training():
    """Crops are as large as the images, and these whole patches: no zeros that an expert has never seen.

    At 144×192 pixels, padded to 154×196 in tests only, depth was a fifth worse, and every realigned model,
    whose images are padded, too, looked better than the experts for that alone.
    """
    for folder in (PARAMS / "photos", PARAMS / "photos_gpu"):
        size = yaml.safe_load((folder / "raw.yaml").read_text())["nyuv2"]["size"]
        for path in sorted(folder.glob("[nt]*.yaml")):
            assert read_parameters(path)["crop"] == size
        assert all(length % 14 == 0 for length in size)
