"""Processes killed at any moment: what they had saved is whole, and the next command goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers_runs import ENVIRONMENT, assert_same, checkpoint, command, rows
from PIL import Image
from safetensors.torch import load_file

from resvae.cli import main
from resvae.files import UNFINISHED, remove_unfinished, write_atomically

NUM_KILLS = 100
SHALLOW = "--model.vae.init_args.widths [8,8] --model.vae.init_args.strides [1,2]"
# Imports once; each command is a process of its own, forked from here.
NURSERY = """
import os, sys
import resvae.studies.sweep, resvae.training.fit, resvae.verbs.evaluate, resvae.verbs.export, resvae.verbs.sample
from resvae.cli import main
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(line.split()))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Nursery:
    """Starts commands of ``resvae``, and kills them after a while."""

    def __init__(self) -> None:
        given = {"env": ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", NURSERY], stdin=-1, stdout=-1, **given)

    def run(self, line: str, seconds: float | None = None) -> tuple[int, float]:
        """The status of a command that is killed after ``seconds``, if it has not ended; and how long it ran."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        pid, start = int(self.process.stdout.readline()), time.perf_counter()
        if seconds is not None:
            time.sleep(seconds)
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        return int(self.process.stdout.readline()), time.perf_counter() - start


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.process.kill()


def check_whole(folder: Path) -> None:
    """Every file that has its name can be read to its end."""
    readers = {
        ".ckpt": lambda path: torch.load(path, weights_only=True),
        ".safetensors": load_file,
        ".json": lambda path: json.loads(path.read_text()),
        ".yaml": lambda path: yaml.safe_load(path.read_text()),
        ".npz": lambda path: [np.load(path)[name] for name in np.load(path).files],
        ".png": lambda path: Image.open(path).load(),
    }
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in readers and not path.name.startswith("."):
            readers[path.suffix](path)


def test_only_unfinished_files_are_removed(tmp_path):
    kept = [".hidden", ".settings.original", "best.ckpt", "notes.unfinished"]
    for name in kept:
        (tmp_path / name).touch()
    child = os.fork()
    if not child:  # killed while it writes
        write_atomically(tmp_path / "best.ckpt", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == len(kept) + 1
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_a_run_removes_what_was_left_unfinished_in_its_folder(tmp_path):
    assert main(command(tmp_path)) == 0
    left = [tmp_path / f"runs/run/{name}{UNFINISHED}" for name in (".config.yaml.a", "checkpoints/.last.ckpt.b")]
    for path in left:
        path.touch()
    assert main(command(tmp_path, "--ckpt_path last --trainer.max_epochs 2")) == 0
    assert not [path for path in left if path.exists()]


@pytest.mark.slow
def test_whatever_is_killed_the_next_command_goes_on(tmp_path, nursery, capsys):
    rng, counts = random.Random(0), Counter()
    options = (
        "--save_every_n_steps 1 --trainer.enable_progress_bar false --trainer.max_epochs 2 --images.every_n_epochs 1"
    )
    whole = tmp_path / "whole"
    status, lasts = nursery.run(" ".join(command(whole, options)))
    assert status == 0
    sweep = f"sweep --config {whole}/config.yaml --depths 16 {SHALLOW} --seeds 0,1 --runs {{}} --name swept"
    status, both = nursery.run(sweep.format(whole))
    assert status == 0
    lines = {
        f"export {whole}/runs/run {{}}/model": "model/model.safetensors",
        f"evaluate {whole}/runs/run --num_samples 2 --out {{}}/report.json": "report.json",
        f"sample {whole}/runs/run --num 8 --out {{}}/samples.npz": "samples.npz",
    }
    times = {line: nursery.run(line.format(whole))[1] for line in lines}
    for i in range(NUM_KILLS):
        folder = tmp_path / f"{i}"
        folder.mkdir()
        if i % 10 == 8:  # a sweep, whose runs are killed with it
            status, _ = nursery.run(sweep.format(folder), rng.uniform(0, both))
            check_whole(folder)
            counts["sweep killed"] += status != 0
            assert nursery.run(sweep.format(folder))[0] == 0
            for seed in range(2):
                run = f"swept/depth_0016_seed_{seed}"
                assert_same(checkpoint(folder / run)["state_dict"], checkpoint(whole / run)["state_dict"], f"{i}.{run}")
            found = [[row["validation loss"] for row in rows(each / "swept/depths.csv")] for each in (folder, whole)]
            assert found[0] == found[1]
        elif i % 2:  # a run, which is killed up to three times
            line, kills = " ".join(command(folder, options)), 0
            for _ in range(3):
                resumes = any((folder / "runs/run/checkpoints").glob("*.ckpt"))
                status, _ = nursery.run(f"{line} --ckpt_path last" if resumes else line, rng.uniform(0, 1.1 * lasts))
                if status == 0:
                    break
                kills += 1
                check_whole(folder)
            resumes = any((folder / "runs/run/checkpoints").glob("*.ckpt"))
            if status:
                status, _ = nursery.run(f"{line} --ckpt_path last" if resumes else line)
            assert status == 0
            runs = sorted((folder / "runs").glob("run*"), key=lambda path: path.stat().st_mtime)
            here, there = checkpoint(runs[-1]), checkpoint(whole / "runs/run")
            for key in ("state_dict", "optimizer_states", "rng", "global_step", "epoch"):
                assert_same(here[key], there[key], f"{i}.{key}")
            seen = [row["step"] for row in rows(runs[-1] / "metrics.csv") if row["val/loss"]]
            assert seen == [row["step"] for row in rows(whole / "runs/run/metrics.csv") if row["val/loss"]]
            counts["fit killed"] += kills
        else:
            line, product = rng.choice(list(lines.items()))
            before = rng.random() < 0.5 and nursery.run(line.format(folder))[0] == 0
            kept = (folder / product).read_bytes() if before else b""
            status, _ = nursery.run(line.format(folder), rng.uniform(0, 1.1 * times[line]))
            check_whole(folder)
            # that of before or a new one, in which the seconds may be a digit longer
            assert not before or len((folder / product).read_bytes()) == pytest.approx(len(kept), abs=4)
            counts[f"{line.split()[0]} killed"] += status != 0
            there = line.startswith("export") and (folder / product).is_file()  # which it does not write over
            assert os.waitstatus_to_exitcode(nursery.run(line.format(folder))[0]) == (2 if there else 0)
            check_whole(folder)
            assert (folder / product).is_file()
        assert not [path for path in folder.rglob("*") if path.suffix == ".ckpt" and path.name.startswith(".")]
    with capsys.disabled():
        print(f"\n{dict(counts)}, all whole")
