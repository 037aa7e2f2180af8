"""A training run from a configuration: what ``resvae fit``, ``validate`` and ``test`` do, through LightningCLI."""

import itertools
import json
import logging
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_only

from resvae.data import ImageDataModule
from resvae.errors import ResvaeError, at_least, one_line
from resvae.runs.folder import best_checkpoint, latest_checkpoint
from resvae.storage import read_checkpoint
from resvae.training.callbacks import FinalValidation, ImageGrids
from resvae.training.checkpoints import AtomicCheckpointIO, InterruptedCheckpoint, RunCheckpoint, StepCheckpoint
from resvae.training.classifier import LitClassifier
from resvae.training.loggers import Tracker, drop_rows_after, make_loggers
from resvae.training.module import LitVAE
from resvae.training.subsets import UnitSubset
from resvae.training.summary import Summary

# What Lightning says of every run, and what no user of ours can act on.
CHATTER = (
    ".*LightningCLI's args parameter.*",  # the arguments do come from the command line, by way of `main`
    ".*does not have many workers.*",  # sets in memory need none
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's
    ".*was called without a model.*",  # an OnExceptionCheckpoint makes Lightning look for its file
    ".*is set, but there is no last checkpoint available.*",  # and not find it
    ".*is smaller than the logging interval.*",  # all is logged an epoch
    ".*LeafSpec.* is deprecated.*",
    ".*recommended to use .self.log.*sync_dist=True.*",  # in training the first process's figures will do
    ".*callbacks used to create the checkpoint need to be provided.*",  # training's, when testing
)


class RunCLI(LightningCLI):
    """LightningCLI with a run's folder: ``runs/<name>/`` holds config, metrics, checkpoints, pictures, summary."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit``, ``validate`` and ``test``, and what Lightning hides of each."""
        every = LightningCLI.subcommands()
        return {verb: every[verb] for verb in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What a run has beside model, data and trainer."""
        parser.add_argument("--name", type=str, default="run", help="the run's folder is <runs>/<name>")
        parser.add_argument("--runs", type=str, default="runs", help="the folder of all runs")
        parser.add_argument(
            "--tracker",
            type=Tracker,
            default="auto",
            help="beside metrics.csv: wandb (offline unless logged in), tensorboard, none; auto: wandb if installed",
        )
        parser.add_argument(
            "--save_every_n_steps", type=int, default=500, help="how often checkpoints/last.ckpt is written"
        )
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        defaults: dict[str, Any] = {"early_stopping.patience": 50, "early_stopping.verbose": False}
        if self._model_class is LitClassifier:
            defaults["early_stopping.monitor"] = "val/error"
            defaults["model.classifier"] = {"class_path": "resvae.ResNetClassifier"}
        else:
            parser.add_lightning_class_args(ImageGrids, "images")
            defaults |= {"early_stopping.monitor": "val/loss", "early_stopping.min_delta": 0.1}
            defaults["model.vae"] = {"class_path": "resvae.VAE"}
        parser.set_defaults(defaults)

    def _parse_ckpt_path(self) -> None:
        """``last`` and ``best`` mean the run's own; a checkpoint that cannot be read is refused here, in a line."""
        config = self.config[self.config.subcommand]
        self.folder = Path(config.runs) / config.name
        if config.ckpt_path in ("last", "best"):
            named = self.folder / "checkpoints" / f"{config.ckpt_path}.ckpt"
            config.ckpt_path = str((config.ckpt_path == "last" and latest_checkpoint(self.folder)) or named)
        self.resumed = read_checkpoint(config.ckpt_path) if config.ckpt_path else None
        if self.config.subcommand != "fit":
            if self.resumed is None:
                raise ResvaeError("ckpt_path: it is missing; best, last or a file is needed (or a run's folder alone)")
            return
        if self.resumed is not None and "loops" not in self.resumed:
            raise ResvaeError(f"checkpoint: {config.ckpt_path} was not written by fit; it cannot be resumed")
        # another run's checkpoint starts a run of its own
        self.new = self.resumed is None or Path(config.ckpt_path).parent.parent.resolve() != self.folder.resolve()
        if self.new:
            self.folder = _free(self.folder)
            config.name = self.folder.name

    def before_instantiate_classes(self) -> None:
        """Refuse what a trainer would take, and a run can do nothing with."""
        trainer = self.config[self.config.subcommand].trainer
        if trainer.precision not in (None, 32, "32", "32-true"):
            raise ResvaeError(f"trainer.precision: {trainer.precision} is not allowed; set model.precision")
        if self.config.subcommand != "fit":
            return
        for field in ("fast_dev_run", "barebones"):
            if value := trainer[field]:
                raise ResvaeError(f"trainer.{field}: {value} is not allowed; for a short run set trainer.max_steps")
        for field in ("max_epochs", "max_steps", "limit_train_batches", "limit_val_batches"):
            if (value := trainer[field]) is not None and value == 0:
                raise ResvaeError(f"trainer.{field}: {value} is not allowed; a run trains, and validates")
        every, epochs = trainer.check_val_every_n_epoch or 1, trainer.max_epochs
        if epochs is not None and 0 < epochs < every:
            raise ResvaeError(f"trainer.check_val_every_n_epoch: {every} is not allowed with {epochs} epochs; as many")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer with the run's loggers, checkpoints and progress."""
        config, fitting = self.config[self.config.subcommand], self.config.subcommand == "fit"
        if fitting:
            at_least(1, save_every_n_steps=config.save_every_n_steps)
        kwargs |= {
            "plugins": [AtomicCheckpointIO()],
            "enable_checkpointing": False,  # Lightning's own; the run's are added below
            "logger": make_loggers(self.folder, config.tracker) if fitting else False,
        }
        trainer = super().instantiate_trainer(**kwargs)
        if fitting:
            checkpoints, stopping = self.folder / "checkpoints", config.early_stopping
            common: dict[str, Any] = {"dirpath": checkpoints, "enable_version_counter": False, "save_top_k": 1}
            trainer.callbacks += [  # pyright: ignore[reportAttributeAccessIssue]
                LearningRateMonitor("epoch"),
                FinalValidation(),
                Summary(self.folder),
                InterruptedCheckpoint(checkpoints, "interrupted"),
                RunCheckpoint(filename="best", monitor=stopping.monitor, mode=stopping.mode, **common),
                StepCheckpoint(filename="last", every_n_train_steps=config.save_every_n_steps, **common),
                RunCheckpoint(filename="last", every_n_epochs=1, save_on_train_epoch_end=True, **common),
            ]
        return trainer

    def before_fit(self) -> None:
        """Refuse what does not fit together while nothing is written yet; then make the run's folder."""
        data, model = self.datamodule, self.model
        model.refuse_data(data)
        stopping, modes = self.config.fit.early_stopping, model.monitored()
        if (mode := modes.get(stopping.monitor)) is None:
            raise ResvaeError(f"early_stopping.monitor: {stopping.monitor} is not logged; one of {', '.join(modes)}")
        if stopping.mode != mode:
            raise ResvaeError(f"early_stopping.mode: {stopping.mode} is not allowed with {stopping.monitor}; {mode}")
        try:
            model.optimizer(model.parameters())
        except ValueError as error:
            raise ResvaeError(f"model.optimizer: {one_line(error)}") from error
        timed = self.config.fit.trainer.max_time is not None
        if not timed and self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            model.schedule.at(math.inf)
        for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, UnitSubset):
                callback.drawn(model, 0)
        if self.resumed is not None:
            model.refuse_other(self.resumed)
        self.config.fit.ckpt_path = None  # what is saved says how to train, not where this time began
        if not _is_first():  # the others write nothing
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=not self.new)
        except FileExistsError as error:
            raise ResvaeError(f"name: {self.folder} is there since a moment ago; choose another") from error
        if self.resumed is not None:
            drop_rows_after(self.folder / "metrics.csv", self.resumed["global_step"])

    def after_fit(self) -> None:
        """Tell how it ended and what was written."""
        if not self.trainer.is_global_zero:
            return
        for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, Summary):
                print(callback.text())
            if isinstance(callback, ImageGrids):
                for path in callback.latest:
                    print(f"wrote {path}")
        print(f"wrote {best_checkpoint(self.folder)}")

    def before_validate(self) -> None:
        """Refuse data that do not fit the model."""
        self.model.refuse_data(self.datamodule)

    before_test = before_validate

    def after_test(self) -> None:
        """The figures again, in a line a person reads."""
        split = "test" if self.config.subcommand == "test" else "val"
        metrics = self.trainer.callback_metrics
        figures = {name.removeprefix(f"{split}/"): round(float(value), 4) for name, value in metrics.items()}
        print(f"{split}: {json.dumps(figures)}")

    after_validate = after_test


def run(arguments: list[str]) -> None:
    """Run ``fit``, ``validate`` or ``test`` with command-line arguments, the verb first.

    ``validate runs/x`` and ``test runs/x`` are short for that run's configuration and best checkpoint.
    Every field is read from the environment too: ``RESVAE_FIT__MODEL__VAE__...``; see ``resvae fit --help``.
    """
    verb, *rest = arguments
    if verb != "fit" and rest and not rest[0].startswith("-"):
        folder = Path(rest[0])
        if not (folder / "config.yaml").is_file():
            raise ResvaeError(f"{verb}: {folder} is not a run's folder: it holds no config.yaml")
        rest = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(best_checkpoint(folder)), *rest[1:]]
    for text in CHATTER:
        warnings.filterwarnings("ignore", text)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA": known on a CPU
    torch.set_float32_matmul_precision("high")
    rest = with_environment(verb, rest)
    RunCLI(
        LitClassifier if _names_classifier(rest) else LitVAE,
        ImageDataModule,
        seed_everything_default=0,
        save_config_callback=SaveConfigCallback if verb == "fit" else None,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "max_epochs": 1000,
            "log_every_n_steps": 50,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "enable_progress_bar": sys.stdout.isatty(),
            "callbacks": [RichProgressBar()] if sys.stdout.isatty() else [],
        },
        parser_kwargs={"exit_on_error": False},
        auto_configure_optimizers=False,
        args=[verb, *rest],
    )


def _names_classifier(arguments: list[str]) -> bool:
    """Whether the arguments or the configuration files among them speak of ``model.classifier``."""
    for argument, following in itertools.pairwise([*arguments, ""]):
        option, _, value = argument.partition("=")
        if option == "--model.classifier" or option.startswith("--model.classifier."):
            return True
        if option in ("-c", "--config"):
            try:
                content = yaml.safe_load(Path(value or following).read_text())
            except (OSError, ValueError, yaml.YAMLError):  # the parser will say it better
                continue
            model = content.get("model") if isinstance(content, dict) else None
            if isinstance(model, dict) and "classifier" in model:
                return True
    return False


def with_environment(verb: str, arguments: list[str]) -> list[str]:
    """The arguments with the fields that the environment sets: over the configuration files, under the rest.

    The parser's own reading of the environment would let the files win.
    """
    prefix = f"RESVAE_{verb.upper()}__"
    found = {name.removeprefix(prefix): value for name, value in os.environ.items() if name.startswith(prefix)}
    fields = [f"--{name.lower().replace('__', '.')}={found[name]}" for name in sorted(found)]
    files = [i for i, argument in enumerate(arguments) if argument.split("=")[0] in ("-c", "--config")]
    start = files[-1] + 1 + ("=" not in arguments[files[-1]]) if files else 0
    return [*arguments[:start], *fields, *arguments[start:]]


def _is_first() -> bool:
    """Whether this process is the one that writes; before training is set up, only the environment tells."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _free(folder: Path) -> Path:
    """The folder, or with the next number where a run is there already: what is saved is never written over."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not path.exists())
