"""Pictures of many images: grids of samples, originals beside their reconstructions."""

import math
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from resvae.files import writable, write_atomically

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
SMALLEST_TILE = 48  # pixels: smaller images are enlarged by whole factors, so that a person can see them


def image_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Tile images ``[N, C, H, W]`` in [0, 1] into one ``[3, H', W']``, row by row; about square by default."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    factor = max(1, SMALLEST_TILE // images.shape[-1])
    images = images.float().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    if images.shape[1] not in (1, 3):  # no colours to speak of: the channels' mean
        images = images.mean(1, keepdim=True)
    return make_grid(images, nrow=columns, padding=2, pad_value=1.0)


def beside(originals: Tensor, reconstructions: Tensor, columns: int = 8) -> Tensor:
    """Rows of originals ``[N, C, H, W]``, each over the row of their reconstructions; white fills the last rows."""
    columns = min(columns, len(originals))
    white = originals.new_ones(-len(originals) % columns, *originals.shape[1:])
    whole = [torch.cat([images, white]).unflatten(0, (-1, columns)) for images in (originals, reconstructions)]
    return torch.stack(whole, 1).flatten(0, 2)


def save_grid(images: Tensor, path: str | Path, columns: int | None = None) -> Path:
    """Write a grid of images ``[N, C, H, W]`` as a PNG; its folder must exist."""
    path = writable(path, *PICTURES)
    save_picture(image_grid(images, columns), path)
    return path


def save_picture(image: Tensor, path: Path) -> None:
    """Write one image ``[C, H, W]`` in [0, 1], whole or not at all."""
    kind = {".jpg": "JPEG"}.get(path.suffix.lower(), path.suffix[1:].upper())
    encoded = BytesIO()  # Pillow's encoders do not see that a file is full
    save_image(image, encoded, format=kind)
    write_atomically(path, lambda temporary: temporary.write_bytes(encoded.getvalue()))
