"""The command line: bad input is one line and code 2, with nothing half-written; the verbs write what they say."""

import csv
import functools
import json
import os
import pickle
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resvae
from resvae.cli import main
from resvae.runs.data import data_of
from resvae.training.configuration import parse

CONFIG = """
name: run
seed_everything: 0
data: {name: digits, batch_size: 64, validation: 60, limit: 192}
model:
  vae:
    class_path: resvae.VAE
    init_args: {depth: [1, 1], latent_dim: 4, image_shape: [1, 8, 8], widths: [8, 8], strides: [1, 2]}
trainer: {max_epochs: 1, accelerator: cpu}
images: {num: 8}
tracker: none
"""

MERGE = """
from torch import Tensor

def mean(x: Tensor, f: Tensor) -> Tensor:
    return (x + f) / 2
"""


class Code:
    """A pickle that leaves a file when it runs."""

    def __reduce__(self):
        return Path.touch, (Path("it_ran"),)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A trained run, and files to go wrong with."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.yaml").write_text(CONFIG)
    assert main(["fit", "--config", str(folder / "config.yaml"), "--runs", str(folder / "runs")]) == 0
    run = folder / "runs/run"
    best = (run / "checkpoints/best.ckpt").read_bytes()
    (folder / "truncated.ckpt").write_bytes(best[: len(best) // 2])
    torch.save({"resvae": Code(), "state_dict": {}}, folder / "code.ckpt")
    (folder / "plain_code.ckpt").write_bytes(pickle.dumps(Code()))
    (folder / "empty").mkdir()
    np.savez(folder / "floats.npz", images=np.zeros((20, 8, 8), np.float32))
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    (folder / "pictures").mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"pictures/{i:02d}.png")
    whole = (folder / "pictures/07.png").read_bytes()
    (folder / "pictures/07.png").write_bytes(whole[: len(whole) // 2])
    (folder / "unknown_key.yaml").write_text(CONFIG + "colour: red\n")
    (folder / "number.yaml").write_text("model: 3\n")
    (folder / "no.yaml").write_text("data: [1\n model: 2\n")
    return run


@pytest.fixture
def there(run, monkeypatch) -> Path:
    """The folder of the run, as the present one."""
    monkeypatch.chdir(run.parent.parent)
    return run.parent.parent


FIT = ["fit", "--config", "config.yaml", "--runs", "new"]
FOLDER = [*FIT, "--data.name", "folder", "--data.path"]
RUN = "runs/run"
BAD = {
    "unknown key": ([*FIT, "--model.vae.colour", "red"], ["model.vae", "colour"]),
    "unknown key in the yaml": (["fit", "--config", "unknown_key.yaml", "--runs", "new"], ["colour"]),
    "unknown option of the trainer": ([*FIT, "--trainer.epochs", "3"], ["--trainer.epochs"]),
    "wrong type": ([*FIT, "--trainer.max_epochs", "many"], ["trainer.max_epochs", "many"]),
    "no yaml": (["fit", "--config", "no.yaml", "--runs", "new"], ["config"]),
    "config that is not there": (["fit", "--config", "none.yaml"], ["none.yaml"]),
    "depth": ([*FIT, "--model.vae.depth", "29"], ["depth: 29", "28 and 34"]),
    "unknown model": ([*FIT, "--model.vae", "resvae.Nope"], ["resvae.Nope"]),
    "unknown likelihood": ([*FIT, "--model.vae.likelihood", "foo"], ["likelihood: 'foo'", "bernoulli"]),
    "image size": ([*FIT, "--model.vae.image_shape", "[1, 9, 9]"], ["9x9", "8 and 10"]),
    "channels": ([*FIT, "--model.vae.image_shape", "[3, 8, 8]"], ["image_shape: (3, 8, 8)", "(1, 8, 8)"]),
    "folder without images": ([*FOLDER, "empty"], ["empty holds no images"]),
    "corrupt image": ([*FOLDER, "pictures"], ["pictures/07.png", "on_corrupt"]),
    "floats": ([*FIT, "--data.name", "npz", "--data.path", "floats.npz"], ["float32", "uint8"]),
    "batch size": ([*FIT, "--data.batch_size", "0"], ["data.batch_size: 0"]),
    "monitor": ([*FIT, "--early_stopping.monitor", "val/los"], ["early_stopping.monitor: val/los", "val/loss"]),
    "mode": (
        [*FIT, "--early_stopping.monitor", "val/elbo"],
        ["early_stopping.mode: min is not allowed with val/elbo; max"],
    ),
    "no validation": ([*FIT, "--trainer.limit_val_batches", "0"], ["trainer.limit_val_batches: 0"]),
    "no training": ([*FIT, "--trainer.max_epochs", "0"], ["trainer.max_epochs: 0"]),
    "fast_dev_run": ([*FIT, "--trainer.fast_dev_run", "true"], ["trainer.fast_dev_run", "trainer.max_steps"]),
    "precision of the trainer": ([*FIT, "--trainer.precision", "bf16-true"], ["trainer.precision", "model.precision"]),
    "learning rate": (
        [*FIT, "--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "-1"],
        ["model.optimizer: ", "-1.0"],
    ),
    "model that is a number": (["fit", "--config", "number.yaml", "--runs", "new"], ["model"]),
    "test of new weights": (["test", "--config", "config.yaml"], ["ckpt_path: it is missing", "best"]),
    "ema": ([*FIT, "--model.ema_decay", "2"], ["ema_decay: 2"]),
    "how often to save": ([*FIT, "--save_every_n_steps", "0"], ["save_every_n_steps: 0"]),
    "cosine without an end": ([*FIT, "--trainer.max_epochs", "-1"], ["schedule.kind", "trainer.max_epochs"]),
    "resume from nothing": ([*FIT, "--ckpt_path", "last"], ["new/run/checkpoints/last.ckpt does not exist"]),
    "resume from half a file": ([*FIT, "--ckpt_path", "truncated.ckpt"], ["truncated.ckpt is truncated"]),
    "resume from code": ([*FIT, "--ckpt_path", "code.ckpt"], ["code.ckpt holds code"]),
    "resume another model": (
        [*FIT, "--model.vae.latent_dim", "5", "--ckpt_path", f"{RUN}/checkpoints/last.ckpt"],
        ["latent_dim=4", "latent_dim=5"],
    ),
    "test another model": (
        [
            "test",
            "--config",
            "config.yaml",
            "--model.vae.latent_dim",
            "5",
            "--ckpt_path",
            f"{RUN}/checkpoints/best.ckpt",
        ],
        ["latent_dim=4", "latent_dim=5"],
    ),
    "truncated checkpoint": (["sample", "truncated.ckpt"], ["truncated.ckpt is truncated"]),
    "code in a checkpoint": (["sample", "code.ckpt"], ["code.ckpt holds code"]),
    "code in a pickle": (["sample", "plain_code.ckpt"], ["plain_code.ckpt"]),
    "no model there": (["sample", "runs/none"], ["runs/none"]),
    "no model told": (["sample"], ["model"]),
    "none to sample": (["sample", RUN, "--num", "0"], ["num: 0"]),
    "none to reconstruct": (["reconstruct", RUN, "--num", "0"], ["num: 0"]),
    "none to interpolate": (["interpolate", RUN, "--num", "0"], ["num: 0"]),
    "none to evaluate": (["evaluate", RUN, "--num", "0"], ["num: 0"]),
    "fewer than none to interpolate": (["interpolate", RUN, "--num", "-1"], ["num: -1"]),
    "number of images": (["sample", RUN, "--num", "many"], ["num", "many"]),
    "temperature": (["sample", RUN, "--temperature", "-1"], ["temperature: -1"]),
    "steps": (["interpolate", RUN, "--steps", "1"], ["steps: 1"]),
    "samples of the bound": (["evaluate", RUN, "--num_samples", "0"], ["num_samples: 0"]),
    "out of a sample": (["sample", RUN, "--out", "nowhere/x.png"], ["nowhere does not exist"]),
    "out of a reconstruction": (["reconstruct", RUN, "--out", "nowhere/x.png"], ["nowhere does not exist"]),
    "out of an interpolation": (["interpolate", RUN, "--out", "nowhere/x.png"], ["nowhere does not exist"]),
    "out of an evaluation": (["evaluate", RUN, "--out", "nowhere/x.json"], ["nowhere does not exist"]),
    "out that is no picture": (["sample", RUN, "--out", "x.foo"], ["x.foo", ".png"]),
    "unknown data": (["reconstruct", RUN, "--data", "cifar99"], ["cifar99", "digits"]),
    "unknown option": (["sample", RUN, "--nums", "3"], ["--nums"]),
    "unknown verb": (["train"], ["verb: train", "fit, validate, test"]),
    "no run to test": (["test", "runs/none"], ["runs/none is not a run's folder"]),
    "sweep of no numbers": (["sweep", "--config", "config.yaml", "--depths", "a,b"], ["depths: 'a,b'"]),
    "sweep of nothing": (["sweep"], ["sweep: --config is missing"]),
    "sweep without its config": (["sweep", "--config", "none.yaml", "--depths", "10"], ["none.yaml"]),
}


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(("arguments", "told"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_nothing_is_half_written(there, capsys, arguments, told):
    before = files(there)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("resvae: error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    for part in told:
        assert part in error
    assert files(there) == before


def test_a_model_that_json_cannot_hold_trains_all_the_same(there, tmp_path, capsys, monkeypatch):
    (tmp_path / "merges_of_mine.py").write_text(MERGE)
    monkeypatch.syspath_prepend(tmp_path)
    merge = ["--model.vae.block.merge", "merges_of_mine.mean", "--runs", str(tmp_path)]
    assert main(["fit", "--config", "config.yaml", *merge]) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["arguments"] is None
    weights = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("vae.decoder") for name in weights)
    assert main(["sample", str(tmp_path / "run")]) == 2
    assert "does not tell which model it holds" in capsys.readouterr().err


def test_a_runs_own_data_are_read_where_one_says(there, capsys):
    assert main(["evaluate", RUN, "--num", "4", "--data", "npz", "--path", "floats.npz"]) == 2
    assert "floats.npz" in capsys.readouterr().err
    assert data_of(RUN, root="elsewhere").root == "elsewhere"
    assert data_of(RUN).root == "data"


def test_resuming_another_model_leaves_the_metrics_of_the_run(there, capsys):
    before = (there / RUN / "metrics.csv").read_text(), (there / RUN / "config.yaml").read_text()
    arguments = [
        "fit",
        "--config",
        "config.yaml",
        "--runs",
        "runs",
        "--ckpt_path",
        "last",
        "--model.vae.latent_dim",
        "5",
    ]
    assert main(arguments) == 2
    assert ((there / RUN / "metrics.csv").read_text(), (there / RUN / "config.yaml").read_text()) == before


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_corrupt_image_is_skipped_where_that_is_asked_for(there, tmp_path, capsys):
    skip = ["--data.on_corrupt", "skip", "--data.validation", "5", "--runs", str(tmp_path)]
    assert main([*FOLDER, "pictures", *skip]) == 0
    out, error = capsys.readouterr()
    assert "on 22 images (5 to validate)" in out  # of 30, 1 is corrupt, 2 are the test's
    assert "resvae: warning: skipped pictures/07.png" in error


def test_the_code_is_two_and_the_error_one_line_in_a_process_too(there):
    command = [sys.executable, "-m", "resvae", "sample", RUN, "--num", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(resvae.__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert done.stderr == "resvae: error: num: 0 is not allowed; at least 1\n"
    assert done.stdout == ""


def test_an_error_of_the_code_is_not_hidden(there, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("resvae.storage.load", broken)
    with pytest.raises(ZeroDivisionError):
        main(["sample", RUN])


def test_control_c_is_a_line_and_its_own_code(there, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("resvae.verbs.sample.load_vae", interrupted)
    assert main(["sample", RUN]) == 130
    assert capsys.readouterr().err == "resvae: interrupted\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb_with_an_example(capsys, arguments):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for verb in ("fit", "validate", "test", "sweep", "sample", "reconstruct", "interpolate", "evaluate"):
        assert f"resvae {verb} " in text


@pytest.mark.parametrize("verb", ["fit", "test", "sample", "reconstruct", "interpolate", "evaluate", "sweep", "export"])
def test_every_verb_tells_its_options(capsys, verb):
    with suppress(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert "--config" in text or "--out" in text
    assert text.count("\n") < 70


def test_the_first_page_of_help_names_options_with_their_defaults(capsys):
    assert main(["fit", "--help"]) == 0
    named = re.findall(r"^  (--[\w.]+)(?: +(\S+))?", capsys.readouterr().out, re.MULTILINE)
    assert len(named) > 15
    values = parse([])[0].values
    examples = {"--model.vae.depth", "--model.classifier.depth", "--model.compile", "--data.flip", "--ckpt_path"}
    for option, text in named:
        default = (
            functools.reduce(lambda part, name: part[name], option[2:].split("."), values)
            if (option not in examples)
            else None
        )
        assert default is None or text.isupper() or text == str(default), option


@pytest.mark.parametrize(
    ("group", "there", "elsewhere"),
    [
        ("data", "--data.flip", "--trainer.max_steps"),
        ("run", "--save_every_n_steps", "--data.name"),
        ("all", "--images.num", "?"),
    ],
)
def test_help_tells_all_options_of_a_group(capsys, group, there, elsewhere):
    assert main(["fit", "--help", group]) == 0
    text = capsys.readouterr().out
    assert there in text
    assert elsewhere not in text
    assert main(["fit", "--help", "colours"]) == 2
    assert "help: colours is not known; one of run, trainer, model, data" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"resvae {resvae.__version__}\n"


def test_fields_are_read_from_the_environment(there, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESVAE_FIT__MODEL__VAE__INIT_ARGS__LATENT_DIM", "3")
    monkeypatch.setenv("RESVAE_FIT__TRAINER__MAX_EPOCHS", "2")
    assert main(["fit", "--config", "config.yaml", "--runs", str(tmp_path), "--trainer.max_epochs", "1"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["arguments"]["latent_dim"] == 3  # over the file's 4
    assert summary["epochs"] == 1  # the command line's is over it
    monkeypatch.setenv("RESVAE_SAMPLE__NUM", "0")
    monkeypatch.setenv("RESVAE_RECONSTRUCT__MODEL", RUN)
    assert main(["reconstruct", "--num", "0"]) == 2
    assert "num: 0" in capsys.readouterr().err
    assert main(["sample", RUN]) == 2
    assert "num: 0" in capsys.readouterr().err


def test_a_run_holds_what_it_should(run):
    kept = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    pictures = {"samples/epoch_0001.png", "reconstructions/epoch_0001.png"}
    assert (
        kept
        == {"config.yaml", "metrics.csv", "summary.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} | pictures
    )
    with (run / "metrics.csv").open() as file:
        names = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    wanted = {
        f"{split}/{name}" for split in ("train", "val") for name in ("elbo", "log_likelihood", "kl", "bits_per_dim")
    }
    assert names >= wanted | {"train/grad_norm", "train/skipped_updates", "train/images_per_second", "lr-AdamW"}


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert len(set(picture.convert("L").tobytes())) > 4  # more than borders and one grey
        return picture.size


def test_sample_reconstruct_interpolate_write_what_they_say(there, tmp_path, capsys):
    wanted = {"sample": ["--num", "10"], "reconstruct": ["--num", "6"], "interpolate": ["--num", "3", "--steps", "5"]}
    sizes = {}
    for verb, options in wanted.items():
        out = tmp_path / f"{verb}.png"
        assert main([verb, RUN, *options, "--out", str(out)]) == 0
        assert f"wrote {out}" in capsys.readouterr().out
        sizes[verb] = size(out)
    assert sizes["interpolate"][0] * 3 < sizes["interpolate"][1] * 6  # five wide, three high
    again = tmp_path / "again.png"
    main(["sample", RUN, "--num", "10", "--out", str(again)])
    assert again.read_bytes() == (tmp_path / "sample.png").read_bytes()
    main(["sample", RUN, "--num", "10", "--seed", "1", "--out", str(again)])
    assert again.read_bytes() != (tmp_path / "sample.png").read_bytes()


def test_evaluate_prints_a_table_and_writes_json(there, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["evaluate", RUN, "--num", "50", "--num_samples", "5", "--out", str(out)]) == 0
    report, text = json.loads(out.read_text()), capsys.readouterr().out
    assert report["images"] == 50
    assert report["num_samples"] == 5
    assert report["importance_weighted"] > report["elbo"]
    assert f"wrote {out}" in text
    assert len(text.splitlines()) > 5


def test_validate_and_test_print_the_figures_of_the_best_checkpoint(there, capsys):
    before = files(there)
    for verb, split in (("validate", "val"), ("test", "test")):
        assert main([verb, RUN, "--trainer.enable_progress_bar", "false"]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{split}: "))
        figures = json.loads(line.removeprefix(f"{split}: "))
        assert figures["loss"] == pytest.approx(-figures["elbo"], abs=1e-3)
        if split == "val":
            assert figures["loss"] == pytest.approx(
                json.loads((there / RUN / "summary.json").read_text())["val_loss"], 1e-3
            )
    assert files(there) == before


def test_arguments_come_from_the_process_too(there, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["resvae", "sample", RUN, "--num", "0"])
    assert main() == 2
    assert not os.path.exists("it_ran")


def test_the_best_checkpoint_is_the_one_that_early_stopping_calls_best(there, capsys):
    watched = ["--early_stopping.monitor", "val/elbo", "--early_stopping.mode", "max", "--trainer.max_epochs", "4"]
    assert main(["fit", "--config", "config.yaml", "--runs", "new_best", *watched]) == 0
    with Path("new_best/run/metrics.csv").open(newline="") as file:
        elbos = {int(row["epoch"]): float(row["val/elbo"]) for row in csv.DictReader(file) if row["val/elbo"]}
    best = torch.load("new_best/run/checkpoints/best.ckpt", weights_only=True)["epoch"]
    assert len(elbos) == 4
    assert elbos[best] == max(elbos.values()) > min(elbos.values())
