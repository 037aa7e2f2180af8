"""Models as folders of safetensors and JSON, on this machine and on the Hugging Face Hub."""

import inspect
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from resvae.errors import ResvaeError, one_line
from resvae.files import place, write_atomically
from resvae.models.base import ImageModel
from resvae.models.registry import MODELS, registered
from resvae.networks import BlockConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB = "hf://"
FETCHED = [CONFIG, WEIGHTS, "config.yaml"]  # of a model on the Hub: the last says which data it was trained on


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


def load_folder(folder: Path) -> ImageModel:
    """A model in eval mode from a folder that ``save`` wrote."""
    try:
        description = json.loads((folder / CONFIG).read_text())
        state = load_file(folder / WEIGHTS)
    except ValueError as error:  # not JSON, or not text
        raise ResvaeError(f"model: {folder / CONFIG} is not JSON: {error}") from error
    except FileNotFoundError as error:
        raise ResvaeError(f"model: {folder} lacks {CONFIG} or {WEIGHTS}") from error
    except SafetensorError as error:
        raise ResvaeError(f"model: {folder / WEIGHTS} is truncated or damaged: {error}") from error
    return fill(build(description, str(folder / CONFIG)), state, str(folder))


def fill(model: ImageModel, state: dict[str, Tensor], where: str) -> ImageModel:
    """The model with these weights, in eval mode; ``where`` they are from, for messages."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ResvaeError(f"{where}: the weights do not fit the {type(model).__name__} that it describes") from error
    return model.eval()


def fetch(source: str, revision: str | None = None) -> Path:
    """The folder of a model on the Hub, ``hf://user/model`` or ``hf://user/model@revision``, downloaded once.

    Raises:
        ResvaeError: it is not there; the package ``huggingface_hub`` is missing.
    """
    name, _, given = source.removeprefix(HUB).partition("@")
    try:
        return Path(_hub().snapshot_download(name, revision=revision or given or None, allow_patterns=FETCHED))
    except ResvaeError:
        raise
    except Exception as error:  # of the network, of the Hub, of its cache
        raise ResvaeError(f"model: {source} could not be downloaded: {one_line(error)}") from error


def push(folder: Path, name: str, private: bool | None = None, revision: str | None = None) -> str:
    """Upload a folder as the model ``user/model`` of the Hub; returns its address.

    Raises:
        ResvaeError: you are not logged in or may not write there; the package ``huggingface_hub`` is missing.
    """
    hub, name = _hub(), name.removeprefix(HUB)
    try:
        api = hub.HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message="Upload by resvae")
    except Exception as error:
        raise ResvaeError(f"model: {name} could not be uploaded: {one_line(error)}") from error
    return str(address)


def push_model(model: ImageModel, name: str, private: bool | None = None, revision: str | None = None) -> str:
    """``save`` a model and ``push`` it, with a card that says how to use it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = save(model, temporary)
        data = _hub().ModelCardData(library_name="resvae", tags=["resvae", model.field])
        use = f"    from resvae import load\n\n    model = load('{HUB}{name.removeprefix(HUB)}')\n"
        (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n# {type(model).__name__}\n\n{use}")
        return push(folder, name, private, revision)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ResvaeError("model: the Hub needs the package huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub
