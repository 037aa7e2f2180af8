"""Images in an .npz file, and how its arrays are read part by part."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.lib import format as npy

from resvae.data.sources import Request, Source, channels_first, resized, split_off
from resvae.data.store import Contents, gather
from resvae.errors import ResvaeError

NEEDS_PATH = True
ROWS = 4096  # images that are read at once


def read(request: Request) -> Source:
    """The arrays ``images`` and ``labels``, ``test_images`` and ``test_labels``; all but the first may be missing."""
    path = Path(str(request.path))
    with readable(path):
        shapes = headers(path)
        arrays = {name: array(path, name) for name in shapes if name in ("labels", "test_labels")}
    if "images" not in shapes:
        raise ResvaeError(f"data.path: {path} holds {', '.join(shapes) or 'nothing'}, but no array named images")
    tested = "test_images" in shapes
    if tested and ("labels" in arrays) != ("test_labels" in arrays):
        raise ResvaeError(f"data.path: {path} holds only one of labels and test_labels; give both or neither")
    splits = {"train": "", "test": "test_"} if tested else {"train": ""}
    labels = {split: _labels(path, prefix, shapes, arrays) for split, prefix in splits.items()}
    first = [next(_images(path, f"{prefix}images", shapes, request)) for prefix in splits.values()]
    if len({part.shape[1:] for part in first}) > 1:
        a, b = (tuple(part.shape[1:]) for part in first)
        raise ResvaeError(f"data.path: training images are {a}, test images {b}; shapes must be equal")

    def parts() -> Iterator[np.ndarray]:
        for prefix in splits.values():
            yield from _images(path, f"{prefix}images", shapes, request)

    counts = {split: len(each) for split, each in labels.items()}
    y = np.concatenate([*labels.values()]) if tested else labels["train"]  # millions: no copy without need
    known = Contents(counts, y, first[0].shape[1])
    num, stat = len(known.labels), path.stat()
    key = [path.name, stat.st_size, stat.st_mtime_ns, request.image_size]
    sets, _ = gather(request, path.parent, key, (num, *first[0].shape[1:]), parts, lambda: known)
    return Source(sets["train"], sets["test"]) if tested else split_off(sets["train"])


def _labels(path: Path, prefix: str, shapes: dict[str, Any], arrays: dict[str, np.ndarray]) -> np.ndarray:
    num = shapes[f"{prefix}images"][0][0] if shapes[f"{prefix}images"][0] else 0
    if not num:
        raise ResvaeError(f"data.path: {path}: {prefix}images holds no images")
    y = arrays.get(f"{prefix}labels", np.broadcast_to(np.int64(0), num))
    if y.shape != (num,) or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
        raise ResvaeError(
            f"data.path: {path}: {prefix}labels are {y.dtype} of shape {y.shape}; "
            f"they must be {num} whole numbers from 0, one for each of {prefix}images"
        )
    return y.astype(np.int64, copy=False)


def _images(path: Path, name: str, shapes: dict[str, Any], request: Request) -> Iterator[np.ndarray]:
    """The images in parts, ``[n, C, H, W]``, of the size that was asked for."""
    with readable(path):
        for part in rows(path, name):
            x = channels_first(part, f"{path}: {name}")
            yield (x if request.image_size is None else resized(x, request.image_size)).numpy()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise ``ResvaeError`` where the file is found to be no .npz of plain arrays."""
    try:
        yield
    except ResvaeError:
        raise
    except Exception as error:  # a reader of damaged archives may stop at anything
        raise ResvaeError(f"data.path: {path} is not an .npz of plain arrays, or it is damaged") from error


def headers(path: Path) -> dict[str, tuple[tuple[int, ...], bool, np.dtype[Any]]]:
    """Shape, column order and type of each array; the arrays themselves are not read."""
    with ZipFile(path) as file:
        return {name.removesuffix(".npy"): _header(file, name) for name in file.namelist()}


def array(path: Path, name: str) -> np.ndarray:
    """A small array, read whole."""
    with np.load(path, allow_pickle=False) as file:
        return file[name]


def rows(path: Path, name: str) -> Iterator[np.ndarray]:
    """An array in parts of ``ROWS``, in memory that never holds more than one of them."""
    with ZipFile(path) as file, file.open(f"{name}.npy") as stream:
        shape, by_columns, dtype = _read_header(stream)
        if dtype.hasobject:
            raise ValueError(f"{name} holds objects")
        if by_columns or not shape:  # the rows do not stand one after another
            yield array(path, name)
            return
        each = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        for start in range(0, shape[0], ROWS):
            num = min(ROWS, shape[0] - start)
            data = stream.read(num * each)
            yield np.frombuffer(bytearray(data), dtype).reshape(num, *shape[1:])


def _header(file: ZipFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    with file.open(name) as stream:
        return _read_header(stream)


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
