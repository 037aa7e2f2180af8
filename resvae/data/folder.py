"""A folder of image files."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resvae.data.layout import EXTENSIONS, Layout, layout_of
from resvae.data.pictures import read_all
from resvae.data.sources import Images, Request, Source, split_off
from resvae.data.store import Contents, gather
from resvae.errors import ResvaeError

NEEDS_PATH = True


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
    size = None if request.image_size is None else (request.image_size, request.image_size)
    kept: list[int] = []  # places in ``files``
    grey, facts = [True], Counter[str]()

    def parts() -> Iterator[np.ndarray]:
        kept.clear()  # it may be a second attempt
        facts.clear()
        grey[0], shape = True, None
        for i, picture in enumerate(read_all([file for _, file, _ in files], size, request.on_corrupt)):
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
