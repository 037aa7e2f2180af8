"""Models on disk: folders of safetensors and JSON, checkpoints, shipped weights. Nothing pickled ever runs."""

import inspect
import json
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from resvae.errors import ResvaeError, one_line
from resvae.files import place, write_atomically
from resvae.models import MODELS, ImageModel, ImageVAE
from resvae.models.registry import registered
from resvae.networks import BlockConfig
from resvae.runs.folder import SHIPPED, best_checkpoint

CONFIG, WEIGHTS = "config.json", "model.safetensors"
Kind = TypeVar("Kind", bound=ImageModel)


def describe(model: nn.Module) -> dict[str, Any]:
    """The model's class and constructor arguments, as JSON can hold them."""
    name = type(model).__name__
    if not isinstance(model, ImageModel) or not registered(model):
        raise ResvaeError(f"model: {name} cannot be saved; one of {', '.join(MODELS)} can (see resvae.models.register)")
    if model.arguments is None:
        raise ResvaeError(
            f"model: this {name} cannot be saved: it does not know its constructor's arguments (a classifier around a"
            " given encoder does not); save its state_dict"
        )
    try:
        inspect.signature(type(model)).bind(**model.arguments)
    except TypeError as error:
        raise ResvaeError(
            f"model: {name} cannot be saved: its `arguments` are not its constructor's: {error}"
        ) from error
    return {"model": name, "arguments": model.arguments}


def build(description: dict[str, Any], where: str = "description") -> ImageModel:
    """A new model from what ``describe`` returned; ``where`` names its source in error messages."""
    name, given = (description.get(k) if isinstance(description, dict) else None for k in ("model", "arguments"))
    if not isinstance(name, str) or name not in MODELS or not isinstance(given, dict):
        raise ResvaeError(
            f"{where}: model {name!r} is not known; one of {', '.join(MODELS)}, or import the module that registers"
            " it first (on the command line: RESVAE_IMPORT=my_module)"
        )
    given = MODELS[name].earlier | given
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    try:
        if isinstance(arguments.get("block"), dict):
            arguments["block"] = BlockConfig(**arguments["block"])
        return MODELS[name](**arguments)
    except TypeError as error:
        raise ResvaeError(f"{where}: {name} does not take these arguments: {error}") from error


def save(model: nn.Module, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a model to ``folder``: ``config.json`` and ``model.safetensors``, each replaced whole or not at all.

    ``dtype`` is that of the real numbers on disk (float16 is half as large; default: the model's own). A missing folder
    is made; it is returned. Raises ``ResvaeError`` for a model whose arguments JSON cannot hold (a merge given as a
    function), and for a folder that cannot be written; what was there before stays.
    """
    folder = place(folder)

    def refuse(value: Any) -> Any:
        hint = f"; @resvae.models.register gives {value.__name__} a name" if isinstance(value, type) else ""
        raise ResvaeError(f"model: {type(model).__name__} cannot be saved as JSON: not its argument {value!r}{hint}")

    config = json.dumps(describe(model), indent=2, default=refuse)
    # safetensors keeps no shared memory and no strides: contiguous copies on the CPU.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    if dtype is not None:
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, lambda path: save_file(state, path))
        write_atomically(folder / CONFIG, lambda path: path.write_text(config + "\n"))
    except (OSError, SafetensorError) as error:
        raise ResvaeError(f"model: {folder} could not be written ({one_line(error)})") from error
    return folder


def load(source: str | Path) -> Any:
    """A model in eval mode from a run's folder, a ``.ckpt``, a saved folder, a shipped name or ``hf://user/model``.

    Of a run it is the best checkpoint. The Hugging Face hub needs ``huggingface_hub``. Raises ``ResvaeError`` where
    there is nothing, for a truncated or foreign file, and for a pickle that holds more than tensors.
    """
    path = _download(str(source)) if str(source).startswith("hf://") else place(source)
    if path.is_file():
        return _load_checkpoint(path)
    for folder in (path, SHIPPED / path):
        if (folder / CONFIG).is_file():
            return _load_folder(folder)
        if folder.is_dir():
            return _load_checkpoint(best_checkpoint(folder))
    raise ResvaeError(
        f"model: {source} is neither a run's folder, a .ckpt, a saved folder nor the name of shipped weights"
        f" ({', '.join(shipped())})"
    )


def load_as(source: str | Path, kind: type[Kind], field: str = "model") -> Kind:
    """``load`` a model of one kind, to the GPU where there is one; ``ResvaeError`` names ``field`` for another kind."""
    model = load(source)
    if not isinstance(model, kind):
        wanted = kind.__name__.removeprefix("Image")
        raise ResvaeError(f"{field}: {source} is a {type(model).__name__}, not a {wanted}")
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


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
    return _fill(model, state, str(path))


def _load_folder(folder: Path) -> ImageModel:
    try:
        description = json.loads((folder / CONFIG).read_text())
        state = load_file(folder / WEIGHTS)
    except ValueError as error:  # not JSON, or not text
        raise ResvaeError(f"model: {folder / CONFIG} is not JSON: {error}") from error
    except FileNotFoundError as error:
        raise ResvaeError(f"model: {folder} lacks {CONFIG} or {WEIGHTS}") from error
    except SafetensorError as error:
        raise ResvaeError(f"model: {folder / WEIGHTS} is truncated or damaged: {error}") from error
    return _fill(build(description, str(folder / CONFIG)), state, str(folder))


def _fill(model: ImageModel, state: dict[str, Tensor], where: str) -> ImageModel:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ResvaeError(f"{where}: the weights do not fit the {type(model).__name__} that it describes") from error
    return model.eval()


def _download(source: str) -> Path:
    try:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ResvaeError(f"model: {source} needs the package huggingface_hub: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(source.removeprefix("hf://"), allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:
        raise ResvaeError(f"model: {source} could not be downloaded: {one_line(error)}") from error
