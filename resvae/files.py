"""What a path means, files that are written whole or not at all, and the check of where they shall go."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resvae.errors import ResvaeError

UNFINISHED = ".unfinished"  # ends the name of a temporary file


def place(path: str | Path) -> Path:
    """The path that a user means; ``~`` is their home, wherever it is written."""
    if not isinstance(path, str | os.PathLike):
        raise ResvaeError(f"path: {path!r} is not allowed; a text or a Path")
    return Path(path).expanduser()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in its place in one step.

    A full disk or a killed process leaves what was at ``path`` as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:  # Windows syncs no file that is open for reading alone
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's files are private; these are to be shared
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of ``write_atomically``; no other process may be writing below ``folder``."""
    for path in folder.rglob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text ``write_atomically``."""
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_figure(path: Path, figure: Any) -> None:
    """Write a figure of matplotlib ``write_atomically``, in the format that the path's ending names."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format=path.suffix[1:]))


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays by their names as an .npz ``write_atomically``."""
    import numpy as np

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # by its name alone, numpy would add an ending
            np.savez(file, **arrays)

    write_atomically(path, write)


def writable(out: str | Path, *endings: str) -> Path:
    """The path ``out``.

    Raises:
        ResvaeError: its folder does not exist, or it has none of the ``endings``, if there are any.
    """
    path = place(out)
    if not path.parent.is_dir():
        raise ResvaeError(f"out: {path} cannot be written; the folder {path.parent} does not exist")
    if endings and path.suffix.lower() not in endings:
        raise ResvaeError(f"out: {path} is not allowed; end it with {', '.join(endings)}")
    return path
