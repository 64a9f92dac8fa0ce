"""How the command lines of this project end: with an exit status and, if something was wrong, one line."""

import sys

from simo.errors import SimoError


def exit_status(run, *arguments, **options):
    """Do a command line's work, and say in one line what was wrong.

    Parameters
    ----------
    run : callable
        Called with the other arguments. If it returns a whole number, that is the status.

    Returns
    -------
    int
        Also 1 after a SimoError, and 130 after Ctrl-C.
    """
    try:
        done = run(*arguments, **options)
        return done if isinstance(done, int) else 0
    except SimoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: give the same command again to continue", file=sys.stderr)
        return 130
