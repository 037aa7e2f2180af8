"""The command line: bad input is one line and code 2, with nothing half-written; the verbs write what they say."""

import functools
import os
import pickle
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers_runs import ENVIRONMENT, VAE, checkpoint, command, files, logged, names, printed, read, refused
from PIL import Image

import resvae
from resvae.cli import VERBS, main
from resvae.runs.data import data_of
from resvae.training.configuration import parse

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
    assert main(command(folder)) == 0
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
    (folder / "unknown_key.yaml").write_text(VAE + "colour: red\n")
    (folder / "number.yaml").write_text("model: 3\n")
    (folder / "no.yaml").write_text("data: [1\n model: 2\n")
    return run


@pytest.fixture
def there(run, monkeypatch) -> Path:
    """The folder of the run, as the present one."""
    monkeypatch.chdir(run.parent.parent)
    return run.parent.parent


FIT = "fit --config config.yaml --runs new"
FOLDER = f"{FIT} --data.name folder --data.path"
OTHER = "--model.vae.latent_dim 5 --ckpt_path runs/run/checkpoints"
BAD = {
    f"{FIT} --model.vae.colour red": ["model.vae", "colour"],
    "fit --config unknown_key.yaml --runs new": ["colour: there is no such field"],
    f"{FIT} --trainer.epochs 3": ["trainer.epochs: there is no such option"],
    f"{FIT} --trainer.max_epochs many": ["trainer.max_epochs", "many"],
    "fit --config no.yaml --runs new": ["config"],
    "fit --config none.yaml": ["none.yaml"],
    f"{FIT} --model.vae.depth 29": ["depth: 29", "28 and 34"],
    f"{FIT} --model.vae resvae.Nope": ["resvae.Nope"],
    f"{FIT} --model.vae.likelihood foo": ["likelihood: 'foo'", "bernoulli"],
    f"{FIT} --model.vae.image_shape [1,9,9]": ["9x9", "8 and 10"],
    f"{FIT} --model.vae.image_shape [3,8,8]": ["image_shape: (3, 8, 8)", "(1, 8, 8)"],
    f"{FOLDER} empty": ["empty holds no images"],
    f"{FOLDER} pictures": ["pictures/07.png", "on_corrupt"],
    f"{FIT} --data.name npz --data.path floats.npz": ["float32", "uint8"],
    f"{FIT} --data.batch_size 0": ["data.batch_size: 0"],
    f"{FIT} --early_stopping.monitor val/los": ["early_stopping.monitor: val/los", "val/loss"],
    f"{FIT} --early_stopping.monitor val/elbo": ["early_stopping.mode: min is not allowed with val/elbo; max"],
    f"{FIT} --trainer.limit_val_batches 0": ["trainer.limit_val_batches: 0"],
    f"{FIT} --trainer.max_epochs 0": ["trainer.max_epochs: 0"],
    f"{FIT} --trainer.fast_dev_run true": ["trainer.fast_dev_run", "trainer.max_steps"],
    f"{FIT} --trainer.precision bf16-true": ["trainer.precision", "model.precision"],
    f"{FIT} --model.optimizer torch.optim.AdamW --model.optimizer.lr -1": ["model.optimizer: ", "-1.0"],
    "fit --config number.yaml --runs new": ["model"],
    "test --config config.yaml": ["ckpt_path: it is missing", "best"],
    f"{FIT} --model.ema_decay 2": ["ema_decay: 2"],
    f"{FIT} --save_every_n_steps 0": ["save_every_n_steps: 0"],
    f"{FIT} --trainer.max_epochs -1": ["schedule.kind", "trainer.max_epochs"],  # a cosine without an end
    f"{FIT} --ckpt_path last": ["new/run/checkpoints/last.ckpt does not exist"],
    f"{FIT} --ckpt_path truncated.ckpt": ["truncated.ckpt is truncated"],
    f"{FIT} --ckpt_path code.ckpt": ["code.ckpt holds code"],
    f"{FIT} {OTHER}/last.ckpt": ["latent_dim=4", "latent_dim=5"],
    f"test --config config.yaml {OTHER}/best.ckpt": ["latent_dim=4", "latent_dim=5"],
    "sample truncated.ckpt": ["truncated.ckpt is truncated"],
    "sample code.ckpt": ["code.ckpt holds code"],
    "sample plain_code.ckpt": ["plain_code.ckpt"],
    "sample runs/none": ["runs/none"],
    "sample": ["model"],
    **{f"{verb} runs/run --num 0": ["num: 0"] for verb in ("sample", "reconstruct", "interpolate", "evaluate")},
    "interpolate runs/run --num -1": ["num: -1"],
    "sample runs/run --num many": ["num", "many"],
    "sample runs/run --temperature -1": ["temperature: -1"],
    "interpolate runs/run --steps 1": ["steps: 1"],
    "evaluate runs/run --num_samples 0": ["num_samples: 0"],
    **{f"{verb} runs/run --out no/x.png": ["no does not exist"] for verb in ("sample", "reconstruct", "interpolate")},
    "evaluate runs/run --out no/x.json": ["no does not exist"],
    "sample runs/run --out x.foo": ["x.foo", ".png"],
    "reconstruct runs/run --data cifar99": ["cifar99", "digits"],
    "sample runs/run --nums 3": ["nums: there is no such option"],
    "train": ["verb: train", "fit, validate, test"],
    "test runs/none": ["runs/none is not a run's folder"],
    "sweep --config config.yaml --depths a,b": ["depths: 'a,b'"],
    "sweep": ["sweep: --config is missing"],
    "sweep --config none.yaml --depths 10": ["none.yaml"],
}


@pytest.mark.parametrize(("arguments", "parts"), BAD.items(), ids=BAD)
def test_bad_input_is_one_line_and_nothing_is_half_written(there, capsys, arguments, parts):
    before = {*there.rglob("*")}
    refused(capsys, arguments.split(), *parts)
    assert {*there.rglob("*")} == before


def test_a_model_that_json_cannot_hold_trains_all_the_same(there, tmp_path, capsys, monkeypatch):
    (tmp_path / "merges_of_mine.py").write_text(MERGE)
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "runs/run"
    assert main(command(tmp_path, "--model.vae.block.merge merges_of_mine.mean")) == 0
    assert read(run / "summary.json")["arguments"] is None
    assert any(name.startswith("vae.decoder") for name in checkpoint(run, "best")["state_dict"])
    refused(capsys, ["sample", str(run)], "does not tell which model it holds")


def test_a_runs_own_data_are_read_where_one_says(there, capsys):
    refused(capsys, ["evaluate", "runs/run", "--num", "4", "--data", "npz", "--path", "floats.npz"], "floats.npz")
    assert data_of("runs/run", root="elsewhere").root == "elsewhere"
    assert Path(data_of("runs/run").root).name == "data"  # here, or from where the run was started


def test_resuming_another_model_leaves_the_metrics_of_the_run(run, capsys):
    before = [(run / name).read_text() for name in ("metrics.csv", "config.yaml")]
    refused(capsys, command(run.parents[1], "--ckpt_path last --model.vae.latent_dim 5"), "latent_dim=4")
    assert [(run / name).read_text() for name in ("metrics.csv", "config.yaml")] == before


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_corrupt_image_is_skipped_where_that_is_asked_for(there, tmp_path, capsys):
    skip = f"pictures --data.on_corrupt skip --data.validation 5 --runs {tmp_path}"
    assert main(f"{FOLDER} {skip}".split()) == 0
    out, error = capsys.readouterr()
    assert "on 22 images (5 to validate)" in out  # of 30, 1 is corrupt, 2 are the test's
    assert "resvae: warning: skipped pictures/07.png" in error


def test_the_code_is_two_and_the_error_one_line_in_a_process_too(there):
    arguments = [sys.executable, "-m", "resvae", "sample", "runs/run", "--num", "0"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "resvae: error: num: 0 is not allowed; at least 1\n"


def test_an_error_of_the_code_is_not_hidden_and_control_c_is_a_line_and_its_own_code(there, capsys, monkeypatch):
    monkeypatch.setattr(Image.Image, "save", Mock(side_effect=[ZeroDivisionError, KeyboardInterrupt]))
    with pytest.raises(ZeroDivisionError):
        main(["sample", "runs/run"])
    assert main(["sample", "runs/run"]) == 130
    assert capsys.readouterr().err == "resvae: interrupted\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb_with_an_example(capsys, arguments):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert f"resvae {verb} " in text


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("study", "export")])
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
        if option not in examples:
            default = functools.reduce(lambda part, name: part[name], option[2:].split("."), values)
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
    refused(capsys, ["fit", "--help", "colours"], "help: colours is not known; one of run, trainer, model, data")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"resvae {resvae.__version__}\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("5000", None)),
        ({"GOMP_SPINCOUNT": "7"}, ("7", None)),
        ({"OMP_WAIT_POLICY": "active"}, (None, "active")),
    ],
)
def test_threads_wait_briefly_unless_the_user_says_otherwise(given, expected, monkeypatch):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["version"]) == 0
    assert tuple(map(os.environ.get, names)) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize(("given", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_stays_unless_the_user_says_otherwise(given, kept):
    code = """
import resource, torch
from resvae.environment import keep_freed_memory
keep_freed_memory()
def step():
    tensors = [torch.ones(2**21) for _ in range(8)]  # 8 MiB each
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (int(done.stdout) < 1000) == kept, done  # of 131,072 pages


def test_fields_are_read_from_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESVAE_FIT__MODEL__VAE__INIT_ARGS__LATENT_DIM", "3")
    monkeypatch.setenv("RESVAE_FIT__TRAINER__MAX_EPOCHS", "2")
    assert main(command(tmp_path, "--trainer.max_epochs 1")) == 0
    summary = read(tmp_path / "runs/run/summary.json")
    assert summary["arguments"]["latent_dim"] == 3  # over the file's 4
    assert summary["epochs"] == 1  # the command line's is over it
    monkeypatch.setenv("RESVAE_SAMPLE__NUM", "0")
    monkeypatch.setenv("RESVAE_RECONSTRUCT__MODEL", str(tmp_path / "runs/run"))
    refused(capsys, ["reconstruct", "--num", "0"], "num: 0")
    monkeypatch.delenv("RESVAE_RECONSTRUCT__MODEL")
    refused(capsys, ["sample", str(tmp_path / "runs/run")], "num: 0")


def test_a_run_holds_what_it_should(run):
    kept = {"config.yaml", "metrics.csv", "summary.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert files(run) == kept | {"samples/epoch_0001.png", "reconstructions/epoch_0001.png"}
    figures = ("elbo", "log_likelihood", "kl", "bits_per_dim")
    wanted = {f"{split}/{name}" for split in ("train", "val") for name in figures}
    assert names(run) >= wanted | {"train/grad_norm", "train/skipped_updates", "train/images_per_second", "lr-AdamW"}


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert len(set(picture.convert("L").tobytes())) > 4  # more than borders and one grey
        return picture.size


def test_sample_reconstruct_interpolate_write_what_they_say(there, tmp_path, capsys):
    def write(verb: str, name: str = "") -> Path:
        out = tmp_path / f"{name or verb.split()[0]}.png"
        assert main(f"{verb} --out {out}".replace(" ", " runs/run ", 1).split()) == 0
        assert f"wrote {out}" in capsys.readouterr().out
        assert size(out) > (8, 8)
        return out

    write("reconstruct --num 6")
    wide, high = size(write("interpolate --num 3 --steps 5"))
    assert wide * 3 < high * 6  # five wide, three high
    first = write("sample --num 10").read_bytes()
    assert write("sample --num 10", "again").read_bytes() == first
    assert write("sample --num 10 --seed 1", "other").read_bytes() != first


def test_evaluate_prints_a_table_and_writes_json(there, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(f"evaluate runs/run --num 50 --num_samples 5 --out {out}".split()) == 0
    report, text = read(out), capsys.readouterr().out
    assert (report["images"], report["num_samples"]) == (50, 5)
    assert report["importance_weighted"] > report["elbo"]
    assert f"wrote {out}" in text
    assert len(text.splitlines()) > 5


def test_validate_and_test_print_the_figures_of_the_best_checkpoint(run, capsys):
    before = {*run.parents[1].rglob("*")}
    validated, tested = printed(capsys, "validate", run), printed(capsys, "test", run)
    assert validated["loss"] == pytest.approx(read(run / "summary.json")["val_loss"], 1e-3)
    assert validated["loss"] == pytest.approx(-validated["elbo"], abs=1e-3)
    assert tested["loss"] == pytest.approx(-tested["elbo"], abs=1e-3) != validated["loss"]
    assert {*run.parents[1].rglob("*")} == before


def test_the_best_checkpoint_is_the_one_that_early_stopping_calls_best(tmp_path):
    watched = "--early_stopping.monitor val/elbo --early_stopping.mode max --trainer.max_epochs 4"
    assert main(command(tmp_path, watched)) == 0
    elbos = logged(run := tmp_path / "runs/run", "val/elbo")
    assert len(elbos) == 4
    assert elbos[checkpoint(run, "best")["epoch"]] == max(elbos) > min(elbos)
