"""The one exception that the package raises for input that it cannot use, and how messages are made."""


class ResvaeError(ValueError):
    """Bad input. The message is one line: the field, the value, and what is allowed.

    The command line prints it and exits with code 2; in Python it is an ordinary ``ValueError``.
    """


class LostProcessError(RuntimeError):
    """One of several processes that train together ended, and the others cannot go on. The message is one line."""


def at_least(least: float, **fields: float | None) -> None:
    """Raise ``ResvaeError`` for the first field whose value is below ``least``; None is allowed."""
    for field, value in fields.items():
        if value is not None and value < least:
            raise ResvaeError(f"{field}: {value} is not allowed; at least {least}")


def one_line(message: object) -> str:
    """The text of an error or a warning on one line; its type's name where it has no text."""
    return " ".join(str(message).split()) or type(message).__name__
