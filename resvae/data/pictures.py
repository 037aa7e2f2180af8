"""Image files of all kinds, read into 8 bits per channel, many at once."""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resvae.errors import ResvaeError
from resvae.progress import progress

GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
SIXTEEN = 257  # 65535 / 255
WHITE = 255


@dataclass(frozen=True)
class Picture:
    """What a file holds: pixels ``H W 3``, whether it is grey, and what else is worth a word."""

    pixels: np.ndarray
    grey: bool
    met: list[str]

    def channels(self, num: int) -> np.ndarray:
        """The pixels as ``num H W``, 1 or 3 channels: grey is their brightness."""
        from PIL import Image

        pixels = self.pixels if num == 3 else np.asarray(Image.fromarray(self.pixels).convert("L"))[:, :, None]
        return pixels.transpose(2, 0, 1).copy()


def read_all(
    files: Sequence[Path],
    size: tuple[int, int] | None = None,
    on_corrupt: str = "refuse",
    field: str = "data.path",
) -> Iterator[Picture | None]:
    """The pictures in order, read by several threads; None for one that cannot be read and is to be skipped.

    Args:
        files: of pictures.
        size: the height and width to which they are cut and scaled; None: as they are.
        on_corrupt: ``refuse`` (``ResvaeError``) or ``skip`` what cannot be read.
        field: what messages call the files.
    """

    def attempt(file: Path) -> Picture | Exception:
        try:
            return decoded(file, size)
        except Exception as error:  # decoders of broken files raise anything
            return error

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        results = threads.map(attempt, files)
        try:
            for file, result in zip(progress(files, f"reading {len(files):,} images"), results, strict=True):
                yield _checked(file, result, on_corrupt, field)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _checked(file: Path, result: Picture | Exception, on_corrupt: str, field: str) -> Picture | None:
    """The picture, or None for one that is to be skipped; else ``ResvaeError``."""
    if isinstance(result, Picture):
        return result
    if isinstance(result, ResvaeError):
        raise ResvaeError(f"{field}: {result}")
    if on_corrupt == "refuse":
        remedy = "; remove it or set data.on_corrupt to skip" if field == "data.path" else ""
        raise ResvaeError(f"{field}: {file} is not an image that can be read{remedy}") from result
    warnings.warn(f"skipped {file}: not an image that can be read", stacklevel=2)
    return None


def decoded(name: Path, size: tuple[int, int] | None) -> Picture:
    """A file's picture, turned as its EXIF says, of 8 bits, on white, and with ``size`` cut to it and scaled."""
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
            raise ResvaeError(f"{name} has floating-point pixels; whole numbers of 8 or 16 bits are allowed")
        if mode.startswith("I"):
            values = np.asarray(picture)
            if values.min() < 0 or values.max() > SIXTEEN * 255:
                raise ResvaeError(f"{name} has more than 16 bits per channel; 8 or 16 are allowed")
            met.append("of 16 bits: scaled to 8")
            picture = Image.fromarray(np.round(values / SIXTEEN).astype(np.uint8))
        elif transparent:
            picture = picture.convert("RGBA")
            if picture.getchannel("A").getextrema()[0] < WHITE:
                met.append("with transparency: put on white")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
    if size is not None:
        picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS)
    return Picture(np.asarray(picture), mode in GREY, met)
