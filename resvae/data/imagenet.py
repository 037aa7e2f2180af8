"""ImageNet at 64x64, 32x32, 16x16 or 8x8 pixels, in its published batches (Chrabaszcz 2017)."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resvae.data.npz import array, headers, readable, rows
from resvae.data.sources import Request, Source, channels_first, resized
from resvae.data.store import Contents, gather
from resvae.errors import ResvaeError

NEEDS_PATH = True
BATCHES = {"train": "train_data_batch_*.npz", "test": "val_data.npz"}


def read(request: Request) -> Source:
    """All batches below ``path``, as they are unpacked. ImageNet's validation images are the test images.

    A batch holds ``data``, uint8 ``[N, 3 S S]``, and ``labels`` from 1.
    """
    path = Path(str(request.path))
    files = {split: sorted(path.rglob(name), key=_number) for split, name in BATCHES.items()}
    for split, name in BATCHES.items():
        if not files[split]:
            raise ResvaeError(f"data.path: {path} holds no {name}, the published batches of ImageNet")
    each = [file for part in files.values() for file in part]
    widths, labels = {}, {}
    for file in each:
        with readable(file):
            shapes = headers(file)
            if missing := {"data", "labels"} - set(shapes):
                raise ResvaeError(f"data.path: {file} holds no array named {min(missing)}")
            labels[file] = array(file, "labels").astype(np.int64) - 1
            shape = shapes["data"][0]
            widths[file] = math.isqrt(shape[1] // 3) if len(shape) == 2 else 0
        if len(shape) != 2 or 3 * widths[file] ** 2 != shape[1] or labels[file].shape != shape[:1] or not shape[0]:
            raise ResvaeError(f"data.path: {file} holds data of shape {shape} and {labels[file].size} labels")
    if len(set(widths.values())) > 1:
        told = " and ".join(sorted({f"{width}x{width}" for width in widths.values()}))
        raise ResvaeError(f"data.path: {path} holds batches of {told} pixels; give the folder of one of them")
    width = widths[each[0]]
    size = request.image_size or width

    def parts() -> Iterator[np.ndarray]:
        for file in each:
            with readable(file):
                for part in rows(file, "data"):
                    x = channels_first(part.reshape(-1, 3, width, width), f"{file}: data")
                    yield resized(x, size).numpy()

    counts = {split: sum(len(labels[file]) for file in part) for split, part in files.items()}
    known = Contents(counts, np.concatenate([labels[file] for file in each]), 3)
    key: list[Any] = [size, *([str(file.relative_to(path)), *_changed(file)] for file in each)]
    sets, _ = gather(request, path, key, (len(known.labels), 3, size, size), parts, lambda: known)
    return Source(sets["train"], sets["test"])


def _number(file: Path) -> tuple[str, int]:
    digits = "".join(filter(str.isdigit, file.stem))
    return str(file.parent), int(digits or 0)


def _changed(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
