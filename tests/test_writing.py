"""Files are written whole or not at all: models, checkpoints, and whatever else."""

import errno
import fcntl
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from resvae.errors import ResvaeError
from resvae.evaluation.grids import save_grid
from resvae.files import write_atomically, write_figure
from resvae.models import VAE
from resvae.storage import load, save
from resvae.training.checkpoints import AtomicCheckpointIO


@contextmanager
def full_disk(room=2000):
    """Every file may grow to ``room`` bytes: a real failure in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_space(path):
    Path(path).write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def write(temporary):
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # one filesystem, so that replacing is one step

    write_atomically(path, write)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_the_disk_has_it_before_its_name_points_at_it(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):  # as Windows does it: not for a file that is open for reading alone
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_RDWR
        synced.append((tmp_path / "file").exists())

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "file", lambda path: path.write_text("all of it"))
    assert synced == [False]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), RuntimeError()])
def test_a_failed_write_keeps_the_old_file(error, tmp_path):
    path = tmp_path / "file"

    def write(temporary):
        temporary.write_text("half")
        raise error

    for old in (None, "old"):
        if old:
            path.write_text(old)
        with pytest.raises(type(error)):
            write_atomically(path, write)
        assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_a_full_disk_keeps_the_saved_model(tmp_path):
    a, b = (VAE((1, 1), 4, (3, 8, 8), (8, 16), (1, 2)) for _ in range(2))
    save(a, tmp_path)
    with full_disk(), pytest.raises(ResvaeError, match="could not be written"):
        save(b, tmp_path)
    assert torch.equal(load(tmp_path).head.weight, a.head.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("failure", ["no space", "full disk"])
def test_checkpoints_survive_a_full_disk(failure, tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    new = {"a": torch.zeros(10_000), "epoch": 2}
    with full_disk(), pytest.raises(ResvaeError, match="could not be written") as caught:
        io.save_checkpoint(new, path)
    assert "kept" not in str(caught.value)
    assert not list(path.parent.iterdir())
    io.save_checkpoint({"a": torch.arange(3), "epoch": 1}, path)
    if failure == "no space":
        monkeypatch.setattr(torch, "save", lambda _, file: no_space(file))
        with pytest.raises(ResvaeError, match=r"last\.ckpt could not be written .*No space left.*kept") as caught:
            io.save_checkpoint(new, path)
    else:
        with full_disk(), pytest.raises(ResvaeError, match=r"last\.ckpt could not be written.*kept") as caught:
            io.save_checkpoint(new, path)
    assert "\n" not in str(caught.value)
    checkpoint = io.load_checkpoint(path)
    assert checkpoint["epoch"] == 1
    assert torch.equal(checkpoint["a"], torch.arange(3))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_checkpoint_io_round_trip(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "deep" / "er" / "a.ckpt"
    checkpoint = {"state_dict": {"w": torch.randn(3)}, "rng": torch.get_rng_state(), "hyper": {"lr": 1e-3, "b": (1, 2)}}
    io.save_checkpoint(checkpoint, str(path))
    back = io.load_checkpoint(str(path))
    assert torch.equal(back["state_dict"]["w"], checkpoint["state_dict"]["w"])
    assert torch.equal(back["rng"], checkpoint["rng"])
    assert back["hyper"] == checkpoint["hyper"]
    with pytest.raises(ResvaeError, match="does not exist"):
        io.load_checkpoint(tmp_path / "none.ckpt")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp"])
def test_a_picture_is_whole_or_that_of_before(tmp_path, name):
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = save_grid(images[:1], tmp_path / name).read_bytes()
    with full_disk(300), pytest.raises(OSError, match="File too large"):
        save_grid(images, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
    save_grid(images, tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        picture.load()
        assert picture.width == 4 * 34 + 2


@pytest.mark.parametrize("name", ["a.png", "a.pdf", "a.svg"])
def test_a_figure_is_whole_or_that_of_before(tmp_path, name):
    figure = Figure()
    figure.subplots().plot([1, 2])
    (tmp_path / name).write_text("before")
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        write_figure(tmp_path / name, figure)
    assert (tmp_path / name).read_text() == "before"
    write_figure(tmp_path / name, figure)
    assert (tmp_path / name).stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) == 1
