"""Where a run logs: CSV always; W&B for who is logged in, and W&B or TensorBoard where they are asked for.

Lightning's internals used here: ``ExperimentWriter._check_log_dir_exists`` and the loggers' ``_experiment``.
"""

import csv
import importlib.util
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment

from resvae.errors import ResvaeError, one_line
from resvae.files import write_atomically, write_text

WANDB_ID = "wandb_id"  # in the run's folder
Tracker = Literal["auto", "wandb", "tensorboard", "none"]


class KeepingWriter(ExperimentWriter):
    """Adds to the metrics that an interrupted run left; Lightning's own class would delete them."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


class RunCSVLogger(CSVLogger):
    """Writes ``metrics.csv`` in the run's folder itself."""

    def __init__(self, folder: Path):
        super().__init__(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, made when it is first used."""
        if self._experiment is None:
            self._experiment = KeepingWriter(log_dir=self.log_dir)
        return self._experiment


def rows_before(metrics: Path, step: int) -> Callable[[], None]:
    """What removes the rows that a run which resumes at update ``step`` will write again; they are read now.

    Raises:
        ResvaeError: the file is damaged.
    """
    if not metrics.is_file():
        return lambda: None
    try:
        text = metrics.read_text(encoding="utf-8")
        # a killed process may have left half a line
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(), restkey="?", strict=True)
        keys = list(reader.fieldnames or [])
        rows = [row for row in reader if int(row["step"]) < step]
        if any("?" in row for row in rows):
            raise ValueError("a row is longer than the first")
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        told = f"{metrics} is damaged ({one_line(error)}); move it away to go on without its figures"
        raise ResvaeError(f"metrics: {told}") from error

    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(rows)

    return lambda: write_atomically(metrics, write)


def make_loggers(folder: Path, tracker: Tracker) -> list[Logger]:
    """The run's loggers. With ``auto``, W&B if you are logged in or ``WANDB_MODE`` is set; ``wandb`` is offline else.

    W&B's own variables say where a run goes: WANDB_PROJECT (default: resvae), WANDB_ENTITY, WANDB_TAGS, WANDB_NOTES.
    A resumed run is the same W&B run. With WANDB_LOG_MODEL=true its best checkpoint is uploaded at the end.

    Raises:
        ResvaeError: a tracker that was named is not installed.
    """
    loggers: list[Logger] = [RunCSVLogger(folder)]
    if tracker == "auto":
        tracker = "wandb" if _installed("wandb") and ("WANDB_MODE" in os.environ or _logged_in()) else "none"
    if tracker == "none":
        return loggers
    if not _installed(tracker):
        raise ResvaeError(f"tracker: {tracker} is not installed: pip install {tracker}")
    if tracker == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        return [*loggers, TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)]
    return [*loggers, _wandb(folder)]


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # not just a folder of that name, which W&B leaves behind


def _wandb(folder: Path) -> Logger:
    from pytorch_lightning.loggers import WandbLogger

    kept = folder / WANDB_ID
    name = os.environ.get("WANDB_RUN_ID") or (kept.read_text() if kept.is_file() else uuid.uuid4().hex[:8])

    class RunWandbLogger(WandbLogger):
        """Ends its W&B run with the training, so that the next training in this process starts another."""

        @property
        @rank_zero_experiment
        def experiment(self) -> Any:
            """The W&B run; its identity is written down, so that a resumed run goes on with it."""
            if self._experiment is None:
                write_text(kept, name)
            return super().experiment

        def finalize(self, status: str) -> None:
            super().finalize(status)
            if self._experiment is not None:
                best = folder / "checkpoints/best.ckpt"
                if os.environ.get("WANDB_LOG_MODEL", "").lower() in ("true", "end", "1") and best.is_file():
                    self._experiment.log_artifact(str(best), f"{name}-best", "model")
                self._experiment.finish()

    os.environ.setdefault("WANDB_SILENT", "true")
    return RunWandbLogger(
        name=folder.name,
        save_dir=str(folder),
        project=os.environ.get("WANDB_PROJECT", "resvae"),
        entity=os.environ.get("WANDB_ENTITY"),
        id=name,
        resume="allow",
        offline="WANDB_MODE" not in os.environ and not _logged_in(),
    )


def _logged_in() -> bool:
    """Whether W&B finds a key in the environment or in .netrc; its own function for this differs between versions."""
    from requests.utils import get_netrc_auth  # a dependency of W&B

    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(url))
