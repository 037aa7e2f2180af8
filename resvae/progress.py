"""How far long work has come, for who watches."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], what: str) -> Iterator[T]:
    """The items, with a bar that tells ``what`` and how many are left; none where no terminal is."""
    from rich.progress import track

    return iter(track(items, what, transient=True, disable=not sys.stderr.isatty()))
