"""The names by which models are saved, loaded and configured; classes of one's own can join them."""

from typing import Any, TypeVar

from resvae.errors import ResvaeError
from resvae.models.base import ImageModel
from resvae.probability import Likelihood
from resvae.probability.likelihoods import LIKELIHOODS

MODELS: dict[str, type[ImageModel]] = {}
Registered = TypeVar("Registered", bound=type[Any])


def register(cls: Registered) -> Registered:
    """A class decorator: ``save``, ``load``, checkpoints and configurations then know the class by its name.

    ::

        @resvae.models.register
        class MyVAE(resvae.VAE):
            def __init__(self, depth: int = 16):
                super().__init__(depth, image_shape=(1, 8, 8), widths=(8, 16), strides=(1, 2))
                self.arguments = {"depth": depth}  # what `load` gives to this constructor

    The name of a subclass of ``Likelihood`` then is one of the likelihoods'. Raises ``ResvaeError`` for a class that is
    neither this nor an ``ImageModel``, and for a name that another class has.
    """
    if not issubclass(cls, ImageModel | Likelihood):
        raise ResvaeError(f"register: {cls.__name__} is not allowed; a subclass of ImageModel or of Likelihood")
    names: dict[str, Any] = MODELS if issubclass(cls, ImageModel) else LIKELIHOODS
    place, there = _place(cls), _place(names.get(cls.__name__, cls))
    if place != there:
        raise ResvaeError(f"register: {place} is not allowed; {there} has the name {cls.__name__} already")
    names[cls.__name__] = cls  # a module that is read again, or a notebook's cell, defines its class anew
    return cls


def registered(model: Any) -> bool:
    """Whether the model's class is known by its name."""
    return MODELS.get(type(model).__name__) is type(model)


def _place(known: Any) -> str:
    return f"{getattr(known, '__module__', '')}.{getattr(known, '__qualname__', known)}"
