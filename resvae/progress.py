"""How far long work has come."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], what: str) -> Iterator[T]:
    """The items; in a terminal, with a bar that shows ``what`` is done and how many items are left."""
    from rich.progress import track

    return iter(track(items, what, transient=True, disable=not sys.stderr.isatty()))
