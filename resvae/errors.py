"""The one exception that the package raises for input it cannot use."""


class ResvaeError(ValueError):
    """Bad input. The message is one line: the field, the value, and what is allowed.

    The command line prints it and exits with code 2; in Python it is an ordinary ``ValueError``.
    """
