"""Running a notebook through papermill with strict parameters and atomic output, and what it depends on.

    python -m report.notebooks notebooks/compute/expert.ipynb build/expert.ipynb -f params.yaml -p task depth

A misspelt or ill-typed parameter is refused before anything runs; papermill alone would only log it.
"""

import argparse
import ast
import hashlib
import sys
from functools import cache
from pathlib import Path

import yaml

from simo.errors import SimoError
from simo.files import atomic_path, read_json

ROOT = Path(__file__).resolve().parents[1]
HOUSES = ("simo", "report", "data_scripts")  # whose modules a notebook's code may be


def notebook_code(path):
    """Sources of the code cells of a notebook file, in order."""
    cells = read_json(path)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@cache
def declared_parameters(notebook):
    """Parameters of a notebook and their defaults, read from its cell tagged `parameters`.

    Parameters
    ----------
    notebook : str or Path
        A path, or the name of one in `notebooks/`.

    Returns
    -------
    dict of str to object
        Literal defaults; they also give the types.
    """
    path = _notebook_path(notebook)
    for cell in read_json(path)["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            tree = ast.parse("".join(cell["source"]))
            return {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    return {}


def check_parameters(notebook, parameters):
    """Refuse names that the notebook does not declare, and values of another type than its default's.

    A whole number may stand for a float; a default of None accepts anything.

    Raises
    ------
    SimoError
        Naming the parameter, what was expected and what was found.
    """
    declared = declared_parameters(notebook)
    for name, value in parameters.items():
        if name not in declared:
            raise SimoError(
                f"{_notebook_path(notebook).name} has no parameter {name!r}: "
                f"expected some of {sorted(declared)}"
            )
        expected = type(declared[name])
        accepted = (int, float) if expected is float else expected
        wrong = not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool)
        if declared[name] is not None and wrong:
            raise SimoError(
                f"parameter {name} of {_notebook_path(notebook).name}: expected {expected.__name__} like its "
                f"default {declared[name]!r}, found {value!r}"
            )


def read_parameters(path):
    """Read a parameter file of `notebooks/params/`; every key must belong to some notebook.

    Raises
    ------
    SimoError
        If the file is missing, not a YAML mapping, or holds a key that no notebook declares.
    """
    path = Path(path)
    if not path.is_file():
        raise SimoError(f"parameter file {path} does not exist")
    parameters = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(parameters, dict):
        raise SimoError(f"{path}: expected `name: value` lines, found {type(parameters).__name__}")
    known = {
        name for notebook in (ROOT / "notebooks").glob("*/*.ipynb") for name in declared_parameters(notebook)
    }
    unknown = sorted(parameters.keys() - known)
    if unknown:
        raise SimoError(
            f"{path}: no notebook has a parameter {unknown[0]!r}: expected some of {sorted(known)}"
        )
    return parameters


@cache
def code_hash(source):
    """Hash of the code that a notebook or script runs: its own and that of our modules it imports.

    Comments, docstrings and layout do not count, so that explaining the code better re-runs nothing.

    Parameters
    ----------
    source : str or Path
        A notebook, as for `declared_parameters`, or a `.py` file.
    """
    path = Path(source)
    code = (
        path.read_text("utf-8") if path.suffix == ".py" else "\n".join(notebook_code(_notebook_path(source)))
    )
    digest = hashlib.sha256(_code_only(code))
    todo, done = _imported_modules(code), {}
    while todo:
        module = todo.pop()
        done[module] = module.read_text(encoding="utf-8")
        todo |= _imported_modules(done[module]) - done.keys()
    for module in sorted(done):
        digest.update(module.name.encode() + _code_only(done[module]))
    return digest.hexdigest()


def _imported_modules(code):
    """Files of this repository's modules that a source imports anywhere; of a package its `__init__.py`."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = [ROOT / name.replace(".", "/") for name in names if name.split(".")[0] in HOUSES]
    files = {file for path in ours for file in (path.with_suffix(".py"), path / "__init__.py")}
    return {file for file in files if file.is_file()}


def _code_only(source):
    """Syntax tree of a source as bytes, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree).encode()


def _notebook_path(notebook):
    path = Path(notebook)
    if path.suffix != ".ipynb":
        path = next((ROOT / "notebooks").glob(f"*/{notebook}.ipynb"), path.with_suffix(".ipynb"))
    if not path.is_file():
        raise SimoError(f"notebook {path} does not exist")
    return path


def run_notebook(notebook, output, parameters):
    """Execute a notebook with papermill, in the repository's root.

    Parameters
    ----------
    notebook, output : str or Path
        Source, and where the executed notebook goes once it ran to its end. One that failed is kept
        beside it as `<output stem>.failed.ipynb`.
    parameters : dict
        Checked against the notebook's declared ones first.

    Raises
    ------
    SimoError
        For wrong parameters, or if a cell fails: with the error's own message.
    """
    check_parameters(notebook, parameters)
    import papermill  # slow: not before the parameters are right
    from nbclient.exceptions import DeadKernelError

    output = Path(output)
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    with atomic_path(output) as temporary:
        try:
            _execute(str(_notebook_path(notebook)), str(temporary), parameters)
        except papermill.PapermillExecutionError as error:
            temporary.replace(failed)
            raise SimoError(
                f"{Path(notebook).name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
                f"The notebook with its traceback: {failed}"
            ) from error
        except DeadKernelError as error:
            raise SimoError(
                f"the kernel of {Path(notebook).name} died, most often for lack of memory"
            ) from error
    failed.unlink(missing_ok=True)


def _execute(notebook, output, parameters, attempts=3):
    """Let papermill execute a notebook, again if its kernel died before any cell ran.

    Jupyter picks free network ports first and takes them later; notebooks that start side by side may pick
    the same, and then one of the kernels dies at once.
    """
    import papermill

    for attempt in range(1, attempts + 1):
        try:
            return papermill.execute_notebook(
                notebook,
                output,
                parameters,
                kernel_name="python3",
                cwd=str(ROOT),
                progress_bar=False,
                stderr_file=sys.stderr,
                stdout_file=sys.stdout,
            )
        except RuntimeError as error:
            if "died before replying" not in str(error) or attempt == attempts:
                raise
            print(f"the kernel did not start; attempt {attempt + 1} of {attempts}", file=sys.stderr)


def main(arguments=None):
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m report.notebooks", description=__doc__.split("\n")[0])
    parser.add_argument("notebook", help="source notebook")
    parser.add_argument("output", help="where the executed notebook goes")
    parser.add_argument("-f", "--file", help="YAML parameter file; the notebook takes those it declares")
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="VALUE is YAML",
    )
    options = parser.parse_args(arguments)
    try:
        shared = read_parameters(options.file) if options.file else {}
        declared = declared_parameters(options.notebook)
        parameters = {name: value for name, value in shared.items() if name in declared}
        parameters |= {name: yaml.safe_load(value) for name, value in options.parameter}
        run_notebook(options.notebook, options.output, parameters)
    except SimoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
