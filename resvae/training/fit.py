"""A run from its configuration: trained, validated, tested."""

import json
import logging
import math
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from pytorch_lightning.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    Timer,
)
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from resvae.devices import chosen
from resvae.environment import DEVICE
from resvae.errors import LostProcessError, ResvaeError, one_line
from resvae.files import place, remove_unfinished, write_text
from resvae.runs.folder import CONFIG, best_checkpoint, latest_checkpoint, next_free
from resvae.runs.lock import locked
from resvae.storage import read_checkpoint
from resvae.training.base import LitModel
from resvae.training.callbacks import FinalValidation, ImageGrids
from resvae.training.checkpoints import (
    AtomicCheckpointIO,
    EpochCheckpoint,
    InterruptedCheckpoint,
    RunCheckpoint,
    StepCheckpoint,
    lost_process,
)
from resvae.training.configuration import Configuration, read_configuration
from resvae.training.initial import start_from
from resvae.training.loggers import make_loggers, rows_before
from resvae.training.refusals import refuse, refuse_trainer
from resvae.training.resume import changes
from resvae.training.sharding import NAME as SHARDED
from resvae.training.sharding import FullyShardedStrategy
from resvae.training.subsets import UnitSubset
from resvae.training.summary import Summary

# What Lightning says of every run, and what no user of ours can act on.
CHATTER = (
    ".*does not have many workers.*",  # sets in memory need none
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's
    ".*was called without a model.*",  # an OnExceptionCheckpoint makes Lightning look for its file
    ".*is set, but there is no last checkpoint available.*",  # and not find it
    ".*is smaller than the logging interval.*",  # everything is logged once per epoch
    ".*LeafSpec.* is deprecated.*",
    ".*recommended to use .self.log.*sync_dist=True.*",  # in training the first process's figures are enough
    ".*callbacks used to create the checkpoint need to be provided.*",  # training's, when testing
)
Checkpoint = dict[str, Any]


def fit(configuration: Configuration) -> None:
    """Train a run, or resume it; print what it wrote.

    Raises:
        ResvaeError: something in the configuration does not fit together, or another process trains this run;
            nothing is written then.
    """
    values = configuration.values
    configuration.refuse_name()
    path, resumed = _checkpoint(configuration)
    if resumed is not None and "loops" not in resumed:
        raise ResvaeError(f"checkpoint: {path} was not written by fit; it cannot be resumed")
    refuse_trainer(values)
    read = configuration.take_shape()
    values.ckpt_path = None  # what is saved says how to train, not where this time began
    folder = configuration.folder
    # another run's checkpoint starts a run of its own
    new = path is None or path.parent.parent.resolve() != folder.resolve()
    if new:
        folder = next_free(folder, configuration.text())
        values.name = str(folder.relative_to(place(values.runs)))
    _quiet()
    changed = [] if new or resumed is None else _changes(configuration, resumed)
    _seed(values)
    parts = configuration.instantiate()
    model, data = parts.model, read or parts.data
    begun = []
    if values.init_from is not None and resumed is None:
        begun = [start_from(model.model, values.init_from, values.init_partial)]
    trainer = _trainer(values, parts, folder)
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    refuse(values, model, data, trainer, resumed)
    told = [*changed, *begun, *_chosen(model, data, trainer, values)]
    keep_rows = rows_before(folder / "metrics.csv", 0 if resumed is None else resumed["global_step"])
    writes = getattr(rank_zero_only, "rank", 0) == 0  # of several processes the first; the others write nothing
    prepared = new and folder.exists()
    if writes:
        try:
            folder.mkdir(parents=True, exist_ok=prepared or not new)
        except FileExistsError as error:
            raise ResvaeError(f"name: {folder} is there since a moment ago; choose another") from error
    with locked(folder) if writes else nullcontext():
        if writes:
            remove_unfinished(folder)
            write_text(folder / CONFIG, configuration.text())
            keep_rows()
        if writes and told:
            print("\n".join(told), flush=True)
        for logger in trainer.loggers[1:]:  # the first is the CSV, beside config.yaml
            logger.log_hyperparams(configuration.tree())
        try:
            trainer.fit(model, datamodule=data, ckpt_path=path)
        except RuntimeError as error:
            if trainer.world_size == 1 or not lost_process(error):
                raise
            raise LostProcessError(
                f"process {trainer.global_rank} cannot reach another of the {trainer.world_size} processes, which has "
                "ended; --ckpt_path last resumes from what was saved"
            ) from error
        if trainer.is_global_zero:
            for callback in callbacks:
                if isinstance(callback, Summary):
                    print(callback.text())
                if isinstance(callback, ImageGrids):
                    print("".join(f"wrote {picture}\n" for picture in callback.latest), end="")
            print(f"wrote {best_checkpoint(folder)}")


def evaluate(configuration: Configuration, split: Literal["val", "test"], verbose: bool = True) -> None:
    """Print the figures of a run's checkpoint, ``ckpt_path``, on its validation or test images.

    Raises:
        ResvaeError: no checkpoint, or data that do not fit the model.
    """
    path, resumed = _checkpoint(configuration)
    if resumed is None:
        raise ResvaeError("ckpt_path: it is missing; best, last or a file is needed (or a run's folder alone)")
    refuse_trainer(configuration.values)
    _quiet()
    _seed(configuration.values)
    parts = configuration.instantiate()
    parts.model.refuse_data(parts.data)
    trainer = _trainer(configuration.values, parts, None)
    run = trainer.test if split == "test" else trainer.validate
    run(parts.model, datamodule=parts.data, ckpt_path=path, verbose=verbose)
    metrics = trainer.callback_metrics
    figures = {name.removeprefix(f"{split}/"): round(float(value), 4) for name, value in metrics.items()}
    if trainer.is_global_zero:
        print(f"{split}: {json.dumps(figures)}")


def _changes(configuration: Configuration, resumed: Checkpoint) -> list[str]:
    """What a resume of a run changes, in a line each; ``ResvaeError`` for what cannot change."""
    path = configuration.folder / CONFIG
    if not path.is_file():
        return []
    before = read_configuration(path)
    if configuration.values.seed_everything is True:  # a random one: the run's own
        configuration.values.seed_everything = before.values.seed_everything
    progress = resumed["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    within_epoch = progress["current"]["ready"] > 0 and not progress["is_last_batch"]
    return [f"resumed with {change}" for change in changes(configuration, before, within_epoch)]


def _chosen(model: LitModel, data: Any, trainer: pl.Trainer, values: Namespace) -> list[str]:
    """Choose what the configuration leaves to be chosen; what was, in a line each."""
    device, time = trainer.strategy.root_device.type, values.trainer.max_time
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    if any(isinstance(callback, UnitSubset) for callback in callbacks):
        model.compiles = False  # each draw is another graph
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = epochs * data.num_train / data.batch_size / trainer.world_size
    if trainer.max_steps >= 0:
        steps = min(steps, trainer.max_steps * trainer.accumulate_grad_batches)
    seconds = None if time is None else Timer(time).time_remaining()
    if model.compiles is not False and isinstance(trainer.strategy, FullyShardedStrategy):
        model.compiles, compiles = False, f"not compiled: with {SHARDED} a block's weights are gathered as it begins"
    else:
        compiles = model.choose_compile(data.batch_size, steps, seconds, device)
    chosen = [model.fit_memory(data.batch_size, device), compiles]
    return [line for line in chosen if line]


def _checkpoint(configuration: Configuration) -> tuple[Path | None, Checkpoint | None]:
    """The checkpoint to start from and its contents; ``last`` and ``best`` mean the run's own."""
    named, folder = configuration.values.ckpt_path, configuration.folder
    if not named:
        return None, None
    path = place(named)
    if named in ("last", "best"):
        path = folder / "checkpoints" / f"{named}.ckpt"
        path = (named == "last" and latest_checkpoint(folder)) or path
    return path, read_checkpoint(path)


def _quiet() -> None:
    for text in CHATTER:
        warnings.filterwarnings("ignore", text)
    for logger in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA": known on a CPU
    torch.set_float32_matmul_precision("high")


def _seed(values: Namespace) -> None:
    """Seed all generators before anything draws; a random seed is chosen for ``true``, and written down."""
    if values.seed_everything is not False:
        given = None if values.seed_everything is True else values.seed_everything
        values.seed_everything = pl.seed_everything(given, workers=True, verbose=False)


def _trainer(values: Namespace, parts: Namespace, folder: Path | None) -> pl.Trainer:
    """The trainer; with a folder, with the loggers, checkpoints and progress of the run that is trained there."""
    options: dict[str, Any] = {**parts.trainer}
    if os.environ.get(DEVICE) and options["accelerator"] == "auto":
        device = chosen()
        options["accelerator"] = device.type
        options["devices"] = options["devices"] if device.index is None else [device.index]
    given = options["callbacks"] or []
    callbacks: list[Callback] = [*given] if isinstance(given, list) else [given]
    callbacks += [parts[name] for name in ("early_stopping", "images") if name in parts]
    own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    bar = options["enable_progress_bar"]
    options["enable_progress_bar"] = bar = (own_bar or sys.stdout.isatty()) if bar is None else bar
    if bar and sys.stdout.isatty() and not own_bar:
        callbacks.append(RichProgressBar())
    loggers = options["logger"] if isinstance(options["logger"], list) else [options["logger"]]
    options |= {
        "callbacks": callbacks,
        "plugins": [AtomicCheckpointIO()],
        # Lightning's own are left out; the run's are added below
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "logger": False
        if folder is None
        else [*make_loggers(folder, values.tracker), *(each for each in loggers if isinstance(each, Logger))],
    }
    try:
        trainer = pl.Trainer(**options)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ResvaeError(f"trainer: {one_line(error)}") from error
    if folder is not None:
        checkpoints, stopping = folder / "checkpoints", values.early_stopping
        common: dict[str, Any] = {"dirpath": checkpoints, "enable_version_counter": False, "save_top_k": 1}
        steps = StepCheckpoint(filename="last", every_n_train_steps=values.save_every_n_steps, **common)
        trainer.callbacks += [  # pyright: ignore[reportAttributeAccessIssue]
            LearningRateMonitor("epoch"),
            FinalValidation(),
            Summary(folder, stopping.monitor, stopping.mode),
            InterruptedCheckpoint(checkpoints, "interrupted"),
            RunCheckpoint(filename="best", monitor=stopping.monitor, mode=stopping.mode, **common),
            steps,
            EpochCheckpoint(steps, filename="last", every_n_epochs=1, save_on_train_epoch_end=True, **common),
        ]
    return trainer
