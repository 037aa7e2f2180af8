"""Images in one file of raw pixels: of sets that memory does not hold, or whose files take long to read."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from resvae.data.sources import Images, Request
from resvae.errors import ResvaeError
from resvae.files import write_atomically, write_npz

FOLDER = ".resvae"  # of the stores, beside what they hold
VERSION = 2  # of what a store holds
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # what a container may use


class Stored:
    """uint8 images ``[N, C, H, W]`` in a file, of which the rows that are asked for are read, and no others.

    They are read, and not mapped: what was read before does not count as this process's memory, and a file that was cut
    short is an error and no crash. The system keeps what it can in its cache, once for all processes.

    Args:
        path: the file: images one after another, each ``stride`` bytes after the one before.
        shape: ``(C, H, W)``; the first bytes of an image are these channels.
        stride: bytes per image.
        rows: which images of the file, int32 ``[N]``.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], stride: int, rows: Tensor):
        self.path, self.stride, self.rows = path, stride, rows
        self.shape = torch.Size((len(rows), *shape))
        self._file: BinaryIO | None = None  # opened where it is used: processes do not share it

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> "Stored":
        return Stored(self.path, self._each, self.stride, self.rows[index])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    @property
    def _each(self) -> tuple[int, int, int]:
        channels, height, width = self.shape[1:]
        return channels, height, width

    def read(self, indices: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """The images at ``indices``, ``[n, C, H, W]``, in memory of their own."""
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        rows, size = self.rows[indices].tolist(), self._each[0] * self._each[1] * self._each[2]
        read, file, stride = os.pread, self._file.fileno(), self.stride
        pixels = bytearray().join([read(file, size, row * stride) for row in rows])
        if len(pixels) != len(rows) * size:
            raise ResvaeError(f"data: {self.path} was cut short while it was in use; remove it and start again")
        return np.frombuffer(pixels, np.uint8).reshape(len(rows), *self._each)


@dataclass(frozen=True)
class Contents:
    """What is known of images after the last was read.

    Args:
        counts: how many images each split has; they stand one split after another.
        labels: int64 ``[N]``.
        channels: of each image the first of these are kept.
        notes: sentences that tell what was met.
    """

    counts: dict[str, int]
    labels: np.ndarray
    channels: int
    notes: tuple[str, ...] = ()

    def images(self, pixels: "Tensor | Stored") -> dict[str, Images]:
        """The splits of all images ``[N, C, H, W]`` with their labels."""
        ends = np.cumsum(list(self.counts.values())).tolist()
        starts = [0, *ends[:-1]]
        labels = torch.from_numpy(np.ascontiguousarray(self.labels))
        parts = zip(self.counts, starts, ends, strict=True)
        return {split: Images(pixels[start:end], labels[start:end]) for split, start, end in parts}


class Store:
    """A file of pixels, and one beside it that is written last and says what the first holds."""

    def __init__(self, folder: Path, key: Any, needed: bool):
        name = hashlib.sha256(json.dumps([VERSION, key]).encode()).hexdigest()
        self.folder, self.needed = folder / FOLDER, needed
        self.pixels, self.contents = (self.folder / f"{name}{ending}" for ending in (".uint8", ".npz"))

    def read(self) -> tuple[dict[str, Images], tuple[str, ...]] | None:
        """The splits and the notes: in memory unless the store is ``needed``; None where there is no whole store."""
        if not self.contents.is_file():
            return None
        try:
            with self.contents.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                facts, labels = json.loads(str(file["facts"])), file["labels"]
            contents = Contents(facts["counts"], labels, facts["channels"], tuple(facts["notes"]))
            channels, height, width = facts["shape"]
            stride = channels * height * width
            if self.pixels.stat().st_size != len(labels) * stride or sum(contents.counts.values()) != len(labels):
                raise ValueError("pixels and labels do not fit")
        except Exception:  # a reader of damaged archives may stop at anything
            warnings.warn(f"{self.pixels} is damaged; the images are read again", stacklevel=2)
            return None
        if self.needed:
            rows = torch.arange(len(labels), dtype=torch.int32)
            pixels = Stored(self.pixels, (contents.channels, height, width), stride, rows)
        else:
            pixels = np.fromfile(self.pixels, np.uint8).reshape(-1, channels, height, width)
            pixels = torch.from_numpy(np.ascontiguousarray(pixels[:, : contents.channels]))
        return contents.images(pixels), contents.notes

    def write(self, parts: Iterable[np.ndarray], contents: Callable[[], Contents], num_bytes: int) -> None:
        """Write images ``[n, C, H, W]``, part by part, and what ``contents`` says after the last; ``OSError``."""
        self.folder.mkdir(exist_ok=True)
        if (free := shutil.disk_usage(self.folder).free) < num_bytes:
            raise OSError(None, f"it needs {num_bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")
        shape: list[int] = []

        def pixels(temporary: Path) -> None:
            with temporary.open("wb") as file:
                for part in parts:
                    shape[:] = part.shape[1:]
                    file.write(np.ascontiguousarray(part).data)

        write_atomically(self.pixels, pixels)
        known = contents()
        told = {"counts": known.counts, "channels": known.channels, "notes": known.notes, "shape": shape}
        write_npz(self.contents, {"facts": np.array(json.dumps(told)), "labels": known.labels})


def gather(
    request: Request,
    folder: Path,
    key: Any,
    shape: tuple[int, int, int, int],
    parts: Callable[[], Iterable[np.ndarray]],
    contents: Callable[[], Contents],
) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Read images into memory, or into a store where memory is short or ``request.cache`` asks for one.

    Args:
        request: what was asked for.
        folder: where the store's folder goes.
        key: names what is read, and how; a store of another key is not used. Anything that JSON can hold.
        shape: ``(N, C, H, W)`` as far as known: N is the most that there can be.
        parts: starts to read the images: uint8 ``[n, C, H, W]``, split by split.
        contents: what is known after the last of them.

    Returns:
        The splits, and sentences on what was met.

    Raises:
        ResvaeError: a store is needed and cannot be written.
    """
    num_bytes = int(np.prod(shape, dtype=np.int64))
    needed = num_bytes > request.memory_share * memory() and hasattr(os, "pread")
    if not (needed or request.cache):
        return _in_memory(shape, parts(), contents)
    store = Store(folder, key, needed)
    if (found := store.read()) is not None:
        return found
    try:
        store.write(parts(), contents, num_bytes)
        return store.read() or _in_memory(shape, parts(), contents)
    except OSError as error:
        if needed:
            raise ResvaeError(
                f"data.path: {store.folder} cannot be written ({error.strerror}), but a set of {num_bytes / 2**30:.1f} "
                "GiB is kept in a file there; a larger data.memory_share keeps it in memory"
            ) from error
        warnings.warn(f"{store.folder} cannot be written ({error.strerror}); nothing is cached", stacklevel=2)
    return _in_memory(shape, parts(), contents)


def _in_memory(
    shape: tuple[int, int, int, int], parts: Iterable[np.ndarray], contents: Callable[[], Contents]
) -> tuple[dict[str, Images], tuple[str, ...]]:
    pixels, num = np.empty((0, *shape[1:]), np.uint8), 0
    for part in parts:
        if not num:  # sides may be other than was expected: turned as EXIF says
            pixels = np.empty((shape[0], *part.shape[1:]), np.uint8)
        pixels[num : num + len(part)] = part
        num += len(part)
    known = contents()
    return known.images(torch.from_numpy(np.ascontiguousarray(pixels[:num, : known.channels]))), known.notes


def memory() -> int:
    """The bytes of memory that this machine has, or that its container may use."""
    if not hasattr(os, "sysconf"):
        return 2**63
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else ""
    return min(most, int(limit)) if limit.isdigit() else most
