"""How the command lines of this project end: with an exit status and, if something was wrong, one line."""

import sys

from simo.errors import SimoError


def exit_status(run, *arguments, **options):
    """Do a command line's work, and say in one line what was wrong.

    Parameters
    ----------
    run : callable
        Called with the other arguments. What it returns is the status; None means 0.

    Returns
    -------
    int
        Also 1 after a SimoError, and 130 after Ctrl-C.
    """
    try:
        return run(*arguments, **options) or 0
    except SimoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: give the same command again to continue", file=sys.stderr)
        return 130
