"""What the tests of runs and studies share: small configurations, commands, and reading what a run leaves behind."""

import csv
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

import resvae
from resvae.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
# Of processes that tests start: they import this package, and this module for its callbacks.
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{Path(resvae.__file__).parents[1]}:{Path(__file__).parent}"}
BASE = """
name: run
seed_everything: 0
data: {name: digits, batch_size: 64, validation: 60, limit: 192}
trainer: {max_epochs: 1, accelerator: cpu}
tracker: none
"""
VAE = f"""{BASE}
images: {{num: 8}}
model:
  vae:
    class_path: resvae.VAE
    init_args: {{depth: [1, 1], latent_dim: 4, image_shape: [1, 8, 8], widths: [8, 8], strides: [1, 2]}}
"""
CLASSIFIER = f"{BASE}\nmodel: {{classifier: {{depth: 8, image_shape: [1, 8, 8]}}, precision: fp32}}\n"


def command(folder: Path, options: str = "", config: str = VAE) -> list[str]:
    """``resvae fit`` of ``config``, which is written into the folder, as is the run: ``runs/run``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    return ["fit", "--config", str(folder / "config.yaml"), "--runs", str(folder / "runs"), *options.split()]


def train(model: Any, data: Any, *callbacks: Callback, ckpt_path: str | None = None, **options: Any) -> pl.Trainer:
    """A module trained on the CPU, for an epoch by default, which writes and prints nothing."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, **quiet, **options}
    trainer = pl.Trainer(accelerator="cpu", callbacks=list(callbacks), **options)
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return trainer


def perturbed(model: Any) -> Any:
    """In eval mode, with weights off their start: priors depend on the levels above, posteriors know the image."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def refused(capsys: Any, arguments: list[str], *parts: str) -> None:
    """The command ends with code 2 and one line of error, which holds all parts."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("resvae: error: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert [part for part in parts if part not in error] == [], error


def printed(capsys: Any, verb: str, run: Path, more: str = "") -> dict[str, float]:
    """The figures that ``resvae validate`` or ``test`` prints of a run's checkpoint, the best by default."""
    assert main(f"{verb} {run} --trainer.enable_progress_bar false {more}".split()) == 0
    return json.loads(re.findall(r"^(?:val|test): (.*)", capsys.readouterr().out, re.MULTILINE)[0])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def logged(run: Path, name: str) -> list[float]:
    """One figure of ``metrics.csv``, by epoch."""
    return [float(row[name]) for row in rows(run / "metrics.csv") if row[name]]


def names(run: Path) -> set[str]:
    """The figures that ``metrics.csv`` holds."""
    return {name for row in rows(run / "metrics.csv") for name, value in row.items() if value}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Two checkpoints, or parts of them, are equal bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict | list | tuple):
        left, right = (x if isinstance(x, dict) else dict(enumerate(x)) for x in (a, b))
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    else:
        assert a == b, where


class Stop(Callback):
    """Stops a run before an update, but not once it is resumed: by an error, Ctrl-C or a kill."""

    def __init__(self, step: int, how: str = "error", hook: str = "on_train_batch_start", rank: int | None = None):
        self.step, self.how, self.rank = step, how, rank
        setattr(self, hook, self.stop)

    def stop(self, trainer: Any, *_: Any) -> None:
        if self.rank not in (None, trainer.global_rank):
            return
        if trainer.global_step == self.step and trainer.ckpt_path is None:
            if self.how == "error":
                raise RuntimeError("the cat pulled the plug")
            os.kill(os.getpid(), {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM, "kill": signal.SIGKILL}[self.how])


class Noise(Callback):
    """Writes down, for each process and update, what its next random number would be."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_before_zero_grad(self, trainer: Any, *_: Any) -> None:
        state = torch.get_rng_state()
        with (self.folder / f"noise_{trainer.global_rank}").open("a") as file:
            file.write(f"{torch.rand(()).item():.9f}\n")
        torch.set_rng_state(state)


class NoNoise(Callback):
    """Latents are the means of their distributions, for the time of a run."""

    def setup(self, *_: Any, **__: Any) -> None:
        def mean(self: Any, sample_shape: Any = ()) -> torch.Tensor:
            return self.mean.expand(self._extended_shape(sample_shape))

        torch.distributions.Normal.rsample = mean


class Contiguous(Callback):
    """Weights lie as those that are shared out between processes do: sums have the same order."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.to(memory_format=torch.contiguous_format)


def callback(name: str, **arguments: Any) -> list[str]:
    """The option that adds a callback to a run."""
    return [f"--trainer.callbacks+={json.dumps({'class_path': name, 'init_args': arguments})}"]


def stop(step: int, **how: Any) -> list[str]:
    return callback("helpers_runs.Stop", step=step, **how)
