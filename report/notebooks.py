"""Running a notebook through papermill with strict parameters and atomic output, and what it depends on.

    python -m report.notebooks notebooks/compute/expert.ipynb build/expert.ipynb -f params.yaml -p task depth

A misspelt or ill-typed parameter is refused before anything runs; papermill alone would only log it.
"""

import argparse
import ast
import hashlib
import re
import sys
from functools import cache
from pathlib import Path

from report.parameters import (
    ROOT,
    check_parameters,
    declared_parameters,
    notebook_path,
    parse_yaml,
    read_cells,
    read_parameters,
)
from simo.errors import SimoError
from simo.files import atomic_path, reason

HOUSES = ("simo", "report", "data_scripts")  # whose modules a notebook's code may be


def notebook_code(path):
    """Sources of the code cells of a notebook file, in order."""
    return ["".join(cell["source"]) for cell in read_cells(path) if cell["cell_type"] == "code"]


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
        path.read_text("utf-8") if path.suffix == ".py" else "\n".join(notebook_code(notebook_path(source)))
    )
    digest = hashlib.sha256(_code_only(code))
    for module, text in sorted(imported(code).items()):
        digest.update(module.name.encode() + _code_only(text))
    return digest.hexdigest()


def imported(code):
    """Modules of ours that a source imports, and that these import: text by file."""
    todo, done = _imported_modules(code), {}
    while todo:
        module = todo.pop()
        done[module] = module.read_text(encoding="utf-8")
        todo |= _imported_modules(done[module]) - done.keys()
    return done


def _imported_modules(code):
    """Files of this repository's modules that a source imports anywhere; of a package its `__init__.py`."""
    ours = [ROOT / name.replace(".", "/") for name in _imported_names(code) if name.split(".")[0] in HOUSES]
    files = {file for path in ours for file in (path.with_suffix(".py"), path / "__init__.py")}
    return {file for file in files if file.is_file()}


@cache  # the graph asks for all notebooks, and most import the same modules
def _imported_names(code):
    """Names of all that a source imports anywhere, and of what it imports from there."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@cache
def _code_only(source):
    """Syntax tree of a source as bytes, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return repr(_plain(tree)).encode()


def _plain(node):
    """A syntax tree as lists, without what is empty there, which differs between Pythons."""
    if isinstance(node, ast.JoinedStr):  # Python 3.12 ends some with an empty text
        node.values = [each for each in node.values if getattr(each, "value", None) != ""]
    if isinstance(node, ast.AST):
        filled = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        return [type(node).__name__, *((name, _plain(value)) for name, value in filled)]
    return [_plain(each) for each in node] if isinstance(node, list) else node


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
        For wrong parameters, or if a cell fails or ends the notebook: with its number and the error's own
        message.
    """
    check_parameters(notebook, parameters)
    import papermill  # slow: not before the parameters are right
    from nbclient.exceptions import DeadKernelError

    output, path, begun = Path(output), notebook_path(notebook), []
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    with atomic_path(output) as temporary:
        try:
            _execute(str(path), str(temporary), parameters, begun)
        except (papermill.PapermillExecutionError, DeadKernelError) as error:
            temporary.replace(failed)
            what = f"{path.name}: the kernel died in cell {len(begun)}, most often for lack of memory"
            if isinstance(error, papermill.PapermillExecutionError):
                what = f"{path.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
                what = what.rstrip(": ")
            raise SimoError(f"{what}\nThe notebook as far as it got: {failed}") from error
    failed.unlink(missing_ok=True)


def _refuse_failed(cell, cell_index, execute_reply):
    """Stop at a cell that failed or ended the notebook: papermill takes some of these for success.

    It does so for `sys.exit()`, runs on after `exit()`, and knows nothing of errors without a traceback, as
    magics have them; what a magic only shows, it sees at the end.
    """
    from nbclient.exceptions import CellExecutionError
    from nbformat.v4 import new_output

    reply = execute_reply["content"]
    ends = any(each.get("source") == "ask_exit" for each in reply.get("payload", ()))
    shown = [each for each in cell.outputs if each.output_type == "error"]
    if reply["status"] == "ok" and not ends and not shown:
        return
    found = next((each for each in shown if each.ename != "SystemExit"), None)
    if not found:
        name, value = reply.get("ename", "SystemExit"), reply.get("evalue", "")
        if name == "SystemExit" and value in ("", "0"):
            value = "the cell ends the notebook; let it run to its end, or raise what is wrong"
        found = new_output("error", ename=name, evalue=value, traceback=[])
        cell.outputs.append(found)
    raise CellExecutionError("", found.ename, found.evalue)


def load_ipython_extension(shell):
    """Let a cell of this kernel fail whose `!command` or `%pip` did: IPython only notes the exit status."""

    def fail(result):
        if status := shell.user_ns.pop("_exit_code", 0):
            result.error_in_exec = result.error_in_exec or SimoError(f"a command ended with status {status}")

    shell.events.register("post_run_cell", fail)


def _execute(notebook, output, parameters, begun, attempts=3):
    """Let papermill execute a notebook, again if its kernel died before any cell ran; note cells in `begun`.

    Jupyter picks free network ports first and takes them later; notebooks that start side by side may pick
    the same, and then one of the kernels dies at once.
    """
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class OwnKernel(AsyncKernelManager):
        """The kernel of this Python, whatever a user's kernel specs call `python3`."""

        @property
        def kernel_spec(self):
            return KernelSpec(
                **get_kernel_dict(["--ext=report.notebooks", "--InteractiveShell.system_raise_on_error=True"])
            )

    for attempt in range(1, attempts + 1):
        try:
            return papermill.execute_notebook(
                notebook,
                output,
                parameters,
                kernel_name="python3",
                kernel_manager_class=OwnKernel,
                cwd=str(ROOT),
                progress_bar=False,
                stderr_file=sys.stderr,
                stdout_file=sys.stdout,
                on_cell_execute=lambda cell, cell_index: begun.append(cell_index),
                on_cell_executed=_refuse_failed,
            )
        except RuntimeError as error:
            if not re.search("died before replying|didn't respond", str(error)):
                raise
            if attempt == attempts:
                raise SimoError(
                    f"the kernel of {Path(notebook).name} did not start in {attempts} attempts ({error}), "
                    "most often for lack of memory"
                ) from error
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
        help="VALUE is YAML; of a parameter that is text, as it stands",
    )
    options = parser.parse_args(arguments)
    try:
        shared = read_parameters(options.file) if options.file else {}
        declared = declared_parameters(options.notebook)
        parameters = {name: value for name, value in shared.items() if name in declared}
        parameters |= _given(options.parameter, declared)
        run_notebook(options.notebook, options.output, parameters)
    except SimoError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: the system refuses: {error.filename or 'a file'}: {reason(error)}")


def _given(pairs, declared):
    """Values of the command line; a path, say, is not to be read as YAML."""
    values = {}
    for name, value in pairs:
        if name in values:
            raise SimoError(f"-p {name} is given twice")
        values[name] = value if isinstance(declared.get(name), str) else parse_yaml(value, f"-p {name}")
    return values


if __name__ == "__main__":
    main()
