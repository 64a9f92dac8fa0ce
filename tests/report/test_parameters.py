"""report.parameters: a run with a misspelt or impossible value does not begin, wherever the value is given.

A value that is dropped or misread would let hours of computing end in a record of something else.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_notebooks import write_notebook

from report.experiments import EXPERIMENTS
from report.notebooks import main, run_notebook
from report.parameters import (
    ROOT,
    check_injected,
    check_parameters,
    declared_parameters,
    parse_yaml,
    read_changes,
    read_parameters,
    read_seeds,
    read_study,
    read_yaml,
)
from report.run import Run, check_shared_memory
from simo.errors import SimoError

OWN = {"data", "checkpoints", "records", "backbone_weights", "seed", "profile", "dataset", "task", "method"}

YAML = {
    "twice": (b"seed: 1\nclip: 1.0\nseed: 2\n", "line 3: 'seed' is given twice"),
    "twice within": (b"alphas: {ties: [0.0], ties: [1.0]}\n", "line 1: 'ties' is given twice"),
    "tab": (b"alphas:\n\tties: [0.0]\n", r"line 2: found character '\\t'"),
    "python object": (b"clip: !!python/object/apply:os.system ['true']\n", "line 1: .*python/object"),
    "python name": (b"a: 1\nclip: !!python/name:os.system\n", "line 2: .*python/name"),
    "own tag": (b"clip: !secret 1.0\n", "line 1: .*secret"),
    "bracket": (b"scales: [1.0, 1.2\nclip: 1.0\n", "line 2: .*expected ',' or ']'"),
    "brace": (b"alphas: {ties: [0.0]\n", "line 2: .*expected ',' or '}'"),
    "quote": (b'head: "linear\n', "line 2: "),
    "Latin-1": (b"clip: 1.0\n# f\xfcr\n", "line 2: not encoded as UTF-8"),
    "UTF-16": ("clip: 1.0\n".encode("utf-16"), "line 1: not encoded as UTF-8"),
    "zero byte": (b"clip: 1.0\nseed: \x00\n", "line 2: .*special characters"),
    "no space": (b"clip:1.0\n", "found str"),
    "list": (b"- clip\n", "found list"),
    "empty": (b"", "found NoneType"),
    "two documents": (b"clip: 1.0\n---\nclip: 2.0\n", "line 2: but found another document"),
    "alias to itself": (b"clip: &a [*a]\n", "line 1: an alias"),
    "bomb": (b"a: &a [x, x]\nb: [*a, *a]\n", "line 2: an alias"),
    "merge of an alias": (b"a: &a {clip: 1.0}\nb: {<<: *a}\n", "line 2: an alias"),
    "python object with state": (b"clip: !!python/object:os.system {a: 1}\n", "line 1: .*python/object"),
    "too small": (b"a: 1\nencoder_lr: 1e-400\n", "line 2: 1e-400 is too small for a number"),
    "too many digits": (b"seed: " + 5000 * b"9", "line 1: Exceeds the limit"),
    "depth": (b"clip: " + 3000 * b"[", "line 1: .*recursion"),
    "list as a name": (b"? [a]\n: 1\n", "line 1: found unhashable key"),
    "indentation": (b"clip: 1.0\n seed: 2\n", "line 2: mapping values"),
}


@pytest.mark.parametrize("name", YAML)
def test_unusable_yaml_is_one_error(tmp_path, name):
    """File and line are named, nothing is taken silently, and nothing is run."""
    content, message = YAML[name]
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(SimoError, match=f"(?s)params.yaml.*{message}"):
        read_yaml(path)


def test_plain_yaml_is_read():
    """A BOM of Windows does no harm, and numbers are numbers however they are written."""
    text = "{a: 1e-3, b: -2E5, c: 1.5e3, d: .5, e: 10, f: 1e, g: e3, h: '1e3'}"
    text = text[:-1] + ", i: -1, j: 010, k: no, l: 1:30, m: 2024-01-01, n: ~, o: true}"
    expected = {"a": 0.001, "b": -2e5, "c": 1500.0, "d": 0.5, "e": 10, "f": "1e", "g": "e3", "h": "1e3"}
    expected |= {"i": -1, "j": "010", "k": "no", "l": "1:30", "m": "2024-01-01", "n": None, "o": True}
    assert parse_yaml(text, "here") == expected


def test_byte_order_mark(tmp_path):
    """A UTF-8 file that Windows' editor saved reads like any other."""
    (tmp_path / "a.yaml").write_bytes("\ufeffclip: 1.0\n".encode())
    assert read_parameters(tmp_path / "a.yaml") == {"clip": 1.0}


SET = {
    "{finetune_step: 1}": "'finetune_step': did you mean 'finetune_steps'",
    "{Probe_steps: 1}": "'Probe_steps': did you mean 'probe_steps'",
    "{encoder_lr: 0,001}": "'001' is no name of a parameter .1,5 is written 1.5",
    "{encoder_lr: '0,001'}": "encoder_lr of .*: expected float like its default 0.001, found '0,001'",
    "{encoder_lr: 1.0.0}": "encoder_lr of .*expected float",
    "{encoder_lr: .nan}": "encoder_lr of .*expected finite numbers",
    "{encoder_lr: -.inf}": "encoder_lr of .*expected finite numbers",
    "{encoder_lr: -0.001}": "encoder_lr of .*expected no negative number",
    "{encoder_lr: }": "encoder_lr of .*expected float .* found None",
    "{encoder_lr: true}": "encoder_lr of .*expected float .* found True",
    "{encoder_lr: [0.001]}": "encoder_lr of .*expected float",
    "{finetune_steps: 1.5}": "finetune_steps of .*expected int",
    "{finetune_steps: -1}": "finetune_steps of .*expected no negative number",
    "{finetune_steps: 2024-01-01}": "finetune_steps of .*expected int",
    "{lambdas: 0.5}": "lambdas of .*expected list",
    "{lambdas: [0.5, '0,7']}": "lambdas of .*expected float in it",
    "{lambdas: [[0.5]]}": "lambdas of .*expected float in it",
    "{alphas: {ties: ['0,4']}}": "alphas of .*expected float in it",
    "{backbone_args: {depth: six}}": "backbone_args of .*expected int in it",
    "{finetune_steps: true}": "finetune_steps of .*expected int .* found True",
    "{finetune_steps: yes}": "finetune_steps of .*expected int .* found 'yes'",
    "{batch_size: 0}": "batch_size of .*expected a number above 0 like its default 16, found 0",
    "{realign_steps: 0}": "realign_steps of .*expected a number above 0",
    "{adapter_rank: 0}": "adapter_rank of .*expected a number above 0",
    "{crop: [64]}": "crop of .*expected 2 numbers above 0",
    "{crop: [0, 64]}": "crop of .*expected 2 numbers above 0",
    "{scales: []}": "scales of .*expected entries like its default",
    "{blocks: []}": "blocks of .*expected entries",
    "{device: cudda}": r"device of .*expected auto, cpu, cuda.* like its default 'auto', found 'cudda'",
    "{precision: fp16}": "precision of .*expected auto, float32, bfloat16 like",
    "{finetune_steps: 010}": "finetune_steps of .*expected int .* found '010'",
    "{finetune_steps: 0x10}": "finetune_steps of .*expected int .* found '0x10'",
    "{finetune_steps: 0o10}": "finetune_steps of .*expected int .* found '0o10'",
    "{finetune_steps: 1_000}": "finetune_steps of .*expected int .* found '1_000'",
    "{finetune_steps: 1:30}": "finetune_steps of .*expected int .* found '1:30'",
    "{encoder_lr: 1:30.5}": "encoder_lr of .*expected float .* found '1:30.5'",
    "{encoder_lr: 1e400}": "encoder_lr of .*expected finite numbers",
    "{encoder_lr: 1" + 400 * "0" + "}": "encoder_lr of .*expected finite numbers",
    "{encoder_lr: 1e-400}": "line 1: 1e-400 is too small for a number",
    "{encoder_lr: !!str 1}": "encoder_lr of .*expected float .* found '1'",
    "{<<: {finetune_steps: 1}}": "'<<' is no name of a parameter",
    "{clip: 1.0, <<: {clip: 2.0}}": "'<<' is no name of a parameter",
    "{clip: &a 1.0, head_lr: *a}": "line 1: an alias",
    "{finetune_steps: !!python/object:os.system x}": "line 1: .*python/object",
    "{clip: =}": "clip of .*expected float .* found '='",
    "{true: 1}": "True is no name of a parameter",
    "{'clip': 1.0, clip: 2.0}": "'clip' is given twice",
    "{alphas: {task_arithmatic: [0.1]}}": "expected 'task_arithmetic' in place of 'task_arithmatic'",
    "{alphas: {ties: [0.4]}}": "alphas of .*expected 'average', too,",
    "{alphas: {ties: 0.4}}": "alphas of .*expected list in it",
    "{alphas: {ties: [0.4, -0.4]}}": "alphas of .*expected no negative number in it",
    "{alphas: {ties: [.nan]}}": "alphas of .*expected finite numbers in it",
    "{crop: [-8, 8]}": "crop of .*expected no negative number in it",
    "{method_options: {tis: {density: 0.2}}}": "expected 'ties' in place of 'tis'",
    "{method_options: {ties: {densty: 0.2}}}": "expected 'density' in place of 'densty' in it",
    "{joint_variants: {a: 1, pcgrad: {balence: x}}}": "expected 'balance' in place of 'balence' in it",
    "{backbone_args: {dpth: 4}}": "expected 'depth' in place of 'dpth'",
    "{head: 3}": "head of .*expected str",
    "{seed: 1}": "pipeline sets 'seed' itself: use .*SEEDS",
    "{dataset: cityscapes}": "pipeline sets 'dataset' itself",
    "{profile: paper}": "pipeline sets 'profile' itself",
    "{data: a}": "pipeline sets 'data' itself",
    "{checkpoints: a}": "pipeline sets 'checkpoints' itself",
    "{records: a}": "pipeline sets 'records' itself",
    "{backbone_weights: a}": "pipeline sets 'backbone_weights' itself",
    "{task: depth}": "pipeline sets 'task' itself",
    "{method: ties}": "pipeline sets 'method' itself",
    "{records_folder: a}": "no notebook has a parameter 'records_folder'",
    "{clip: 1.0, clip: 2.0}": "'clip' is given twice",
    "{clip: 1.0": "line 1: ",
    "clip": "expected {name: value, ...}, found 'clip'",
    "[clip]": "expected {name: value, ...}",
    "{1: 2}": "1 is no name of a parameter",
}


@pytest.mark.parametrize("text", SET)
def test_unusable_changes_are_refused(text):
    """SET is one line of YAML; what is wrong in it is named before anything runs."""
    with pytest.raises(SimoError, match=f"SET.*{SET[text]}"):
        read_changes(text, OWN)


def test_usable_changes():
    """What the Makefile's help and the rehearsal change is accepted, also in the notations of floats."""
    assert read_changes("", OWN) == {}
    assert read_changes("{encoder_lr: 1e-3, clip: 2}", OWN) == {"encoder_lr": 0.001, "clip": 2}
    others = {"joint_variants": {"cagrad2": {"balance": "cagrad"}}, "backbone_args": {"depths": [2, 2]}}
    others["backbone_args"]["img_size"] = [48, 64]  # in place of a number, as timm takes both
    assert read_changes(str(others), OWN) == others
    text = re.search(r"rehearsal_values = (.*?)\nrehearsal:", (ROOT / "Makefile").read_text(), re.DOTALL)[1]
    assert len(read_changes(re.sub(r"\\\n\s*", "", text), OWN)) > 20


def test_names_of_the_pipeline_come_from_the_snakefile():
    """What a step is given and what SET may not change is one list, and holds all that a run is named by."""
    code = (ROOT / "Snakefile").read_text()
    given = re.search(r"^GIVEN = (\{.*?^\})\nOWN = (.*?)\n", code, re.DOTALL | re.MULTILINE)
    assert eval(given[2], {"GIVEN": eval(given[1]), "EXPERIMENTS": EXPERIMENTS}) == OWN
    assert "for name, value in GIVEN.items()" in code


@pytest.mark.parametrize("text", ["", "one", "-1", "0 0", "1.5", "0,1", "1e3", "٣", "01", "9" * 20])
def test_unusable_seeds(text):
    """A seed becomes part of folders' names: whole numbers, each once."""
    with pytest.raises(SimoError, match="SEEDS=.*expected whole numbers"):
        read_seeds(text)


FILES = {  # replacements in the smoke profile's file
    "other profile": ("profile: smoke", "profile: paper", "expected profile: smoke, as its path says"),
    "other data set": ("dataset: nyuv2", "dataset: taskonomy", "expected dataset: nyuv2"),
    "seed": ("clip:", "seed: 1\nclip:", "the pipeline sets 'seed' itself"),
    "missing": ("clip:", "# clip:", "'clip' is missing"),
    "misspelt": ("head_lr:", "head_rl:", "no notebook has a parameter 'head_rl': did you mean 'head_lr'"),
    "text": ("weight_decay: 0.05", "weight_decay: 0,05", "weight_decay of .*expected float"),
}


@pytest.mark.parametrize("name", FILES)
def test_unusable_study_is_refused(tmp_path, monkeypatch, name):
    """A file says what its place says; what it lacks would silently be the miniature's."""
    old, new, message = FILES[name]
    (tmp_path / "notebooks/params/smoke").mkdir(parents=True)
    (tmp_path / "notebooks/compute").symlink_to(ROOT / "notebooks/compute")
    text = (ROOT / "notebooks/params/smoke/nyuv2.yaml").read_text()
    assert re.search(f"^{old}", text, re.MULTILINE)
    path = tmp_path / "notebooks/params/smoke/nyuv2.yaml"
    path.write_text(text)
    monkeypatch.setattr("report.parameters.ROOT", tmp_path)
    assert read_study("smoke", "nyuv2", OWN, {"clip": 3.0})["clip"] == 3.0
    path.write_text(re.sub(f"^{old}", new, text, flags=re.MULTILINE))
    with pytest.raises(SimoError, match=f"nyuv2.yaml: .*{message}"):
        read_study("smoke", "nyuv2", OWN, {})


@pytest.mark.parametrize(
    ("profile", "study", "found"), [("papre", "nyuv2", "paper"), ("smoke", "nyu", "nyuv2")]
)
def test_misspelt_profile_and_study(profile, study, found):
    """A misspelt PROFILE or STUDIES names the nearest that there is."""
    with pytest.raises(SimoError, match=f"did you mean '{found}'"):
        read_study(profile, study, OWN, {})


CELL = '''
"""What is asked for."""
# how fast
rate = 2.0
least = -1
floor = -0.5
crop = [8, 8]
'''


def test_declarations_are_read(tmp_path):
    """A default gives the type; comments, text and negative numbers are fine."""
    notebook = write_notebook(tmp_path / "n.ipynb", CELL)
    assert declared_parameters(notebook) == {"rate": 2.0, "least": -1, "floor": -0.5, "crop": [8, 8]}
    check_parameters(notebook, {"rate": 1, "least": -7, "floor": -1.0, "crop": [3, 4]})
    for name, value in {"rate": "2", "least": 0.5, "floor": None, "crop": 8}.items():
        with pytest.raises(SimoError, match=f"parameter {name} of n.ipynb: expected"):
            check_parameters(notebook, {name: value})


CELLS = {
    "a, b = 1, 2": r"line 1 .*found `a, b = \(1, 2\)`",
    "x = 1\na = b = 1": "line 2 .*found `a = b = 1`",
    "a = 2 * 3": r"line 1 .*found `a = 2 \* 3`",
    "a = None or 1": "line 1 .*found `a = None or 1`",
    "a: float": "line 1 .*found `a: float`",
    "a: float = 2.0": "line 1 .*found `a: float = 2.0`",
    "a.b = 1": r"line 1 .*found `a\.b = 1`",
    "a[0] = 1": r"line 1 .*found `a\[0\] = 1`",
    "a += 1": r"line 1 .*found `a \+= 1`",
    "import os\na = 1": "line 1 .*found `import os`",
    "a = os.getcwd()": "line 1 .*found `a = os.getcwd",
    "for a in (1, 2):\n    pass": "line 1 .*found `for a in",
    "%matplotlib inline\na = 1": "line 1 .*no Python",
    "a = [1": "line 1 .*no Python",
    "a = {[1]: 2}": "line 1 .*found `a = ",
}


@pytest.mark.parametrize("cell", CELLS)
def test_other_cells_are_refused(tmp_path, cell):
    """What is no plain declaration is named with its line, not answered by an error of Python's."""
    with pytest.raises(SimoError, match=f"n.ipynb, {CELLS[cell]}"):
        declared_parameters(write_notebook(tmp_path / "n.ipynb", cell))


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"cells": {}}', '{"cells": [1]}', '{"worksheets": []}', "{", "null"]
)
def test_file_that_is_no_notebook(tmp_path, text):
    """JSON of another kind, or of an old format, is no KeyError."""
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(SimoError, match=r"n.ipynb( \(JSON\) cannot be decoded| is not a notebook)"):
        declared_parameters(tmp_path / "n.ipynb")


ARGUMENTS = {
    "misspelt": (["-p", "rat", "1"], "no parameter 'rat': did you mean 'rate'"),
    "comma": (["-p", "rate", "0,001"], "rate of .*expected float"),
    "twice": (["-p", "rate", "1", "-p", "rate", "2"], "-p rate is given twice"),
    "bracket": (["-p", "sizes", "[1"], "-p sizes, line 1: "),
    "text in a list": (["-p", "sizes", "[a]"], "sizes of .*expected int in it"),
    "negative": (["-p", "rate", " -1"], "expected no negative number"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_command_line_of_a_notebook(tmp_path, name):
    """The same holds for values on the command line, and nothing is written."""
    notebook = write_notebook(tmp_path / "n.ipynb", "rate = 0.5\nsizes = [1]\n")
    arguments, message = ARGUMENTS[name]
    with pytest.raises(SystemExit, match=message):
        main([str(notebook), str(tmp_path / "out.ipynb"), *arguments])
    assert list(tmp_path.iterdir()) == [notebook]


@pytest.mark.parametrize("text", ["a: b", "{x}", "7", "#1", "null", "it's", "", "[1", "ü & $y"])
def test_text_is_taken_as_it_stands(tmp_path, monkeypatch, text):
    """A folder's name may look like YAML, and must not become a number, a list or nothing."""
    notebook, seen = write_notebook(tmp_path / "n.ipynb", "folder = 'x'\n"), []
    monkeypatch.setattr("report.notebooks.run_notebook", lambda *arguments: seen.append(arguments[2]))
    main([str(notebook), "out.ipynb", "-p", "folder", text])
    assert seen == [{"folder": text}]


HISTORY = ["", "steps = 5\nrate = 0.5"]


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("step = 3", "'step': did you mean 'steps'"),
        ("steps = 3\nratio = 0.1", "'ratio'"),
        ('steps = "3"', "steps of this notebook: expected int"),
        ("rate = -1", "no negative number"),
    ],
)
def test_injected_parameters_are_checked_in_the_kernel(injected, message):
    """In plain papermill the running notebook itself refuses what it does not declare."""
    check_injected([*HISTORY, "# Parameters\nsteps = 3\nrate = 1\n", "# Parameters of no cell\nstep = 1"][:3])
    check_injected([*HISTORY, "step = 3"])  # somebody's own cell
    check_injected()  # in no notebook
    with pytest.raises(SimoError, match=message):
        check_injected([*HISTORY, f"# Parameters\n{injected}\n"])
    with pytest.raises(SimoError, match=message):
        Run("expert", {"In": [*HISTORY, f"# Parameters\n{injected}\n"]})


def test_plain_papermill_refuses_a_misspelt_parameter(tmp_path):
    """The card's own use: `papermill -p finetune_step 1` ends at the notebook's first cell."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(ROOT)]
    notebook, out = str(ROOT / "notebooks/compute/expert.ipynb"), str(tmp_path / "out.ipynb")
    done = subprocess.run(
        [*command, notebook, out, "-p", "finetune_step", "1"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode
    assert (
        "SimoError: this notebook has no parameter 'finetune_step': did you mean 'finetune_steps'"
        in done.stderr
    )


def test_foreign_kernel_is_not_used(tmp_path, monkeypatch):
    """A user's kernel spec `python3`, of whatever Python, does not run our notebooks."""
    spec = tmp_path / "kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["false"], "display_name": "foreign", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    code = "import sys\nassert sys.executable == python, sys.executable"
    notebook = write_notebook(tmp_path / "n.ipynb", "python = ''\n", code)
    run_notebook(notebook, tmp_path / "out.ipynb", {"python": sys.executable})
    assert Path(tmp_path / "out.ipynb").is_file()


def test_shared_memory_that_is_too_small(tmp_path):
    """Docker's 64 MB are a clear word before training, no bus error in it; computed by hand."""
    fields = {"image": {"shape": [10, 10, 3]}, "label": {"shape": [10, 10]}}  # 1200 + 800 bytes
    check_shared_memory(0, 10**12, fields, tmp_path)
    check_shared_memory(8, 1, fields, tmp_path)
    check_shared_memory(8, 10**12, fields, tmp_path / "none")
    with pytest.raises(SimoError, match=r"8 workers need about 32000000000 MB.*workers: 0"):
        check_shared_memory(8, 10**12, fields, tmp_path)
