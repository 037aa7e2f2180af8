"""Any configuration that parses trains, resumes, samples and reloads, or is refused in one line that leaves nothing."""

import contextlib
import io
import json
import re
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import checkpoint, files, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resvae import load, save
from resvae.cli import main
from resvae.probability.likelihoods import LIKELIHOODS

COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
QUICK = settings(max_examples=5, derandomize=True, **COMMON)
LONG = settings(max_examples=300, **COMMON)

# Values by field. Some are refused by themselves, some beside others, and most are fine.
BLOCKS = {"kind": ["basic"], "norm": ["group"], "merge": ["highway", "product"], "upsample": ["nearest"], "ratio": [0]}
MODELS: dict[str, dict[str, list[Any]]] = {
    "VAE": {"depth": [10, [1, 2], [2, 0]], "latent_dim": [1, 4, 0], "patch": [2, 3]},
    "HierarchicalVAE": {
        "levels": [1, 2, [1, 1], [0, 0]],
        "latent_channels": [1, 0],
        "stochastic_depth": [1, 7],
        "patch": [2],
    },
}
OPTIMIZERS: dict[str, dict[str, list[Any]]] = {
    "torch.optim.AdamW": {"lr": [1e-3, -1.0], "weight_decay": [0.1]},
    "torch.optim.SGD": {"lr": [1e-6], "momentum": [0.9, -0.5]},
    "resvae.training.muon.Muon": {"lr": [1e-3, -1.0], "adamw_lr": [1e-3], "momentum": [0.5, 1.5]},
}
FIELDS: dict[str, list[Any]] = {
    "data.batch_size": [3, 16, 200, 0, "many"],
    "data.validation": [8, 0.25, 0, 5000],
    "data.flip": [True],
    "data.crop_padding": [1, -1],
    "data.image_size": [16, 7],
    "data.limit": [48, 5, 0],
    "model.schedule.kind": ["constant", "cosine", "plateau", "steps", "sawtooth"],
    "model.schedule.warmup_steps": [1, -1],
    "model.schedule.milestones": [[1]],
    "model.kl.warmup_steps": [2, -2],
    "model.kl.end": [0.5, -1.0],
    "model.free_bits": [1.0, -1.0],
    "model.clip_norm": [1.0, 0.0],
    "model.ema_decay": [0.0, 0.9, 1.0],
    "model.precision": ["bf16", "fp32", "fp8"],
    "model.memory_budget": ["1MiB", "1GiB", "much"],
    "trainer.accumulate_grad_batches": [2, 0],
    "trainer.val_check_interval": [1, 0.5, 1000],
    "trainer.check_val_every_n_epoch": [1, 2, 0],
    "trainer.limit_val_batches": [0, 1],
    "trainer.limit_train_batches": [1, 2],
    "trainer.gradient_clip_val": [1.0],
    "trainer.log_every_n_steps": [1, 0],
    "early_stopping.patience": [1, -1],
    "early_stopping.monitor": ["val/kl", "val/bits_per_dim", "val/luck"],
    "images.every_n_epochs": [1, 0],
    "images.num": [2, 0],
    "save_every_n_steps": [1, 0],
    "name": ["a/b", "with space", "..", "été"],
    "seed_everything": [7, 2**32 - 1, 2**32],
}


@st.composite
def configurations(draw: Any) -> dict[str, Any]:
    """Options of ``resvae fit`` by name: a small model, an optimiser, and a few of the fields."""

    def some(values: dict[str, list[Any]], most: int) -> dict[str, Any]:
        chosen = draw(st.lists(st.sampled_from(sorted(values)), max_size=most, unique=True))
        # The first value of each is fine; the others are drawn less often.
        return {name: draw(st.sampled_from([values[name][0]] * 3 + values[name])) for name in chosen}

    kind = draw(st.sampled_from(sorted(MODELS)))
    likelihood = draw(st.sampled_from([*LIKELIHOODS, {"name": "subpixel_mixture", "width": 4}]))
    arguments = {"depth": [1, 1], "widths": [4, 8], "strides": [1, 2], "likelihood": likelihood}
    arguments |= some(MODELS[kind], 2)
    arguments |= {"block": blocks} if (blocks := some(BLOCKS, 2)) else {}
    optimizer = draw(st.sampled_from(sorted(OPTIMIZERS)))
    return {
        "model.vae": {"class_path": f"resvae.{kind}", "init_args": arguments},
        "model.optimizer": {"class_path": optimizer, "init_args": some(OPTIMIZERS[optimizer], 2)},
        **some(FIELDS, 4),
    }


def run(*arguments: str) -> tuple[int, str]:
    """The exit code of a command and what it wrote to stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd settings; some end in an error all the same
        return main(list(arguments)), errors.getvalue()


def outcome(options: dict[str, Any], folder: Path) -> str:
    """Train two updates, resume for a third, sample, and compare; ``worked``, or ``refused``."""
    fixed = {"data.name": "digits", "trainer.max_steps": 2, "tracker": "none", "model.compile": False}
    limits = {"data.limit": 48, "trainer.limit_val_batches": 1, "data.validation": 8}
    given = limits | fixed | options
    fit = ["fit", "--runs", str(folder), "--trainer.accelerator", "cpu"]
    fit += [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in given.items()]
    code, error = run(*fit)
    if code:
        assert code == 2, error
        assert re.fullmatch(r"resvae: error: [^\n]*\n", error), error
        assert files(folder) == set()
        return "refused"
    (written,) = folder.rglob("summary.json")
    place = written.parent
    assert read(written)["steps"] == 2
    resumed, error = run(*fit, "--ckpt_path", "last", "--trainer.max_steps", "3")
    assert resumed == 0, error
    assert read(written)["steps"] == 3
    weights = checkpoint(place)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())
    last = place / "checkpoints/last.ckpt"
    save(load(last), folder / "saved")
    for model, out in ((last, "a.npz"), (folder / "saved", "b.npz")):
        code, error = run("sample", str(model), "--num", "2", "--out", str(folder / out))
        assert code == 0, error
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()
    return "worked"


def tried(options: dict[str, Any]) -> str:
    """The outcome in a folder of its own."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return outcome(options, Path(folder) / "runs")


@QUICK
@given(configurations())
def test_a_configuration_works_or_is_refused(options):
    assert tried(options) in ("worked", "refused")


@pytest.mark.slow
def test_many_configurations_work_or_are_refused():
    found: Counter[str] = Counter()

    @LONG
    @given(configurations())
    def try_one(options: Any) -> None:
        found[tried(options)] += 1

    try_one()
    print(dict(found))
    assert found["worked"] > found["refused"] / 3
