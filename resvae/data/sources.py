"""The sources of images by name. Each is read into one uint8 tensor."""

from importlib import import_module
from pathlib import Path
from typing import Any

from resvae.data.images import Images, Request, Source, resized
from resvae.errors import ResvaeError, at_least

# Each name, and the module of this package whose function ``read`` takes a request to a training and a test set.
SOURCES = {
    "cifar10": "downloads",
    "cifar100": "downloads",
    "svhn": "downloads",
    "mnist": "downloads",
    "fashion_mnist": "downloads",
    "digits": "digits",
    "folder": "folder",
    "npz": "npz",
}


def check(request: Request) -> None:
    """Raise ``ResvaeError`` for an unknown name, a path that is missing or does not exist, a size below 1."""
    if request.name not in SOURCES:
        raise ResvaeError(f"data.name: {request.name!r} is not known; one of {', '.join(SOURCES)}")
    at_least(1, **{"data.image_size": request.image_size})
    if getattr(_source(request), "NEEDS_PATH", False) and request.path is None:
        raise ResvaeError(f"data.path: None is not allowed; the data set {request.name} needs a path")
    if request.path is not None and not Path(request.path).exists():
        raise ResvaeError(f"data.path: {request.path} does not exist")


def read(request: Request) -> Source:
    """The training and the test set of a request, or ``ResvaeError`` for an unsuitable file or a failed download."""
    train, test = _source(request).read(request)
    if (size := request.image_size) is not None:
        train, test = (Images(resized(part.x, size), part.y) for part in (train, test))
    shapes = [tuple(part.x.shape[1:]) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise ResvaeError(f"data.path: training images are {shapes[0]}, test images {shapes[1]}; shapes must be equal")
    return train, test


def _source(request: Request) -> Any:
    return import_module(f"resvae.data.{SOURCES[request.name]}")
