"""Where a run logs: CSV always; W&B and TensorBoard where they are wanted and installed.

Lightning's internals used here: ``ExperimentWriter._check_log_dir_exists`` and the loggers' ``_experiment``.
"""

import csv
import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment

from resvae.errors import ResvaeError
from resvae.files import write_atomically

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


def drop_rows_after(metrics: Path, step: int) -> None:
    """Remove the rows that a run which resumes at update ``step`` will write again."""
    if not metrics.is_file():
        return
    text = metrics.read_text()
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # a killed process may have left half a line
    keys, rows = list(reader.fieldnames or []), list(reader)

    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) < step)

    write_atomically(metrics, write)


def make_loggers(folder: Path, tracker: Tracker) -> list[Logger]:
    """The run's loggers. With ``auto``, W&B where it is installed, and offline if the user is not logged in.

    Raises:
        ResvaeError: a tracker that was named is not installed.
    """
    loggers: list[Logger] = [RunCSVLogger(folder)]
    spec = importlib.util.find_spec(tracker if tracker != "auto" else "wandb") if tracker != "none" else None
    installed = spec is not None and spec.origin is not None  # not just a folder of that name, which W&B leaves behind
    if tracker in ("wandb", "tensorboard") and not installed:
        raise ResvaeError(f"tracker: {tracker} is not installed: pip install 'resvae[{tracker}]'")
    if tracker == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    elif installed:
        loggers.append(_wandb(folder))
    return loggers


def _wandb(folder: Path) -> Logger:
    from pytorch_lightning.loggers import WandbLogger

    class RunWandbLogger(WandbLogger):
        """Ends its W&B run with the training, so that the next training in this process starts another."""

        def finalize(self, status: str) -> None:
            super().finalize(status)
            if self._experiment is not None:
                self._experiment.finish()

    os.environ.setdefault("WANDB_SILENT", "true")
    offline = "WANDB_MODE" not in os.environ and not _logged_in()
    return RunWandbLogger(name=folder.name, save_dir=str(folder), project="resvae", offline=offline)


def _logged_in() -> bool:
    """Whether W&B finds a key in the environment or in .netrc; its own function for this differs between versions."""
    from requests.utils import get_netrc_auth  # a dependency of W&B

    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(url))
