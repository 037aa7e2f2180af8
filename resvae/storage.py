"""Models on disk: folders of safetensors and JSON, checkpoints, shipped weights. Nothing pickled ever runs."""

import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from resvae.devices import chosen
from resvae.errors import ResvaeError
from resvae.files import place
from resvae.models import ImageModel, ImageVAE
from resvae.models.pretrained import CONFIG, HUB, WEIGHTS, build, describe, fetch, fill, load_folder, save
from resvae.runs.folder import SHIPPED, best_checkpoint

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "build",
    "describe",
    "load",
    "load_as",
    "load_vae",
    "read_checkpoint",
    "save",
    "shipped",
]
Kind = TypeVar("Kind", bound=ImageModel)


def load(source: str | Path) -> Any:
    """A model in eval mode from a run's folder, a ``.ckpt``, a saved folder, a shipped name or ``hf://user/model``.

    Of a run it is the best checkpoint. The Hugging Face hub needs ``huggingface_hub``. Raises ``ResvaeError`` where
    there is nothing, for a truncated or foreign file, and for a pickle that holds more than tensors.
    """
    path = fetch(str(source)) if str(source).startswith(HUB) else place(source)
    if path.is_file():
        return _load_checkpoint(path)
    for folder in (path, SHIPPED / path):
        if (folder / CONFIG).is_file():
            return load_folder(folder)
        if folder.is_dir():
            return _load_checkpoint(best_checkpoint(folder))
    raise ResvaeError(
        f"model: {source} is neither a run's folder, a .ckpt, a saved folder nor the name of shipped weights"
        f" ({', '.join(shipped())})"
    )


def load_as(source: str | Path, kind: type[Kind], field: str = "model") -> Kind:
    """``load`` a model of one kind, onto the chosen device; ``ResvaeError`` names ``field`` for another kind."""
    model = load(source)
    if not isinstance(model, kind):
        wanted = kind.__name__.removeprefix("Image")
        raise ResvaeError(f"{field}: {source} is a {type(model).__name__}, not a {wanted}")
    return model.to(chosen())


load_vae = partial(load_as, kind=ImageVAE)  # what samples and reconstructs


def shipped() -> list[str]:
    """The names of the models inside the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint on the CPU; tensors and plain values only, nothing is executed."""
    path = place(path)
    if not path.is_file():
        raise ResvaeError(f"checkpoint: {path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # of a file that is refused below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch says much the same of every pickle that it stops at; names of functions and classes it calls globals.
        if "GLOBAL" in str(error) or "Can only" in str(error) or "reduce" in str(error):
            raise ResvaeError(f"checkpoint: {path} holds code, not only tensors; refused") from error
        raise ResvaeError(f"checkpoint: {path} is not a checkpoint, or is damaged") from error
    except Exception as error:  # torch reads the damage as instructions, and may stop at anything
        raise ResvaeError(f"checkpoint: {path} is truncated or damaged") from error
    if not isinstance(checkpoint, dict):
        raise ResvaeError(f"checkpoint: {path} holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def _load_checkpoint(path: Path) -> ImageModel:
    if path.suffix == ".safetensors":
        raise ResvaeError(f"model: {path} alone does not say which model it is; give its folder, with {CONFIG}")
    checkpoint = read_checkpoint(path)
    if "resvae" not in checkpoint or "state_dict" not in checkpoint:
        raise ResvaeError(f"checkpoint: {path} was not written by resvae: it does not tell which model it holds")
    model = build(checkpoint["resvae"], str(path))
    prefix = f"{model.field}."
    state = {k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return fill(model, state, str(path))
