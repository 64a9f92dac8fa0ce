"""The one exception type that simo raises for input it cannot use, and its commonest checks."""


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


def require_known(what, value, known, where=""):
    """Raise a SimoError if a name is none of those that are known.

    Parameters
    ----------
    what : str
        Is named, such as "head".
    value : object
        What was found.
    known : collection of str
    where : str
        What the message begins with.
    """
    if not isinstance(value, str) or value not in known:
        raise SimoError(f"{where}unknown {what} {value!r}: expected one of {sorted(known)}")
