"""The one exception that the package raises for input that it cannot use, and how messages are made."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


class ResvaeError(ValueError):
    """Bad input. The message is one line: the field, the value, and what is allowed.

    The command line prints it and exits with code 2; in Python it is an ordinary ``ValueError``.
    """


class LostProcessError(RuntimeError):
    """One of several processes that train together ended, and the others cannot go on. The message is one line."""


def at_least(least: float, **fields: float | None) -> None:
    """Raise ``ResvaeError`` for the first field that is no number or below ``least``; None is allowed."""
    _check(fields, least, Real, "a number")


def whole_from(least: int, **fields: int | None) -> None:
    """Raise ``ResvaeError`` for the first field that is no whole number or below ``least``; None is allowed."""
    _check(fields, least, Integral, "a whole number")


def _check(fields: Mapping[str, Any], least: float, kind: type, called: str) -> None:
    for field, value in fields.items():
        if value is not None and not isinstance(value, kind):
            raise ResvaeError(f"{field}: {value!r} is not allowed; {called}, at least {least}")
        if value is not None and not value >= least:
            raise ResvaeError(f"{field}: {value} is not allowed; at least {least}")


def one_line(message: object) -> str:
    """The text of an error or a warning on one line; its type's name where it has no text."""
    return " ".join(str(message).split()) or type(message).__name__
