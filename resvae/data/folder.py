"""A folder of image files."""

import warnings
from pathlib import Path

import numpy as np
import torch

from resvae.data.sources import Images, Request, Source, split_off
from resvae.errors import ResvaeError

NEEDS_PATH = True
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def read(request: Request) -> Source:
    """Read ``train/`` and ``test/`` if both exist, else one set. Class subfolders give the labels."""
    path = Path(str(request.path))
    if not path.is_dir():
        raise ResvaeError(f"data.path: {path} is not a folder")
    apart = (path / "train").is_dir() and (path / "test").is_dir()
    parts = {part: _files(part) for part in ([path / "train", path / "test"] if apart else [path])}
    names = sorted({name for files in parts.values() for name in files.values()})
    classes = {} if "" in names else {name: number for number, name in enumerate(names)}
    sets = [_pictures(part, files, classes, request) for part, files in parts.items()]
    train, test = sets if apart else split_off(sets[0])
    # The files are found class by class. After shuffling, the first images come from every class.
    return train, test.take(torch.randperm(len(test.y), generator=torch.Generator().manual_seed(0)))


def _files(path: Path) -> dict[Path, str]:
    """The image files below a folder, in order, each with the name of its class folder, or an empty name."""
    found = {}
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        if file.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in parts):
            found[file] = parts[0] if len(parts) > 1 else ""
    return found


def _pictures(path: Path, files: dict[Path, str], classes: dict[str, int], request: Request) -> Images:
    from PIL import Image, ImageOps

    pictures, labels, grey = [], [], True
    for name, label in files.items():
        try:
            with Image.open(name) as file:
                picture = ImageOps.exif_transpose(file)
                mode = picture.mode
                picture = picture.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if request.on_corrupt == "refuse":
                raise ResvaeError(
                    f"data.path: {name} is not an image that can be read; remove it or set data.on_corrupt to skip"
                ) from error
            warnings.warn(f"skipped {name}: not an image that can be read", stacklevel=2)
            continue
        if mode.startswith(("I", "F")):
            raise ResvaeError(f"data.path: {name} has more than 8 bits per channel; at most 8 are allowed")
        if (size := request.image_size) is not None:
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture)
        if pictures and pixels.shape != pictures[0].shape:
            sizes = ["x".join(map(str, p.shape[:2])) for p in (pixels, pictures[0])]
            raise ResvaeError(f"data.path: {name} is {sizes[0]}, others are {sizes[1]}; set data.image_size")
        grey &= mode in ("1", "L", "LA")
        pictures.append(pixels)
        labels.append(classes.get(label, 0))
    if not pictures:
        raise ResvaeError(f"data.path: {path} holds no images; these types are read: {', '.join(EXTENSIONS)}")
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return Images(x[:, :1].contiguous() if grey else x, torch.tensor(labels))
