"""Two processes train one run: what they make is what one process makes. All of it runs in processes of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_runs import (
    CLASSIFIER,
    ENVIRONMENT,
    VAE,
    assert_same,
    callback,
    checkpoint,
    command,
    files,
    logged,
    stop,
)

from resvae.runs.folder import read_summary

pytestmark = pytest.mark.slow
TWO = "--trainer.devices 2 --trainer.strategy ddp"
SHARED = "--trainer.devices 2 --trainer.strategy fsdp2"
# 64 of 192 images an update: of one process, of two, and of two that take two batches for an update
SPLITS = {
    "one": "--data.batch_size 64",
    "two": f"{TWO} --data.batch_size 32",
    "accumulated": f"{TWO} --data.batch_size 16 --trainer.accumulate_grad_batches 2",
    "shared": f"{SHARED} --data.batch_size 16 --trainer.accumulate_grad_batches 2",
}
OPTIONS = """
    --model.precision fp32 --model.ema_decay 0.8 --model.schedule.warmup_steps 3 --trainer.max_epochs 20
    --early_stopping.patience 2 --save_every_n_steps 2 --model.schedule.kind constant
"""
AT = "--model.optimizer torch.optim.AdamW --model.optimizer.init_args.lr 0.01"
VAES = f"--images.every_n_epochs 0 --model.kl.warmup_steps 12 {AT}"
HIERARCHY = VAE.replace("resvae.VAE", "resvae.HierarchicalVAE").replace("latent_dim: 4", "levels: [1, 2]")
GROUPS = CLASSIFIER.replace("depth: 8", "depth: 8, block: {norm: group}")  # a batch's statistics are each process's own
KINDS = {"vae": (VAE, VAES), "hierarchical": (HIERARCHY, VAES), "classifier": (GROUPS, "")}


def start(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "resvae", *arguments]
    return subprocess.run(command, env=environment, timeout=240, capture_output=True, text=True)


def run(folder: Path, kind: str, split: str, *more: str) -> Path:
    """The folder of a run, which has ended well; latents are their means, because each process draws its own noise."""
    config, options = KINDS[kind]
    quiet = callback("helpers_runs.NoNoise")
    done = start([*command(folder, f"{OPTIONS} {options} {SPLITS[split]}", config), *quiet, *more])
    assert done.returncode == 0, done.stderr
    return folder / "runs/run"


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_the_losses_of_one(tmp_path, kind):
    one, *others = (run(tmp_path / split, kind, split) for split in ("one", "two", "accumulated"))
    for name in ("train/loss", "val/loss"):
        losses = logged(one, name)
        for other in others:  # the order of sums differs; from update to update training amplifies what is rounded
            assert logged(other, name)[:10] == pytest.approx(losses[:10], rel=1e-5)
            assert logged(other, name) == pytest.approx(losses, rel=1e-2)
    summaries = [read_summary(each) for each in (one, *others)]
    assert len({(each["epoch"], each["ended"]) for each in summaries}) == 1
    assert len(logged(one, "val/loss")) > 3


@pytest.mark.parametrize("kind", [*KINDS, "muon"])
def test_a_model_that_is_shared_out_makes_the_losses_of_a_whole_one(tmp_path, kind):
    config, options = KINDS.get(kind, (HIERARCHY, VAES))
    if kind == "muon":
        options = options.replace(AT, "--model.optimizer resvae.training.muon.Muon")
    options = f"{options} --trainer.max_epochs 4" + " --images.every_n_epochs 2" * (kind != "classifier")
    alike = [*callback("helpers_runs.NoNoise"), *callback("helpers_runs.Contiguous")]
    runs = []
    for split in ("one", "shared"):
        done = start([*command(tmp_path / split, f"{OPTIONS} {options} {SPLITS[split]}", config), *alike])
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        runs.append(tmp_path / split / "runs/run")
    one, shared = runs
    for name in ("train/loss", "val/loss"):
        assert logged(shared, name) == pytest.approx(logged(one, name), rel=1e-5)
    assert files(shared) == files(one)
    ends = [checkpoint(each, "best") for each in runs]
    assert ends[0]["resvae"] == ends[1]["resvae"]
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert ends[0][part].keys() == ends[1][part].keys()
        for name, value in ends[0][part].items():
            assert torch.allclose(value, ends[1][part][name], atol=1e-4), name
    for verb in ("validate", "test"):
        both = [start([verb, str(each), "--trainer.enable_progress_bar", "false"]).stdout for each in runs]
        alone, parts = (json.loads(re.findall(r"(?:val|test): ([{].*)", text)[0]) for text in both)
        assert parts == pytest.approx(alone, rel=1e-4)


def test_a_budget_of_memory_is_kept_where_the_model_is_shared_out(tmp_path):
    deep = VAE.replace("depth: [1, 1]", "depth: [8, 8]")
    losses = []
    for split in ("one", "shared"):
        options = f"{OPTIONS} {VAES} {SPLITS[split]} --trainer.max_epochs 3 --model.memory_budget 5MiB"
        alike = [*callback("helpers_runs.NoNoise"), *callback("helpers_runs.Contiguous")]
        done = start([*command(tmp_path / split, options, deep), *alike])
        assert done.returncode == 0, done.stderr
        losses.append(logged(tmp_path / split / "runs/run", "train/loss"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(("first", "then"), [("two", "one"), ("one", "two"), ("shared", "one"), ("one", "shared")])
def test_a_checkpoint_of_two_processes_resumes_in_one_and_the_other_way(tmp_path, first, then):
    whole = run(tmp_path / "whole", "vae", "one")
    run(tmp_path / "moved", "vae", first, "--trainer.max_epochs", "3")
    moved = run(tmp_path / "moved", "vae", then, "--ckpt_path", "last")
    assert logged(moved, "val/loss") == pytest.approx(logged(whole, "val/loss"), rel=1e-5)


@pytest.mark.parametrize("split", ["two", "shared"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_which_can_be_resumed(tmp_path, rank, split):
    config, options = KINDS["vae"]
    arguments = command(tmp_path, f"{OPTIONS} {options} {SPLITS[split]} --trainer.max_epochs 4", config)
    quiet, kill = callback("helpers_runs.NoNoise"), stop(7, how="kill", rank=rank)
    done = start([*arguments, *quiet, *kill])
    assert done.returncode == (-9 if rank == 0 else 1)
    said = [line for line in done.stderr.splitlines() if line.startswith("resvae: error: ")]
    assert [line.split(",")[0] for line in said] == [
        f"resvae: error: process {1 - rank} cannot reach another of the 2 processes"
    ], done.stderr
    assert "Traceback" not in done.stderr
    done = start([*arguments, *quiet, "--ckpt_path", "last"])
    assert done.returncode == 0, done.stderr
    whole = run(tmp_path / "whole", "vae", split, "--trainer.max_epochs", "4")
    a, b = (checkpoint(each, "last") for each in (tmp_path / "runs/run", whole))
    for part in ("state_dict", "optimizer_states", "epoch", "global_step"):
        assert_same(a[part], b[part], part)


def test_two_processes_make_one_folder(tmp_path):
    more = f"{TWO} --trainer.max_epochs 3 --images.every_n_epochs 1"
    for name in ("run", "run-2"):
        done = start(command(tmp_path, more))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"-> {tmp_path / 'runs' / name}\n") == 1  # one of the two tells
        assert len(list((tmp_path / "runs" / name / "samples").iterdir())) == 3
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"run", "run-2"}


def test_two_processes_draw_noise_of_their_own_and_resume_as_if_unbroken(tmp_path):
    def train(folder: Path, *more: str) -> int:
        noise = callback("helpers_runs.Noise", folder=str(folder))
        options = f"{OPTIONS} {VAES} {SPLITS['accumulated']} --trainer.max_epochs 3"
        return start([*command(folder, options), *noise, *more]).returncode

    def noise(folder: Path, rank: int) -> list[str]:
        return (folder / f"noise_{rank}").read_text().split()

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole) == 0
    first, second = noise(whole, 0), noise(whole, 1)
    assert len(first) == len(second) > 6
    assert len({*first, *second}) == 2 * len(first)
    assert train(broken, *stop(5)) != 0
    assert train(broken, "--ckpt_path", "last") == 0
    for rank in (0, 1):
        assert noise(broken, rank)[-3:] == noise(whole, rank)[-3:]
    ends = [checkpoint(folder / "runs/run") for folder in (broken, whole)]
    for part in ("state_dict", "averaging_state", "optimizer_states", "lr_schedulers", "rng", "epoch", "global_step"):
        assert_same(ends[0][part], ends[1][part], part)


def test_silent_levels_train_in_two_processes(tmp_path):
    done = start(command(tmp_path, f"{TWO} --model.vae.init_args.stochastic_depth 2", HIERARCHY))
    assert done.returncode == 0, done.stderr


def test_two_processes_test_every_image_once(tmp_path):
    assert start(command(tmp_path, "--data.validation 61", CLASSIFIER)).returncode == 0
    figures = []
    for more in ("", TWO):
        for verb in ("test", "validate"):
            options = f"{tmp_path}/runs/run --trainer.enable_progress_bar false --data.eval_batch_size 20 {more}"
            done = start([verb, *options.split()])
            assert done.returncode == 0, done.stderr
            (line,) = re.findall(r"(?:val|test): ([{].*)", done.stdout)
            figures.append(json.loads(line))
    for alone, both in zip(figures[:2], figures[2:], strict=True):
        assert alone["error"] == both["error"]
        assert alone["loss"] == pytest.approx(both["loss"], abs=2e-4)
