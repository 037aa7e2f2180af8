"""A folder of image files."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resvae.data.layout import EXTENSIONS, Layout, layout_of
from resvae.data.sources import Images, Request, Source, split_off
from resvae.data.store import Contents, gather
from resvae.errors import ResvaeError
from resvae.progress import progress

NEEDS_PATH = True
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
SIXTEEN = 257  # 65535 / 255
WHITE = 255


def read(request: Request) -> Source:
    """Read ``train/``, ``val/`` and ``test/`` where they exist, else one set. Class subfolders give the labels."""
    path = Path(str(request.path))
    layout = layout_of(path)
    if not any(layout.files.values()):
        raise ResvaeError(f"data.path: {path} holds no images; these types are read: {', '.join(EXTENSIONS)}")
    sets, notes = _gathered(layout, request)
    if empty := [split for split, images in sets.items() if not len(images.y)]:
        raise ResvaeError(f"data.path: {path}: the {empty[0]} split holds no images")
    notes = [_brief(layout, sets), *layout.notes, *notes]
    if len(sets) == 1:
        source = split_off(sets["train"])
        train, test, val = source.train, source.test, None
    else:
        train, val = sets["train"], sets.get("val")
        if "test" not in sets:
            notes.append("there is no test split: tests are on the validation images")
        test = sets.get("test", val)
    assert test is not None
    # The files are found class by class. After shuffling, the first images come from every class.
    val, test = (each and each.take(_shuffled(len(each.y))) for each in (val, test))
    assert test is not None
    return Source(train, test, val, tuple(f"data: {note}" for note in notes))


def _shuffled(num: int) -> torch.Tensor:
    return torch.randperm(num, generator=torch.Generator().manual_seed(0))


def _brief(layout: Layout, sets: dict[str, Images]) -> str:
    """The first sentence: how many images there are, how large, and of which classes."""
    num = sum(len(images.y) for images in sets.values())
    _, channels, height, width = sets["train"].x.shape
    text = f"{num:,} images of {height}x{width}, {'grey' if channels == 1 else 'in colour'}, in {layout.root}"
    if layout.classes:
        counts = Counter(int(label) for images in sets.values() for label in images.y)
        told = [f"{name} {counts[number]:,}" for name, number in layout.classes.items()]
        text += f"; {len(told)} classes: " + ", ".join(told[:10]) + (", ..." if len(told) > 10 else "")
    return text


def _gathered(layout: Layout, request: Request) -> tuple[dict[str, Images], tuple[str, ...]]:
    """The images of each split, and sentences on what was met in them."""
    files = [(split, file, name) for split, each in layout.files.items() for file, name in each.items()]
    kept: list[int] = []  # places in ``files``
    grey, facts = [True], Counter[str]()

    def parts() -> Iterator[np.ndarray]:
        shape = None
        for i, picture in enumerate(_read_all([file for _, file, _ in files], request)):
            if picture is None:
                facts["left out, as they cannot be read"] += 1
                continue
            shape = shape or picture.pixels.shape
            if picture.pixels.shape != shape:
                sizes = ["x".join(map(str, each[:2])) for each in (picture.pixels.shape, shape)]
                other = files[kept[0]][1].name
                raise ResvaeError(
                    f"data.path: {files[i][1]} is {sizes[0]}, others such as {other} are {sizes[1]}; "
                    "set data.image_size"
                )
            kept.append(i)
            grey[0] &= picture.grey
            facts.update(picture.met)
            yield picture.pixels.transpose(2, 0, 1)[None]
        if not kept:
            raise ResvaeError(f"data.path: {layout.root} holds no images that can be read")

    def contents() -> Contents:
        nums = Counter(files[i][0] for i in kept)
        labels = np.array([layout.classes.get(files[i][2], 0) for i in kept], np.int64)
        notes = tuple(f"{count:,} images {fact}" for fact, count in facts.most_common())
        return Contents({split: nums[split] for split in layout.files}, labels, 1 if grey[0] else 3, notes)

    shape = (len(files), 3, *_size([file for _, file, _ in files], request.image_size))
    return gather(request, layout.root, _key(layout, request), shape, parts, contents)


def _size(files: list[Path], size: int | None) -> tuple[int, int]:
    """The height and width of the first image that can be opened, once it is scaled; 0 where there is none."""
    from PIL import Image

    if size is not None:
        return size, size
    for file in files:
        with suppress(Exception), Image.open(file) as picture:  # decoders of broken files raise anything
            return picture.height, picture.width
    return 0, 0


@dataclass(frozen=True)
class Picture:
    """What a file holds: pixels ``H W 3``, whether it is grey, and what else is worth a word."""

    pixels: np.ndarray
    grey: bool
    met: list[str]


def _read_all(files: list[Path], request: Request) -> Iterator[Picture | None]:
    """The pictures in order, read by several threads; None for one that cannot be read and is to be skipped."""

    def attempt(file: Path) -> Picture | Exception:
        try:
            return _decoded(file, request.image_size)
        except Exception as error:  # decoders of broken files raise anything
            return error

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        results = threads.map(attempt, files)
        try:
            for file, result in zip(progress(files, f"reading {len(files):,} images"), results, strict=True):
                yield _checked(file, result, request.on_corrupt)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _checked(file: Path, result: Picture | Exception, on_corrupt: str) -> Picture | None:
    """The picture, or None for one that is to be skipped; else ``ResvaeError``."""
    if isinstance(result, Picture):
        return result
    if isinstance(result, ResvaeError):
        raise result
    if on_corrupt == "refuse":
        raise ResvaeError(
            f"data.path: {file} is not an image that can be read; remove it or set data.on_corrupt to skip"
        ) from result
    warnings.warn(f"skipped {file}: not an image that can be read", stacklevel=2)
    return None


def _decoded(name: Path, size: int | None) -> Picture:
    """A file's picture, turned as its EXIF says, of 8 bits, on white, and with ``size`` cut square and scaled."""
    from PIL import Image, ImageOps

    met = []
    with Image.open(name) as file:
        if getattr(file, "n_frames", 1) > 1:
            met.append("of several frames: the first is taken")
        picture: Any = file
        picture.load()
        try:
            if file.getexif().get(0x0112, 1) != 1:
                met.append("turned as their EXIF says")
            picture = ImageOps.exif_transpose(file)
        except Exception:  # the pixels are there all the same
            met.append("with EXIF that cannot be read: taken as they are")
        mode, transparent = picture.mode, picture.mode in ("RGBA", "LA", "PA", "La", "RGBa")
        transparent |= "transparency" in picture.info
        if mode.startswith("F"):
            raise ResvaeError(f"data.path: {name} has floating-point pixels; whole numbers of 8 or 16 bits are allowed")
        if mode.startswith("I"):
            values = np.asarray(picture)
            if values.min() < 0 or values.max() > SIXTEEN * 255:
                raise ResvaeError(f"data.path: {name} has more than 16 bits per channel; 8 or 16 are allowed")
            met.append("of 16 bits: scaled to 8")
            picture = Image.fromarray(np.round(values / SIXTEEN).astype(np.uint8))
        elif transparent:
            picture = picture.convert("RGBA")
            if picture.getchannel("A").getextrema()[0] < WHITE:
                met.append("with transparency: put on white")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
    if size is not None:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return Picture(np.asarray(picture), mode in GREY, met)


def _key(layout: Layout, request: Request) -> list[Any]:
    """The files with their sizes and times, and how they are read."""
    entries: list[Any] = [request.image_size, request.on_corrupt, layout.classes]
    for split, files in layout.files.items():
        for file, name in files.items():
            entry = [split, str(file.relative_to(layout.root)), name]
            with suppress(OSError):  # a link to nothing
                entry += [file.stat().st_size, file.stat().st_mtime_ns]
            entries.append(entry)
    return entries
