"""Sets in a file of pixels: those that memory does not hold, and those whose files take long to read."""

import copy
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from helpers_data import npz
from PIL import Image

from resvae import ImageDataModule
from resvae.data import store
from resvae.data.sources import Images
from resvae.data.store import Stored
from resvae.errors import ResvaeError

NUM = 5000  # more than are read at once


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a set that has more bytes than half of what memory is said to hold."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (NUM, 6, 4, 3), np.uint8)
    path = npz(tmp_path, images=pixels, labels=np.arange(NUM), test_images=pixels[:30], test_labels=np.arange(30))
    monkeypatch.setattr(store, "memory", lambda: pixels.nbytes)
    return {"name": "npz", "path": path, "validation": 100}


def batches(module: ImageDataModule, epoch: int = 1) -> list[torch.Tensor]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
    return [torch.cat([x.flatten(1), y[:, None]], 1) for x, y in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_in_a_file_is_the_set_in_memory(big: dict[str, Any], workers: int) -> None:
    kept = ImageDataModule(**big, flip=True, crop_padding=1, num_workers=workers)
    held = ImageDataModule(**big, flip=True, crop_padding=1, memory_share=10)
    assert isinstance(kept.split("train").x, Stored)
    assert isinstance(held.split("train").x, torch.Tensor)
    assert kept.image_shape == held.image_shape == (3, 6, 4)
    for split in ("train", "val", "test"):
        assert torch.equal(kept.images(split), held.images(split))
        assert torch.equal(kept.images(split, 7), held.images(split)[:7])
        assert torch.equal(kept.labels(split), held.labels(split))
    for a, b in zip(batches(kept), batches(held), strict=True):
        assert torch.equal(a, b)
    for loaders in zip(kept.val_dataloader(), held.val_dataloader(), strict=True):
        assert torch.equal(loaders[0][0], loaders[1][0])


def test_a_limit_and_another_size_are_those_of_memory(big: dict[str, Any]) -> None:
    kept = ImageDataModule(**big, limit=50, image_size=4)
    held = ImageDataModule(**big, limit=50, image_size=4, memory_share=10)
    assert isinstance(kept.split("train").x, Stored)
    assert torch.equal(kept.images("train"), held.images("train"))
    assert kept.num_train == 50


def test_it_is_written_once(big: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = ImageDataModule(**big)
    first.setup()
    monkeypatch.setattr("resvae.data.store.Store.write", lambda *_: pytest.fail("it was written again"))
    assert torch.equal(ImageDataModule(**big).images("train"), first.images("train"))


def test_other_processes_open_the_file_for_themselves(big: dict[str, Any]) -> None:
    module = ImageDataModule(**big)
    x = module.split("test").x
    assert isinstance(x, Stored)
    whole = x.read()
    for other in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert np.array_equal(other.read(), whole)
    assert len(pickle.dumps(module.split("train"))) < 3 * 8 * NUM  # no pixels: rows and labels


def test_a_file_cut_short_is_no_crash_but_a_line(big: dict[str, Any]) -> None:
    x = ImageDataModule(**big).split("test").x
    assert isinstance(x, Stored)
    x.path.write_bytes(x.path.read_bytes()[:-10])
    with pytest.raises(ResvaeError, match="was cut short while it was in use"):
        x.read()


def test_what_does_not_fit_on_the_disk_is_refused(big: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**10}))
    with pytest.raises(ResvaeError, match=r"cannot be written \(it needs 0\.0 GiB, and 0\.0 GiB are free\)"):
        ImageDataModule(**big).setup()
    assert list(Path(big["path"]).parent.glob(".resvae/*")) == []
    with pytest.warns(UserWarning, match="nothing is cached"):
        ImageDataModule(**big, memory_share=10, cache=True).setup()


def test_an_npz_can_be_cached_as_well(big: dict[str, Any]) -> None:
    first, again = (ImageDataModule(**big, memory_share=10, cache=True) for _ in range(2))
    assert torch.equal(first.images("train"), again.images("train"))
    assert isinstance(again.split("train").x, torch.Tensor)
    assert len(list(Path(big["path"]).parent.glob(".resvae/*.uint8"))) == 1


def test_memory_is_what_a_container_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(store, "CGROUP_LIMIT", limit)
    machine = store.memory()
    limit.write_text("max\n")
    assert store.memory() == machine > 2**20
    limit.write_text("1048576\n")
    assert store.memory() == 2**20


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_in_a_file_is_the_folder_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 256, (5, 4) if mode == "L" else (5, 4, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    arguments: dict[str, Any] = {"name": "folder", "path": str(tmp_path), "validation": 3}
    held = ImageDataModule(**arguments)
    held.setup()
    monkeypatch.setattr(store, "memory", lambda: 100)
    kept = ImageDataModule(**arguments)
    assert isinstance(kept.split("train").x, Stored)
    assert kept.image_shape == held.image_shape == (1 if mode == "L" else 3, 5, 4)
    for split in ("train", "val", "test"):
        assert torch.equal(kept.images(split), held.images(split))


def test_a_disk_that_fills_up_while_a_cache_is_written_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / f"{i:02d}.png")

    def full(path: Path, write: Any) -> None:
        write(tmp_path / "partly")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_atomically", full)
    module = ImageDataModule("folder", path=str(tmp_path), cache=True, validation=2)
    with pytest.warns(UserWarning, match="No space left on device"):
        module.setup()
    seen = torch.cat([module.images(split) for split in ("train", "val", "test")])[:, 0, 0, 0]
    assert sorted(seen.tolist()) == list(range(12))
    assert len(torch.cat([module.labels(split) for split in ("train", "val", "test")])) == 12


class TestImageNet:
    """The published batches of down-sampled ImageNet."""

    @staticmethod
    def publish(folder: Path, size: int = 8, batches: int = 10, each: int = 12) -> np.ndarray:
        """Write the files; returns all training rows."""
        rng = np.random.default_rng(1)
        rows = rng.integers(0, 256, (batches * each, 3 * size**2), np.uint8)
        (folder / "train").mkdir(parents=True)
        for i in range(batches):
            part = slice(i * each, (i + 1) * each)
            arrays = {"data": rows[part], "labels": np.arange(each) + 1, "mean": rows[0].astype(float)}
            np.savez_compressed(folder / "train" / f"train_data_batch_{i + 1}.npz", **arrays)
        np.savez(folder / "val_data.npz", data=rows[:20], labels=[1000] * 20)
        return rows

    @pytest.mark.parametrize("cache", [False, True])
    def test_they_are_read_as_they_come(self, tmp_path: Path, cache: bool) -> None:
        rows = self.publish(tmp_path)
        module = ImageDataModule("imagenet", path=str(tmp_path), validation=5, seed=3, cache=cache)
        found = torch.cat([module.images("train"), module.images("val")]).flatten(1)
        order = np.lexsort(rows.T)
        assert np.array_equal(found.numpy()[np.lexsort(found.numpy().T)], rows[order])
        assert (module.image_shape, module.num_train, module.num_val, module.num_test) == ((3, 8, 8), 115, 5, 20)
        assert torch.equal(module.images("test").flatten(1), torch.from_numpy(rows[:20]))
        assert set(module.labels("train").tolist()) == set(range(12))
        assert module.num_classes == 1000

    @pytest.mark.parametrize(
        ("file", "arrays", "message"),
        [
            ("val_data.npz", None, r"holds no val_data\.npz"),
            ("val_data.npz", {"data": np.zeros((2, 192), np.uint8)}, "holds no array named labels"),
            ("val_data.npz", {"data": np.zeros((2, 190), np.uint8), "labels": [1, 2]}, r"data of shape \(2, 190\)"),
            ("val_data.npz", {"data": np.zeros((2, 192), np.uint8), "labels": [1]}, "and 1 labels"),
            ("val_data.npz", {"data": np.zeros((2, 768), np.uint8), "labels": [1, 2]}, "16x16 and 8x8 pixels"),
            ("val_data.npz", {"data": np.zeros((2, 192)), "labels": [1, 2]}, "are float64; they must be uint8"),
        ],
    )
    def test_what_is_no_such_batch_is_refused(self, tmp_path: Path, file: str, arrays: Any, message: str) -> None:
        self.publish(tmp_path, batches=1)
        (tmp_path / file).unlink()
        if arrays is not None:
            np.savez(tmp_path / file, **arrays)
        with pytest.raises(ResvaeError, match=message) as caught:
            ImageDataModule("imagenet", path=str(tmp_path)).setup()
        assert "\n" not in str(caught.value)


def test_a_slice_in_memory_is_no_copy() -> None:
    images = Images(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
    images.pixels(slice(2))[:] = 7
    assert isinstance(images.x, torch.Tensor)
    assert (images.x[:2] == 7).all()
    assert (images.x[2:] == 0).all()


MILLIONS = """
import resource, sys, time
from resvae import ImageDataModule
begun = time.perf_counter()
module = ImageDataModule("npz", path=sys.argv[1], validation=10000, batch_size=128, flip=True, memory_share=1e-3)
module.setup()
read = time.perf_counter() - begun
begun = time.perf_counter()
loader = module.train_dataloader()
batches = iter(loader)
seen = sum(len(next(batches)[0]) for _ in range(4000))
print(f"{read:.0f} s to read, then {seen / (time.perf_counter() - begun):,.0f} images/s")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.disk_usage("/tmp").free < 20 * 2**30, reason="needs 20 GiB of disk")
def test_three_million_images_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    path, part, parts = tmp_path / "set.npz", 10_000, 300
    rng = np.random.default_rng(0)
    with ZipFile(path, "w") as file, file.open("images.npy", "w", force_zip64=True) as stream:
        about = {"descr": "|u1", "fortran_order": False, "shape": (part * parts, 3, 32, 32)}
        np.lib.format.write_array_header_1_0(stream, about)
        for _ in range(parts):
            stream.write(rng.bytes(part * 3 * 32 * 32))
    run = subprocess.run([sys.executable, "-c", MILLIONS, path], capture_output=True, text=True, check=True)
    said, kib = run.stdout.strip().splitlines()
    print(said)
    assert int(kib) < 2**20
