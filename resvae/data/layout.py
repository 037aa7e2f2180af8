"""Which files of a folder are images, of which split and of which class: folders as people lay them out."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from resvae.errors import ResvaeError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# What people call the folders of the splits, in small letters.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
LEFT_BY_SYSTEMS = ("__macosx", "thumbs.db", "desktop.ini")


@dataclass
class Layout:
    """What a folder holds.

    Args:
        root: the folder, or the only one inside it where that holds the splits.
        files: of each split (``train`` alone where there are none), the images in order, each with its class.
        classes: the number of each class by its name; empty where the images have no labels.
        notes: sentences that say what else was found.
    """

    root: Path
    files: dict[str, dict[Path, str]]
    classes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def layout_of(path: Path) -> Layout:
    """Look at a folder.

    Raises:
        ResvaeError: no folder; splits that do not fit together.
    """
    if not path.is_dir():
        raise ResvaeError(f"data.path: {path} is not a folder")
    root, parts = path, _parts(path)
    inside = _visible(path)
    if not parts and len(inside) == 1 and inside[0].is_dir() and "train" in _parts(inside[0]):
        root, parts = inside[0], _parts(inside[0])  # what unpacking an archive leaves
    if "train" not in parts:
        if len(parts) > 1:
            said = " and ".join(folder.name for folder in parts.values())
            raise ResvaeError(f"data.path: {root} holds the folders {said}, but none named train")
        parts = {"train": root}
    notes, others = [], Counter[str]()
    found = {split: _images(folder, others) for split, folder in parts.items()}
    if parts["train"] != root:
        notes += _left_out(root, list(parts.values()))
        told = [
            f"{folder.name}/" + (f" ({split})" if folder.name.lower() != split else "")
            for split, folder in parts.items()
        ]
        notes.append(f"the splits are {', '.join(told)}")
    if others:
        counts = [f"{count} {ending or 'without an ending'}" for ending, count in others.most_common()]
        notes.append(f"left out, as no images: {', '.join(counts)}")
    result = Layout(root, found, notes=notes)
    _number_classes(result)
    return result


def _parts(path: Path) -> dict[str, Path]:
    """The folders of the splits, in the order of ``SPLITS``."""
    parts: dict[str, Path] = {}
    for split, names in SPLITS.items():
        folders = [each for each in _visible(path) if each.is_dir() and each.name.lower() in names]
        if len(folders) > 1:
            said = " and ".join(folder.name for folder in folders)
            raise ResvaeError(f"data.path: {path} holds the folders {said}; only one can be the {split} split")
        if folders:
            parts[split] = folders[0]
    return parts


def _visible(path: Path) -> list[Path]:
    """What is in a folder, but for what systems leave there."""
    inside = (each for each in path.iterdir() if not each.name.startswith("."))
    return sorted(each for each in inside if each.name.lower() not in LEFT_BY_SYSTEMS)


def _images(path: Path, others: Counter[str]) -> dict[Path, str]:
    """The images below a folder in order, each with the name of its class folder or "". Counts ``others`` by ending."""
    found = {}
    for file in _walk(path, (os.path.realpath(path),)):
        parts = file.relative_to(path).parts
        if file.suffix.lower() in EXTENSIONS:
            found[file] = parts[0] if len(parts) > 1 else ""
        else:
            others[file.suffix.lower()] += 1
    return dict(sorted(found.items()))


def _walk(path: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """All files below a folder; links are followed, but not round in a circle."""
    for each in _visible(path):
        if each.is_dir():
            real = os.path.realpath(each)
            if real not in above:
                yield from _walk(each, (*above, real))
        else:
            yield each


def _left_out(root: Path, parts: list[Path]) -> list[str]:
    """A sentence on images that lie beside the splits."""
    beside = [each for each in _visible(root) if each not in parts]
    counts = {
        each.name + "/" if each.is_dir() else each.name: len(_images(each, Counter()))
        if each.is_dir()
        else int(each.suffix.lower() in EXTENSIONS)
        for each in beside
    }
    told = [f"{name} ({count} images)" if name.endswith("/") else name for name, count in counts.items() if count]
    return [f"left out, beside the splits: {', '.join(told)}"] if told else []


def _number_classes(layout: Layout) -> None:
    """Number the classes of all splits alike, and say what there is to say of them."""
    everywhere = {split: set(files.values()) for split, files in layout.files.items()}
    names = sorted(set[str]().union(*everywhere.values()))
    if names == [""]:
        return
    if "" in names:
        loose = [file.name for files in layout.files.values() for file, name in files.items() if not name]
        told = ", ".join(loose[:3]) + (", ..." if len(loose) > 3 else "")
        layout.notes.append(f"no labels: {len(loose)} images are in no class folder ({told})")
        return
    layout.classes = {name: number for number, name in enumerate(names)}
    for split in everywhere.keys() - {"train"}:
        if unknown := sorted(everywhere[split] - everywhere["train"]):
            layout.notes.append(f"classes of the {split} split that train has not: {', '.join(unknown)}")
