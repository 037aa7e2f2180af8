"""The stream of batches: complete, augmented as said, and decided by seed and epoch alone."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import rows, same

from resvae.data import ImageDataModule
from resvae.data.module import EpochSampler, EvaluationSampler, ImageDataset, crop
from resvae.data.sources import Images


def numbered(n: int, size: int = 8) -> Images:
    """Images that all differ: image i is full of value i + 1, its label is i."""
    x = torch.arange(1, n + 1, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 2, size, size).contiguous()
    return Images(x, torch.arange(n))


def batches_of(images: Images, **options: Any) -> Any:
    module = ImageDataModule("digits", **options)
    module._sets = {"train": images}
    return module.train_dataloader()


def test_batches_are_uint8_whole_and_last_one_smaller() -> None:
    module = ImageDataModule("digits", batch_size=100, validation=200, eval_batch_size=150)
    batches = list(module.train_dataloader())
    assert [len(x) for x, _ in batches] == [100] * 12 + [98]
    assert ImageDataModule("digits", batch_size=100).eval_batch_size == 200
    assert all(x.dtype == torch.uint8 and y.dtype == torch.int64 for x, y in batches)
    assert sorted(rows(torch.cat([x for x, _ in batches]))) == sorted(rows(module.images("train")))
    for split, loader in (("val", module.val_dataloader()), ("test", module.test_dataloader())):
        x, y = (torch.cat(part) for part in zip(*loader, strict=True))
        assert torch.equal(x, module.images(split))
        assert torch.equal(y, module.labels(split))


@pytest.mark.parametrize(("batch_size", "sizes"), [(1297, [1297]), (1, [1] * 1298), (1298, [1298]), (1299, [1298])])
def test_one_image_left_alone_is_left_out(batch_size: int, sizes: list[int]) -> None:
    module = ImageDataModule("digits", batch_size=batch_size, validation=200)
    assert [len(x) for x, _ in module.train_dataloader()] == sizes


def test_labels_stay_with_their_images_and_batches_share_no_memory_with_the_set() -> None:
    images = numbered(50)
    for x, y in batches_of(images, flip=True, batch_size=8):
        assert torch.equal(x[:, 0, 0, 0].long(), y + 1)
        x.zero_()
        y.zero_()
    assert same([images.x, images.y], [numbered(50).x, numbered(50).y])


def test_crop_is_a_window_of_the_padded_image_each_as_likely() -> None:
    height, width, padding, batch = 4, 6, 2, 5000
    image = np.arange(1, 2 * height * width + 1, dtype=np.uint8).reshape(2, height, width)
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    corners = np.ndindex(2 * padding + 1, 2 * padding + 1)
    windows = {padded[:, top : top + height, left : left + width].tobytes(): (top, left) for top, left in corners}
    top, left = np.random.default_rng(0).integers(0, 2 * padding + 1, (2, batch))
    out = crop(np.broadcast_to(image, (batch, *image.shape)), padding, top, left)
    assert [windows[each.tobytes()] for each in out] == list(zip(top, left, strict=True))
    drawn = repeated(torch.from_numpy(image)[None], batch, crop_padding=padding)
    places = np.array([windows[each.numpy().tobytes()] for each in drawn])
    counts = np.histogram2d(places[:, 0], places[:, 1], bins=5)[0]
    assert np.abs(counts - batch / 25).max() < 5 * np.sqrt(batch / 25)


@pytest.mark.parametrize("augmentation", [{}, {"crop_padding": 2}, {"flip": True}, {"crop_padding": 1, "flip": True}])
def test_batches_made_on_a_device_are_the_same(augmentation: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = Images(torch.randint(256, (40, 3, 6, 4), dtype=torch.uint8, generator=generator), torch.arange(40))
    here = ImageDataset(images, seed=3, **augmentation)
    there = ImageDataset(images, seed=3, device=torch.device("cpu"), **augmentation)
    there.epoch = here.epoch = 2
    for indices in ([5], [7, 3, 39, 7], list(range(40))):
        assert same(here.__getitems__(indices), there.__getitems__(indices))
    x, y = ImageDataset(images, device=torch.device("meta"), **augmentation).__getitems__([1, 2])
    assert (x.device.type, y.device.type, x.shape) == ("meta", "meta", (2, 3, 6, 4))
    x, _ = there.__getitems__([1, 2])
    x.zero_()
    assert not same([there.__getitems__([1])[0]], [torch.zeros(1, 3, 6, 4, dtype=torch.uint8)])


def test_images_that_fit_on_an_accelerator_are_kept_there_and_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(free: float, **options: Any) -> tuple[bool, list[torch.Tensor]]:
        monkeypatch.setattr("resvae.data.module.free_memory", lambda device: free)
        module = ImageDataModule("digits", limit=96, batch_size=32, crop_padding=1, flip=True, **options)
        loader: Any = module.train_dataloader()
        return loader.dataset.there is not None, [x for x, _ in loader]

    size = 96 * 64
    assert not seen(3.9 * size)[0]
    assert seen(4.1 * size)[0]
    assert not seen(4.1 * size, num_workers=1)[0]
    assert same(seen(0)[1], seen(4.1 * size)[1])


def repeated(image: torch.Tensor, num: int, **augmentation: Any) -> torch.Tensor:
    """A batch of one image, each time augmented."""
    dataset = ImageDataset(Images(image.repeat(num, 1, 1, 1), torch.zeros(num).long()), **augmentation)
    return dataset.__getitems__(list(range(num)))[0]


def test_flip_mirrors_half() -> None:
    image = torch.arange(24, dtype=torch.uint8).view(1, 2, 3, 4)
    x = repeated(image, 2000, flip=True)
    mirrored = (x == image.flip(-1)).flatten(1).all(1)
    assert ((x == image).flatten(1).all(1) ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 0.05


def test_crop_and_flip_are_drawn_apart() -> None:
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5)
    assert len(set(rows(repeated(image, 500, crop_padding=1, flip=True)))) == 18  # 9 places, mirrored or not


def epoch(module: ImageDataModule, number: int) -> list[torch.Tensor]:
    loader: Any = module.train_dataloader()
    loader.sampler.set_epoch(number)
    return [x for x, _ in loader]


def test_only_seed_and_epoch_decide_the_batches() -> None:
    make: dict[str, Any] = {"name": "digits", "limit": 300, "crop_padding": 2, "flip": True, "batch_size": 64}
    torch.manual_seed(0)
    first = epoch(ImageDataModule(**make), 3)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the very stream that must not matter
    assert same(first, epoch(ImageDataModule(**make), 3))
    assert same(first, epoch(ImageDataModule(**make, num_workers=2), 3))
    assert not same(first, epoch(ImageDataModule(**make), 4))
    assert not same(first, epoch(ImageDataModule(**make, seed=1), 3))


def test_augmentation_changes_from_epoch_to_epoch() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    loader = batches_of(Images(image, torch.zeros(1).long()), crop_padding=3, flip=True, batch_size=1)
    drawn = []
    for number in (*range(20), 5):
        loader.sampler.set_epoch(number)
        drawn += [rows(x)[0] for x, _ in loader]
    assert len(set(drawn)) > 10
    assert drawn[-1] == drawn[5]


def test_the_global_random_stream_is_left_alone() -> None:
    module = ImageDataModule("digits", crop_padding=2, flip=True)
    before, legacy = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == legacy  # noqa: NPY002


def test_ranks_share_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        sampler = EpochSampler(ImageDataset(numbered(40)))
        sampler.set_epoch(2)
        shares.append(set(sampler))
    assert [len(share) for share in shares] == [10] * 4
    assert set.union(*shares) == set(range(40))


def test_start_is_asked_when_an_epoch_begins() -> None:
    whole = list(EpochSampler(ImageDataset(numbered(20))))
    starts = [13, 0]
    sampler = EpochSampler(ImageDataset(numbered(20)), lambda: starts.pop(0))
    assert list(sampler) == whole[13:]
    assert list(sampler) == whole


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("num", [5, 7, 16, 31, 61, 100])
@pytest.mark.parametrize("wanted", [2, 3, 10, 200])
def test_processes_share_evaluation_without_an_image_twice(processes, num, wanted):
    dataset = ImageDataset(Images(torch.zeros(num, 1, 2, 2, dtype=torch.uint8), torch.arange(num)))
    samplers = [EvaluationSampler(dataset, num_replicas=processes, rank=rank) for rank in range(processes)]
    assert sorted(i for sampler in samplers for i in sampler) == list(range(num))
    sizes = {sampler.batch_size(wanted) for sampler in samplers}
    assert len(sizes) == 1
    size = sizes.pop()
    batches = {-(-len(sampler) // size) for sampler in samplers}
    assert len(batches) == 1
    assert size <= max(wanted, 1 + num // processes)
