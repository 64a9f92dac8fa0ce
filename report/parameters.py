"""Parameters: what notebooks declare, and values for them, which are refused before anything runs.

A notebook declares its parameters in the cell tagged `parameters`, as `name = value` lines of literals, whose
types are the parameters'.
"""

import ast
import difflib
import re
import sys
from functools import cache
from pathlib import Path

import yaml

from simo.errors import SimoError
from simo.files import listed, read_json, reason

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    "data",
    "checkpoints",
    "records",
    "backbone_weights",
    "device",
    "threads",
    "workers",
    "compile_model",
)  # parameters that say where, not what, is computed
COMPLETE = {"alphas"}  # of these, each name that a default has is read
COUNTS = r"(realign_)?batch_size|(finetune|joint|realign|longer)_steps|accumulate|(adapter|lora)_rank"
WORDS = {"device": r"auto|cpu|cuda(:\d+)?", "precision": "auto|float32|bfloat16"}
INJECTED = "# Parameters\n"  # how the cell begins that papermill puts after the declaring one


def notebook_path(notebook):
    """File of a notebook, given as a path or by its name in `notebooks/`; SimoError if there is none."""
    path = Path(notebook)
    if path.suffix != ".ipynb":
        path = next((ROOT / "notebooks").glob(f"*/{notebook}.ipynb"), path.with_suffix(".ipynb"))
    if not path.is_file():
        raise SimoError(f"notebook {path} does not exist")
    return path


def read_cells(path):
    """Cells of a notebook file; SimoError if it is not one of format 4."""
    notebook = read_json(path)
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    sound = isinstance(cells, list) and all(
        isinstance(cell, dict) and {"cell_type", "source"} <= cell.keys() for cell in cells
    )
    if not sound:
        raise SimoError(f"{path} is not a notebook: expected cells with a type and a source (format 4)")
    return cells


@cache
def declared_parameters(notebook):
    """Parameters of a notebook and their defaults, by name; `notebook` as for `notebook_path`.

    Raises
    ------
    SimoError
        If the cell tagged `parameters` holds anything but assignments of literals.
    """
    path = notebook_path(notebook)
    for cell in read_cells(path):
        if "parameters" in cell.get("metadata", {}).get("tags", ()):
            return parse_declarations("".join(cell["source"]), path.name)
    return {}


def parse_declarations(source, where):
    """Declared parameters and their defaults in the source of a cell; SimoError if it holds anything else."""

    def refuse(line, found):
        raise SimoError(
            f"{where}, line {line} of its parameters: expected `name = value` with a number, text, list or "
            f"dict, found {found}"
        )

    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # as far as Python's parser says
        refuse(getattr(error, "lineno", 1), f"what is no Python ({reason(error)})")
    declared = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # text that explains
        single = isinstance(node, ast.Assign) and len(node.targets) == 1
        if not (single and isinstance(node.targets[0], ast.Name)):
            refuse(node.lineno, f"`{ast.unparse(node)}`")
        try:
            declared[node.targets[0].id] = ast.literal_eval(node.value)
        except (SyntaxError, ValueError, TypeError, RecursionError):
            refuse(node.lineno, f"`{ast.unparse(node)}`")
    return declared


def nearest(name, known):
    """The known name that a misspelt one must mean, in words, or all of them."""
    close = difflib.get_close_matches(str(name), known, 1)
    return f"did you mean {close[0]!r}?" if close else f"expected some of {sorted(known)}"


def check_parameters(notebook, parameters):
    """Refuse names that the notebook does not declare, and values that cannot be meant.

    A value must have the type of the default, in lists and under a dict's own keys, too; a whole number may
    stand for a float, but none may be negative, infinite or NaN where the default is not. Of a dict, a key
    must not be nearly one that the default has.

    Raises
    ------
    SimoError
        Naming the parameter, what was expected and what was found.
    """
    _check(declared_parameters(notebook), parameters, notebook_path(notebook).name)


def _check(defaults, parameters, where):
    for name, value in parameters.items():
        if name not in defaults:
            raise SimoError(f"{where} has no parameter {name!r}: {nearest(name, defaults)}")
        default = defaults[name]
        expected = _unlike(value, default) or _useless(name, value, default)
        if expected:
            raise SimoError(
                f"parameter {name} of {where}: expected {expected} like its default {default!r}, "
                f"found {value!r}"
            )


def _useless(name, value, default):
    """What was to be expected where no notebook can use a value of the right type; None where one can."""
    if name in COMPLETE and (missing := default.keys() - value.keys()):
        return f"{sorted(missing)[0]!r}, too,"
    if re.fullmatch(COUNTS, name) and value < 1:
        return "a number above 0"
    if name in WORDS and not re.fullmatch(WORDS[name], value):
        return WORDS[name].replace("|", ", ")
    if name == "crop" and (len(value) != 2 or min(value) < 1):
        return "2 numbers above 0"
    return "entries" if value == [] and default else None


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unlike(value, default):
    """What was to be expected where a value cannot stand for a default; None where it can."""
    found, wanted = type(value).__name__, type(default).__name__
    if found != wanted and (found, wanted) != ("int", "float"):
        return wanted
    if _is_number(value):
        if not abs(value) <= sys.float_info.max:
            return "finite numbers"
        return "no negative number" if value < 0 and _is_number(default) and default >= 0 else None
    pairs = []
    if found == "list":
        like = [min(default)] if default and all(map(_is_number, default)) else default[:1]
        pairs = [(each, *(like or [each])) for each in value]
    elif found == "dict":
        for key in value.keys() - default.keys():
            close = difflib.get_close_matches(str(key), default.keys() - value.keys(), 1, 0.8)
            if close and not str(key).startswith(close[0]):  # cagrad2 beside cagrad is a name of its own
                return f"{close[0]!r} in place of {key!r}"
        pairs = [(each, default[key]) for key, each in value.items() if key in default]
        # options of a library, such as an image size that is a number or two
        pairs = [pair for pair in pairs if not (isinstance(pair[0], list) and _is_number(pair[1]))]
    for each, like in pairs:
        if problem := _unlike(each, like):
            return f"{problem} in it"
    return None


class _PlainYaml(yaml.SafeLoader):
    """YAML of plain values: those of its core schema, in decimal digits, no key twice, no aliases.

    What other versions of YAML take for numbers (010 is 8, 1:30 is 90), truth (no), dates and parts of other
    mappings (<<) is text. Aliases can refer to themselves.
    """

    yaml_implicit_resolvers = {}

    def compose_node(self, parent, index):
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias, which is not supported", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        """Refuse a key that is given twice."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen if isinstance(key.value, str) else False:
                problem = f"{key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else None)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node):
        """Refuse what becomes 0 and is not."""
        value = super().construct_yaml_float(node)
        if value == 0 and re.match("[^eE]*[1-9]", node.value):
            problem = f"{node.value} is too small for a number"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value


_NUMBER = (
    r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
for _kind, _pattern, _first in (  # the first that fits
    ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", [*"tTfF"]),
    ("int", r"[-+]?(0|[1-9][0-9]*)$", [*"-+0123456789"]),
    ("float", _NUMBER, [*"-+.0123456789"]),
):
    _PlainYaml.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), _first)
_PlainYaml.add_constructor("tag:yaml.org,2002:float", _PlainYaml.construct_yaml_float)


def parse_yaml(text, where):
    """Value of a YAML text; SimoError that names the place, `where` and the line, if it is not plain YAML."""
    try:
        return yaml.load(text, Loader=_PlainYaml)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        problem = getattr(error, "problem", None) or reason(error)
        raise SimoError(
            f"{where}, line {line + 1}: {problem}; expected `name: value` with plain values, brackets "
            "closed, spaces in place of tabs"
        ) from error


def read_yaml(path):
    """Read a YAML file that holds a mapping; SimoError that names the line if it does not."""
    path = Path(path)
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SimoError(f"{path}, line {line}: not encoded as UTF-8; save it as such") from error
    except FileNotFoundError as error:
        beside = [other.stem for other in listed(path.parent, "*.yaml")]
        raise SimoError(f"parameter file {path} does not exist: {nearest(path.stem, beside)}") from error
    except OSError as error:
        raise SimoError(f"the system cannot read {path}: {reason(error)}") from error
    value = parse_yaml(text, path)
    if not isinstance(value, dict):
        raise SimoError(f"{path}: expected `name: value` lines, found {type(value).__name__}")
    return value


def read_parameters(path):
    """Read a parameter file of `notebooks/params/`; every key must belong to some notebook, and fit it.

    Raises
    ------
    SimoError
        If the file is missing, not a YAML mapping, holds a key that no notebook declares, or a value that
        cannot be one of the parameter.
    """
    parameters = read_yaml(path)
    _check_everywhere(parameters, path, listed(ROOT / "notebooks", "*/*.ipynb"))
    return parameters


def _check_everywhere(parameters, where, notebooks):
    declared = {notebook: declared_parameters(notebook) for notebook in notebooks}
    known = set().union(*declared.values())
    for name in parameters:
        if not str(name).isidentifier() or not isinstance(name, str):
            raise SimoError(f"{where}: {name!r} is no name of a parameter (1,5 is written 1.5)")
        if name not in known:
            raise SimoError(f"{where}: no notebook has a parameter {name!r}: {nearest(name, known)}")
    for notebook, own in declared.items():
        try:
            check_parameters(notebook, {name: parameters[name] for name in own if name in parameters})
        except SimoError as error:
            raise SimoError(f"{where}: {error}") from error


def read_seeds(text):
    """Seeds from a text such as `0 1 2`; SimoError if they are no whole numbers from 0, each once."""
    seeds = text.split()
    if (
        not seeds
        or len(set(seeds)) < len(seeds)
        or not all(re.fullmatch("0|[1-9][0-9]{0,8}", s) for s in seeds)
    ):
        raise SimoError(f"SEEDS={text}: expected whole numbers from 0 with spaces between, each once")
    return [int(seed) for seed in seeds]


def read_changes(text, own):
    """Values that a user changes in all studies, from a YAML mapping on one line (`SET` of the Makefile).

    Parameters
    ----------
    text : str
        Such as `{finetune_steps: 50}`; empty: none.
    own : collection of str
        Parameters that the pipeline sets itself.

    Raises
    ------
    SimoError
        If a name is one of these or no computing notebook's, or a value does not fit.
    """
    values = parse_yaml(str(text), "SET") if text else {}
    if not isinstance(values, dict):
        raise SimoError(f"SET: expected {{name: value, ...}}, found {text!r}")
    for name in values:
        if name in own:
            raise SimoError(
                f"SET: the pipeline sets {name!r} itself: use PROFILE, SEEDS, STUDIES, DATA, WEIGHTS or BUILD"
            )
    _check_everywhere(values, "SET", listed(ROOT / "notebooks" / "compute", "*.ipynb"))
    return values


def read_study(profile, study, own, changes):
    """Values of a study: of its parameter file, with a user's changes.

    Parameters
    ----------
    profile, study : str
        The folder in `notebooks/params/`, and the file in it; a study's name begins with its data set's.
    own : collection of str
        Parameters that the pipeline sets itself. A file may name the weights, and must name its profile and
        data set.
    changes : dict
        From `read_changes`.

    Raises
    ------
    SimoError
        If the file cannot be used, or says that it is another's.
    """
    if not (folder := ROOT / "notebooks" / "params" / profile).is_dir():
        known = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        raise SimoError(f"PROFILE={profile}: no folder {folder.relative_to(ROOT)}: {nearest(profile, known)}")
    path = folder / f"{study}.yaml"
    values = read_parameters(path)
    named = {"profile": profile, "dataset": study.partition("_")[0]}
    for name, expected in named.items():
        if values.get(name) != expected:
            raise SimoError(
                f"{path}: expected {name}: {expected}, as its path says, found {values.get(name)}"
            )
    own = set(own) - named.keys() - {"backbone_weights"}
    if taken := sorted(own & values.keys()):
        raise SimoError(f"{path}: the pipeline sets {taken[0]!r} itself: remove the line")
    compute = listed(ROOT / "notebooks" / "compute", "*.ipynb")
    missing = set().union(*(declared_parameters(notebook) for notebook in compute)) - own - values.keys()
    if missing:  # the notebook's default is the miniature's
        raise SimoError(f"{path}: {sorted(missing)[0]!r} is missing, which a notebook asks for")
    return values | changes


def check_injected(history=None):
    """Refuse what papermill injected into the running notebook although it declares no such parameter.

    papermill itself only warns, and the notebook would run on its defaults.

    Parameters
    ----------
    history : list of str, optional
        Sources of the cells that ran, IPython's `In`; that of the kernel this runs in if not given.
    """
    if history is None:
        shell = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
        history = shell.user_ns.get("In", ()) if shell else ()
    for number, source in enumerate(history):
        if source.startswith(INJECTED):
            declaring = history[number - 1] if number else ""
            injected = parse_declarations(source, "-p")
            _check(parse_declarations(declaring, "this notebook"), injected, "this notebook")
