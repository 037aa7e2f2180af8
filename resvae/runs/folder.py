"""What lies in a run's folder, and where."""

from pathlib import Path

from resvae.errors import ResvaeError

SHIPPED = Path(__file__).parents[1] / "weights"  # folders of weights that come with the package


def best_checkpoint(run: Path) -> Path:
    """The best checkpoint of a run's folder, or its last where there is no best yet, or else its interruption's."""
    for name in ("best.ckpt", "last.ckpt", "interrupted.ckpt"):
        if (run / "checkpoints" / name).is_file():
            return run / "checkpoints" / name
    raise ResvaeError(f"model: {run} holds neither config.json nor checkpoints/best.ckpt")


def latest_checkpoint(run: Path) -> Path | None:
    """What a run that was stopped goes on from: the newest of ``last.ckpt`` and ``interrupted.ckpt``."""
    saved = [run / "checkpoints" / f"{name}.ckpt" for name in ("last", "interrupted")]
    return max((path for path in saved if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
