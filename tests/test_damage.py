"""Damaged files: each is refused in one line or does no harm; nothing in it runs, and nothing saved is lost."""

import hashlib
import io
import pickle
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_runs import command, stop
from PIL import Image

from resvae.cli import main

NUM_SLOW = 500
OPTIONS = "--data.cache false --trainer.enable_progress_bar false --save_every_n_steps 2"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was interrupted, its exported model, pictures, latents and a set of images with its cache."""
    folder = tmp_path_factory.mktemp("damage")
    pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez(folder / "set.npz", images=pictures, labels=np.arange(40) % 4)
    for i, picture in enumerate(pictures[:12, ..., 0]):
        (folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"pictures/{i}.png")
    assert main(command(folder, OPTIONS)) == 0
    with pytest.raises(RuntimeError):
        main([*command(folder, f"{OPTIONS} --name broken"), *stop(2)])
    for made in (
        f"export {folder}/runs/run {folder}/model",
        f"encode {folder}/runs/run {folder}/pictures --out {folder}/latents.npz",
        f"fit --config {folder}/config.yaml --runs {folder}/runs --name cached --data.name npz"
        f" --data.path {folder}/set.npz --data.cache true --data.limit null --data.validation 4",
    ):
        assert main(made.split()) == 0, made
    return folder


# What is damaged, and the commands that read it. {} is the folder.
READERS = {
    "runs/run/checkpoints/best.ckpt": [
        "sample {}/runs/run --out {}/new.png",
        "validate {}/runs/run",
        "fit --config {}/config.yaml --runs {}/runs --name other --init_from {}/runs/run",
    ],
    "runs/broken/checkpoints/interrupted.ckpt": ["fit --config {}/runs/broken/config.yaml --ckpt_path last"],
    "runs/run/config.yaml": [
        "validate {}/runs/run",
        "reconstruct {}/runs/run --num 4 --out {}/new.png",
        "fit --config {}/runs/run/config.yaml --ckpt_path last --trainer.max_epochs 2",
    ],
    "runs/broken/metrics.csv": ["fit --config {}/runs/broken/config.yaml --ckpt_path last"],
    "runs/run/summary.json": [
        "reconstruct {}/runs/run --num 4 --out {}/new.png",
        "export {}/runs/run {}/other",
        "fit --config {}/runs/run/config.yaml --ckpt_path last --trainer.max_epochs 2",
    ],
    "model/config.json": ["sample {}/model --out {}/new.png", "export {}/model {}/other"],
    "model/model.safetensors": ["sample {}/model --out {}/new.png"],
    "model/config.yaml": ["reconstruct {}/model --num 4 --out {}/new.png"],
    "latents.npz": ["decode {}/runs/run {}/latents.npz --out {}/new.png"],
    "set.npz": ["reconstruct {}/runs/run --data npz --path {}/set.npz --num 4 --out {}/new.png"],
    "pictures/3.png": ["reconstruct {}/runs/run {}/pictures --out {}/new.png"],
    ".resvae/*": [
        "fit --config {}/config.yaml --runs {}/runs --name again --data.name npz --data.path {}/set.npz"
        " --data.cache true --data.limit null --data.validation 4"
    ],
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one of the things done to it that disks, networks and editors do."""
    a, b = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    b = min(b, a + 4096) if rng.random() < 0.5 else b
    words = [
        b"null",
        b"-1",
        b"[]",
        b"{}",
        b"1e999",
        b"'",
        b'"',
        b"\x00",
        b"true",
        b"99999999999",
        b"\n\t- x: [",
        b"\xff",
    ]
    flipped = bytearray(content)
    for _ in range(rng.choice([1, 3, 30])):
        if flipped:
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    lines = content.split(b"\n")
    del lines[rng.randrange(len(lines))]
    return rng.choice(
        [
            b"",
            content[:a],
            content[a:],
            content[:a] + bytes(b - a) + content[b:],
            content[:a] + rng.randbytes(b - a) + content[b:],
            content[:a] + content[b:],
            content[:b] + content[a:],
            content[:a] + rng.choice(words) + content[a:],
            content[:a] + rng.choice(words) + content[a + 4 :],
            bytes(flipped),
            bytes(flipped),
            b"\n".join(lines),
            rng.randbytes(300),
        ]
    )


def contents(folder: Path) -> dict[str, str]:
    """Every file with a digest of what it holds; a lock is written while a run is looked at."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def outcome(line: str) -> tuple[int, str]:
    """The code of a command, and what it said of errors."""
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error), warnings.catch_warnings():
        warnings.filterwarnings("default", ".*the images are read again")  # which a damaged cache may do
        code = main(line.split())
    return code, "".join(line for line in error.getvalue().splitlines(True) if "it/s]" not in line)


def try_out(whole: Path, folder: Path, name: str, content: Callable[[bytes], bytes], which: int) -> int:
    """Run one of the readers of a file with other content; its code, once what must hold has been checked."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (file,) = sorted(folder.glob(name))[:1]
    file.write_bytes(content(file.read_bytes()))
    before = contents(folder)
    readers = READERS[name]
    line = readers[which % len(readers)].format(*[folder] * 4)
    code, error = outcome(line)
    assert code in (0, 2), (line, code, error)
    if code == 2:
        assert error.startswith("resvae: error: "), (line, error)
        assert error.count("\n") == 1, (line, error)
        after = contents(folder)
        assert {path for path in before if before[path] != after.get(path)} == set(), line
    return code


def code_of_a_try(whole: Path, folder: Path, seed: int) -> int:
    """A file in turn, damaged in a way of its own."""
    name, rng = list(READERS)[seed % len(READERS)], random.Random(seed)
    return try_out(whole, folder, name, lambda content: damaged(content, rng), seed // len(READERS))


@pytest.mark.parametrize("seed", range(2 * len(READERS)))
def test_a_damaged_file_is_refused_in_a_line_or_does_no_harm(whole, tmp_path, seed):
    code_of_a_try(whole, tmp_path / "copy", seed)


@pytest.mark.slow
def test_many_damaged_files_are(whole, tmp_path, capsys):
    codes = Counter(code_of_a_try(whole, tmp_path / "copy", seed) for seed in range(NUM_SLOW))
    with capsys.disabled():
        print(f"\n{NUM_SLOW} damaged files, seeds from 0: {codes[2]} refused in a line, {codes[0]} did no harm")
    assert min(codes[2], codes[0]) > 100


@pytest.mark.parametrize(
    "content", [b"[1]", b'{"ended": "x"}', b'{"ended": 1, "epochs": "2", "steps": [], "seconds": {}}']
)
def test_json_that_is_no_summary_is_taken_for_none(whole, tmp_path, content):
    codes = [try_out(whole, tmp_path / "copy", "runs/run/summary.json", lambda _: content, which) for which in range(3)]
    assert codes == [0, 2, 0]  # pictures are drawn, nothing is exported without figures, training goes on


class Ran:
    """Pickled, it writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["runs/run/checkpoints/best.ckpt", "runs/broken/checkpoints/interrupted.ckpt"])
def test_a_checkpoint_with_code_in_it_runs_nothing(whole, tmp_path, name):
    mark = tmp_path / "ran"

    def poisoned(content: bytes) -> bytes:
        holder = io.BytesIO()
        torch.save(torch.load(io.BytesIO(content), weights_only=True) | {"extra": Ran(mark)}, holder)
        return holder.getvalue()

    for which in range(2):
        assert try_out(whole, tmp_path / "copy", name, poisoned, which) == 2
        assert try_out(whole, tmp_path / "copy", name, lambda _: pickle.dumps(Ran(mark)), which) == 2
    assert not mark.exists()


@pytest.mark.parametrize("name", ["latents.npz", "set.npz"])
def test_arrays_with_code_in_them_run_nothing(whole, tmp_path, name):
    mark, holder = tmp_path / "ran", io.BytesIO()
    coded = np.array([Ran(mark)], object)
    arrays = dict(np.load(whole / name)) | {"images": coded, "mean_00": coded}
    np.savez(holder, **arrays)
    assert try_out(whole, tmp_path / "copy", name, lambda _: holder.getvalue(), 0) == 2
    assert not mark.exists()


@pytest.mark.parametrize("name", ["runs/run/config.yaml", "model/config.yaml"])
def test_a_configuration_with_code_in_it_runs_nothing(whole, tmp_path, name):
    mark = tmp_path / "ran"
    line = f"data: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]\n"
    for which in range(3):
        assert try_out(whole, tmp_path / "copy", name, lambda content: content + line.encode(), which) == 2
    assert not mark.exists()
