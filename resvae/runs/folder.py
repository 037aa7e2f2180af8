"""What lies in a run's folder, and where."""

import itertools
import json
from pathlib import Path
from typing import Any

from resvae.errors import ResvaeError

SHIPPED = Path(__file__).parents[1] / "weights"  # folders of weights that come with the package
CONFIG, LOCK, SUMMARY = "config.yaml", "lock", "summary.json"


def best_checkpoint(run: Path) -> Path:
    """The best checkpoint of a run's folder; where there is none yet, its last one, or that of its interruption."""
    for name in ("best.ckpt", "last.ckpt", "interrupted.ckpt"):
        if (run / "checkpoints" / name).is_file():
            return run / "checkpoints" / name
    raise ResvaeError(f"model: {run} holds neither config.json nor checkpoints/best.ckpt")


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that a stopped run resumes from: the newer of ``last.ckpt`` and ``interrupted.ckpt``."""
    saved = [run / "checkpoints" / f"{name}.ckpt" for name in ("last", "interrupted")]
    return max((path for path in saved if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)


def read_summary(run: Path) -> dict[str, Any]:
    """What a run's ``summary.json`` says so far; empty before its first epoch has ended."""
    try:
        found = json.loads((run / SUMMARY).read_text())
    except (OSError, ValueError):  # there is none, or half of one: the run was killed, or is writing it now
        return {}
    kinds = {**dict.fromkeys(("epochs", "steps", "seconds"), (int, float)), "ended": str}
    whole = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
    return found if whole else {}


def has_ended(run: Path) -> bool:
    """Whether nothing is left to train."""
    return read_summary(run).get("ended", "running") != "running"


def next_free(run: Path, configuration: str) -> Path:
    """The folder of a new run: this one, or the next number where a run is there already, so that nothing is lost.

    A folder that holds nothing but this very configuration was prepared for the run, and is free.
    """
    for path in itertools.chain([run], (run.with_name(f"{run.name}-{number}") for number in itertools.count(2))):
        if not path.exists():
            return path
        prepared = path.is_dir() and {file.name for file in path.iterdir()} - {LOCK} == {CONFIG}
        if prepared and (path / CONFIG).read_text() == configuration:
            return path
    raise AssertionError("there is always a next number")
