"""Command lines: that of every data set's script, and how all end: with a status, and one line if wrong."""

import argparse
import sys
from pathlib import Path

from data_scripts.checking import check
from data_scripts.preparing import prepare
from simo.errors import SimoError
from simo.files import reason


def exit_status(run, *arguments, **options):
    """Do a command line's work, and say in one line what was wrong.

    Parameters
    ----------
    run : callable
        Called with the other arguments. If it returns a whole number, that is the status.

    Returns
    -------
    int
        Also 1 after a SimoError or where the system refuses, and 130 after Ctrl-C.
    """
    try:
        done = run(*arguments, **options)
        return done if isinstance(done, int) else 0
    except SimoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: the system refuses {error.filename or 'a file'}: {reason(error)}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"error: not enough memory ({reason(error)}): try fewer --workers", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: give the same command again to continue", file=sys.stderr)
        return 130


def main(layout, open_raw, about, arguments=None, add_options=None):
    """Run the command line of a data set's script.

    Parameters
    ----------
    layout : Layout
        What the prepared data must be.
    open_raw : callable
        Function from the raw folder's Path, and the values of added options by name, to a RawData. Raises
        SimoError, with all that a user needs to know to get the data, if something is missing.
    about : str
        The script's docstring; its first line describes the command.
    arguments : list of str, optional
        Instead of those of the process.
    add_options : callable, optional
        Adds options to the parser it is given.

    Returns
    -------
    int
        Exit status: 0, 1 for an error or a failed check, 130 for Ctrl-C.
    """
    prog = f"python -m data_scripts.{Path(sys.argv[0]).stem}"
    parser = argparse.ArgumentParser(prog=prog, description=about.split("\n")[0])
    parser.add_argument("--raw", type=Path, help="folder of the raw data (not for --check)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared data")
    parser.add_argument("--workers", type=int, help="processes (default: one a processor)")
    parser.add_argument("--check", action="store_true", help="verify what was prepared, one line a finding")
    if add_options:
        add_options(parser)
    options = vars(parser.parse_args(arguments))
    raw, out, workers, checking = (options.pop(name) for name in ("raw", "out", "workers", "check"))
    if not checking and raw is None:
        parser.error("--raw is needed to prepare")
    if workers is not None and workers < 1:
        parser.error(f"--workers must be at least 1, found {workers}")

    def run():
        if checking:
            findings = check(out, layout)
            print("\n".join(findings))
            return int(any(finding.startswith("FAIL") for finding in findings))
        prepare(open_raw(raw, **options), out, workers)

    return exit_status(run)
