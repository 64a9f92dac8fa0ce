"""data_scripts.commands: how a command line ends, whatever its work did."""

import pytest

from data_scripts.commands import exit_status
from simo.errors import SimoError


def raising(error):
    raise error


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (3, 3), (True, 1), ({"images": 4}, 0), ([], 0)])
def test_only_a_number_is_a_status(returned, status):
    """A function that returns what it made has not failed."""
    assert exit_status(lambda: returned) == status


def test_arguments_reach_the_work():
    """The helper adds nothing to the call."""
    assert exit_status(lambda a, b: a + b, 1, b=2) == 3


def test_what_was_wrong_is_one_line(capsys):
    """An error of ours is a message, not a traceback; Ctrl-C says that nothing is lost."""
    assert exit_status(raising, SimoError("no such file")) == 1
    assert capsys.readouterr().err == "error: no such file\n"
    assert exit_status(raising, KeyboardInterrupt()) == 130
    assert "same command again" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    """Errors that are not ours are not hidden."""
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 / 0)
