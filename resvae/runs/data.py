"""The data that a run was trained on."""

from pathlib import Path
from typing import Any

import yaml

from resvae.data import ImageSets
from resvae.errors import ResvaeError, one_line
from resvae.files import place
from resvae.models.pretrained import HUB, fetch
from resvae.runs.folder import CONFIG, SHIPPED, read_summary

# fields of a run's data that only its training needs
TRAINING = ("batch_size", "eval_batch_size", "crop_padding", "flip", "num_workers")
NAME_IT = "name the data set: --data cifar10"


def located(data: dict[str, Any], run: Path) -> dict[str, Any]:
    """A run's fields of ``data``; relative paths are seen from here or, failing that, from where it was started."""
    started = read_summary(run).get("started_in")
    found = {}
    for field in ("path", "root"):
        value = data.get(field)
        if value and started and not place(value).exists() and (Path(started) / place(value)).exists():
            found[field] = str(Path(started) / place(value))
    return data | found


def data_of(
    model: str,
    data: str | None = None,
    path: str | None = None,
    root: str | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> ImageSets:
    """The images to use a model on.

    Args:
        model: a run's folder, the name of shipped weights or a model on the Hub.
        data: the name of a data set; default: that of the run.
        path: of the folder or .npz, for the data sets of those names; default: that of the run.
        root: the folder of downloaded sets; default: that of the run, or ``data``.
        image_shape: ``(C, H, W)`` that the model takes; default: any.

    Raises:
        ResvaeError: neither a data set nor a run; images of another shape than the model's.
    """
    run = fetch(model) if model.startswith(HUB) else place(model)
    config = run / CONFIG
    if not config.is_file():
        config = SHIPPED / model / CONFIG
    places: dict[str, Any] = {k: v for k, v in {"path": path, "root": root}.items() if v is not None}
    if data is not None:
        square = image_shape[1] if image_shape and image_shape[1] == image_shape[2] else None
        found = ImageSets(data, image_size=square, **places)
    elif config.is_file():
        written = {key: value for key, value in _written(config).items() if key not in TRAINING}
        try:
            found = ImageSets(**written | places)
        except (TypeError, ValueError, AttributeError) as error:
            raise ResvaeError(f"data: {config} describes no data set ({one_line(error)}); {NAME_IT}") from error
    else:
        raise ResvaeError(f"data: {model} is not a run's folder; {NAME_IT}")
    if image_shape not in (None, found.image_shape):
        raise ResvaeError(f"data: images of shape {found.image_shape} do not fit the model, which takes {image_shape}")
    return found


def _written(config: Path) -> dict[str, Any]:
    """The fields of ``data`` in a run's configuration, with paths where the data are."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ResvaeError(f"data: {config} cannot be read ({one_line(error)}); {NAME_IT}") from error
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict):
        raise ResvaeError(f"data: {config} describes no data set; {NAME_IT}")
    return located(data, config.parent)
