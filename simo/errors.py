"""The one exception type that simo raises for input it cannot use, and its commonest check."""


class SimoError(ValueError):
    """Input that cannot be used: a file, tensor, parameter or folder.

    The message names the offender, what was expected, what was found and what to do next.
    """


def require(name, value, good, expected):
    """Raise a SimoError if a parameter's value is not good.

    Parameters
    ----------
    name : str
    value : object
        What was found, for the message.
    good : bool
    expected : str
        Such as "a fraction in (0, 1]".
    """
    if not good:
        raise SimoError(f"{name} is {value}: expected {expected}")
