"""What all studies share: the model and images that are studied, and a folder that keeps each measured figure."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resvae.data import Split
from resvae.devices import chosen
from resvae.errors import ResvaeError, whole_from
from resvae.files import place, write_atomically
from resvae.models import ImageModel
from resvae.provenance import commit, hardware
from resvae.runs.data import data_of
from resvae.storage import load_as
from resvae.studies.table import Row, write_table


@dataclass(frozen=True)
class Subject:
    """A trained model and the images that it is studied on.

    Args:
        source: what it was loaded from.
        model: in eval mode, on the accelerator where there is one.
        x, y: uint8 images ``[N, C, H, W]`` and labels ``[N]``, on the same device.
        told: a sentence for the table: images, split, checkpoint, machine.
        settings: what its figures depend on, the weights' checksum included.
    """

    source: str
    model: Any
    x: Tensor
    y: Tensor
    told: str
    settings: dict[str, Any]


def subject(source: str, num: int, split: Split = "test", **images: Any) -> Subject:
    """Load a model, and the first ``num`` images of a split of the data that it was trained on, or of others.

    Args:
        source: what ``load`` takes.
        num: how many images.
        split: train, val or test.
        **images: as ``data_of`` has them: ``data``, ``path``, ``root``.
    """
    whole_from(1, num=num)
    model = load_as(source, ImageModel)
    device = next(model.parameters()).device
    found = data_of(source, image_shape=model.image_shape, **images)
    model.check_labels(found.labels(split), found.name)
    x, y = found.images(split, num), found.labels(split, num)
    weights = fingerprint(model)
    return Subject(
        source,
        model,
        x.to(device),
        y.to(device),
        f"{type(model).__name__} {source} (weights {weights}), the first {len(x):,} {split} images of {found.name}.",
        {"model": source, "weights": weights, "data": found.name, "split": split, "num": len(x)},
    )


def subjects(models: str | list[str], num: int, **images: Any) -> list[Subject]:
    """``subject`` of each model; of a text, of the names with commas between."""
    names = [name for part in models.split(",") if (name := part.strip())] if isinstance(models, str) else models
    if not names:
        raise ResvaeError(f"models: {models!r} is not allowed; one or more, with commas between")
    return [subject(name, num, **images) for name in dict.fromkeys(names)]


def fingerprint(model: nn.Module) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


class Record:
    """A study's folder. Each figure is written once it is measured, and not measured again when the study resumes.

    Args:
        folder: of the study; it is created where it is missing.
        settings: what the figures depend on. A folder with figures of other settings is refused.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]):
        self.folder = place(folder)
        self._path = self.folder / "study.json"
        settings = json.loads(json.dumps(settings, default=str))
        try:
            kept = json.loads(self._path.read_text()) if self._path.is_file() else {}
        except ValueError as error:
            raise ResvaeError(f"out: {self._path} is damaged; remove it, or choose another folder") from error
        there = kept.get("settings", settings)
        if other := [name for name in settings | there if there.get(name) != settings.get(name)]:
            raise ResvaeError(
                f"out: {folder} holds a study with {other[0]} {there.get(other[0])}, not {settings.get(other[0])}; "
                "choose another folder, or remove that one"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._kept = {"settings": settings, "commit": commit(), "rows": {}} | kept

    def measure(self, key: str, figures: Callable[[], Any]) -> Any:
        """What ``figures()`` returns, as JSON keeps it; called only where the folder does not have it yet."""
        if key not in self._kept["rows"]:
            self._kept["rows"][key] = json.loads(json.dumps(figures()))
            text = json.dumps(self._kept, indent=1)
            write_atomically(self._path, lambda path: path.write_text(text + "\n"))
        return self._kept["rows"][key]

    def write(self, name: str, rows: Sequence[Row], notes: str) -> str:
        """``name.md`` and ``name.csv``; the notes also name the machine and the commit. Returns the Markdown."""
        device = chosen()
        at = f", commit {self._kept['commit'][:7]}" if self._kept["commit"] else ""
        return write_table(rows, self.folder, name, f"{notes} {hardware(device)}{at}.")
