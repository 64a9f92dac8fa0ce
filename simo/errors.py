"""The one exception type that simo raises for input it cannot use."""


class SimoError(ValueError):
    """Input that cannot be used: a file, tensor, parameter or folder.

    The message names the offender, what was expected, what was found and what to do next.
    """
