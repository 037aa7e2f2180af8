"""What the tests of studies share."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Any

import pytest
from matplotlib.figure import Figure

from resvae.cli import main
from resvae.studies import processes
from resvae.training.configuration import read_configuration

Start = Callable[..., int]


@pytest.fixture
def instead(monkeypatch) -> Callable[[Start], None]:
    """Puts a function of the arguments of ``resvae`` and the options of Popen in the place of a run's process."""

    one_at_a_time = RLock()

    def put(start: Start) -> None:
        class Process:
            def __init__(self, command: list[str], **options: Any):
                assert command[:3] == [sys.executable, "-m", "resvae"]
                with one_at_a_time:  # threads start them, and nothing that a test calls need be safe for that
                    self.code = start(command[3:], **options)

            def __enter__(self) -> "Process":
                return self

            def __exit__(self, *_: object) -> None: ...

            def wait(self) -> int:
                return self.code

        class Module:
            Popen, PIPE = Process, subprocess.PIPE

        monkeypatch.setattr(processes, "subprocess", Module)

    return put


@pytest.fixture
def in_process(instead) -> list[list[str]]:
    """Runs in this process, to save the time of importing; the arguments of each are kept."""
    calls: list[list[str]] = []

    def start(arguments: list[str], env: dict[str, str], **_: Any) -> int:
        calls.append(arguments)
        return main(arguments)

    instead(start)
    return calls


@pytest.fixture
def not_run(instead) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Runs that only say that they have ended; the configuration and the environment of each are kept."""
    calls: list[tuple[dict[str, Any], dict[str, str]]] = []

    def start(arguments: list[str], env: dict[str, str], stdout: Any, **_: Any) -> int:
        options = dict(itertools.pairwise(arguments))
        folder = Path(options["--runs"]) / options["--name"]
        assert {path.name for path in folder.iterdir()} == {"config.yaml"}
        assert options["--config"] == str(folder.absolute() / "config.yaml")
        calls.append((read_configuration(folder / "config.yaml").values.as_dict(), env))
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/last.ckpt").touch()
        summary = {
            "name": folder.name,
            "model": "VAE",
            "arguments": {},
            "parameters": 7,
            "seconds": 36.0,
            "epochs": 2,
            "steps": 4,
        }
        summary |= {"train_loss": 3.0, "val_loss": 3.0 + len(calls), "n": len(calls), "ended": "all 2 epochs done"}
        (folder / "summary.json").write_text(json.dumps(summary))
        if stdout:
            stdout.write("this run's own line")
        return 0

    instead(start)
    return calls


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    savefig = Figure.savefig

    def keep(self, *arguments, **options):
        figures.append(self)
        savefig(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures
