"""What the tests of studies share."""

import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from resvae.cli import main
from resvae.studies import runs


@pytest.fixture
def in_process(monkeypatch) -> list[list[str]]:
    """Runs in this process, to save the time of importing; the arguments of each are kept."""
    calls: list[list[str]] = []
    really_run = subprocess.run

    def run(command, **options):
        if command[0] == "git":  # a run asks for its commit
            return really_run(command, **options)
        assert command[:3] == [sys.executable, "-m", "resvae"]
        calls.append(command[3:])
        return subprocess.CompletedProcess(command, main(command[3:]))

    monkeypatch.setattr(runs.subprocess, "run", run)
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
