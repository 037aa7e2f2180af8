"""The images that a verb is used on: files, or a data set's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resvae.data import Split
from resvae.data.layout import EXTENSIONS
from resvae.data.pictures import read_all
from resvae.errors import ResvaeError, whole_from
from resvae.files import place
from resvae.progress import progress
from resvae.runs.data import data_of

BATCH = 250
Named = tuple[list[str], Tensor]  # names, and images [B, C, H, W], uint8, on the model's device


def images_for(
    vae: Any, model: str, pictures: list[str], num: int | None, split: Split = "test", **where: Any
) -> Iterator[Named]:
    """Batches of images with their names: the files ``pictures``, or the first ``num`` images of a split.

    Args:
        vae: the model that they are for.
        model: where it is from: a run has its own data.
        pictures: files, and folders of them; they are turned, cut and scaled to the model's shape.
        num: of the data set; None: all.
        split: train, val or test.
        **where: as ``data_of`` has it.
    """
    whole_from(1, num=num)
    device = next(vae.parameters()).device
    if pictures:
        if given := [name for name, value in where.items() if value is not None]:
            raise ResvaeError(f"{given[0]}: {where[given[0]]} is not allowed with pictures; give one or the other")
        return ((names, x.to(device)) for names, x in _read(_files(pictures), vae.image_shape))
    x = data_of(model, image_shape=vae.image_shape, **where).images(split, num)
    names = [f"{split}_{i:05d}" for i in range(len(x))]
    starts = progress(range(0, len(x), BATCH), f"{len(x):,} images")
    return ((names[i : i + BATCH], x[i : i + BATCH].to(device)) for i in starts)


def _files(pictures: list[str]) -> list[Path]:
    found: list[Path] = []
    for path in map(place, pictures):
        inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in EXTENSIONS) if path.is_dir() else []
        if not path.exists():
            raise ResvaeError(f"pictures: {path} does not exist")
        if path.is_dir() and not inside:
            raise ResvaeError(f"pictures: {path} holds no images; these types are read: {', '.join(EXTENSIONS)}")
        found += inside or [path]
    return found


def _read(files: list[Path], shape: tuple[int, int, int]) -> Iterator[Named]:
    if shape[0] not in (1, 3):
        raise ResvaeError(f"pictures: they have 1 or 3 channels, and this model takes {shape[0]}")
    names, batch = _names(files), list[Tensor]()
    for i, picture in enumerate(read_all(files, shape[1:], field="pictures"), 1):
        assert picture is not None  # only what is skipped is
        batch.append(torch.from_numpy(picture.channels(shape[0])))
        if len(batch) == BATCH or i == len(files):
            yield names[i - len(batch) : i], torch.stack(batch)
            batch = []


def _names(files: list[Path]) -> list[str]:
    """The files' names without endings; a number tells those apart that are equal."""
    names: dict[str, None] = {}
    for file in files:
        name, number = file.stem, 1
        while name in names:
            number += 1
            name = f"{file.stem}-{number}"
        names[name] = None
    return list(names)
