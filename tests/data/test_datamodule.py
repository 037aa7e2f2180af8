"""``ImageDataModule``: splits, refusals, and runs that are broken and resumed."""

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers_data import GREY, npz, same
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch.utils.data import DistributedSampler

from resvae.data import ImageDataModule
from resvae.data.module import EpochSampler, ImageDataset
from resvae.data.sources import Images
from resvae.errors import ResvaeError


def test_split_is_a_partition_that_the_seed_decides(tmp_path: Path) -> None:
    path = npz(tmp_path, images=GREY.repeat(5, 0), labels=np.arange(100))
    split = {seed: ImageDataModule("npz", path=path, validation=20, seed=seed) for seed in (0, 1)}
    for module in split.values():
        parts = [set(module.labels(name).tolist()) for name in ("train", "val", "test")]
        assert [len(part) for part in parts] == [70, 20, 10]
        assert set.union(*parts) == set(range(100))
    again = ImageDataModule("npz", path=path, validation=0.2222, seed=0)
    assert torch.equal(again.labels("val"), split[0].labels("val"))
    assert not torch.equal(split[1].labels("val"), split[0].labels("val"))
    assert torch.equal(split[1].labels("test"), split[0].labels("test"))


def test_article_protocol_trains_on_all_and_validates_on_test() -> None:
    module = ImageDataModule("digits", protocol="test_as_validation")
    assert (module.num_train, module.num_val) == (1498, 299)
    assert torch.equal(module.images("val"), module.images("test"))


def test_limit_keeps_validation_and_every_class(tmp_path: Path) -> None:
    path = npz(tmp_path, images=GREY.repeat(5, 0), labels=np.arange(100) // 50)
    full = ImageDataModule("npz", path=path, protocol="test_as_validation")
    few = ImageDataModule("npz", path=path, protocol="test_as_validation", limit=8)
    assert (few.num_train, few.num_val) == (8, full.num_val)
    assert few.labels("train").unique().tolist() == [0, 1]
    assert torch.equal(few.labels("train"), full.labels("train")[:8])


def test_bad_arguments_are_refused_at_once() -> None:
    for arguments, message in (
        ({"name": "cifar11"}, r"data\.name: 'cifar11' is not known; one of cifar10, .*npz"),
        ({"name": "folder"}, r"data\.path: None is not allowed; .* folder needs a path"),
        ({"name": "folder", "path": "/no/such"}, r"data\.path: /no/such does not exist"),
        ({"batch_size": 0}, r"data\.batch_size: 0 is not allowed; at least 1"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size: 0"),
        ({"limit": 0}, r"data\.limit: 0"),
        ({"num_workers": -1}, r"data\.num_workers: -1 .* at least 0"),
        ({"crop_padding": -1}, r"data\.crop_padding: -1"),
        ({"seed": -1}, r"data\.seed: -1"),
        ({"image_size": 0}, r"data\.image_size: 0"),
        ({"protocol": "none"}, r"data\.protocol: 'none'"),
        ({"on_corrupt": "ignore"}, r"data\.on_corrupt: 'ignore'"),
    ):
        with pytest.raises(ResvaeError, match=message):
            ImageDataModule(**{"name": "digits", **arguments})
    with pytest.raises(ResvaeError, match=r"split: 'validation' is not allowed; train, val or test"):
        ImageDataModule("digits").images("validation")  # pyright: ignore[reportArgumentType]


def test_validation_must_leave_images_on_both_sides() -> None:
    for validation in (0, 0.0, 1498, 2000, 1.0, -1, float("nan"), float("inf")):
        with pytest.raises(ResvaeError, match=r"data\.validation: .* of 1498 training images"):
            ImageDataModule("digits", validation=validation).setup()


class Recorder(pl.LightningModule):
    """Keeps the batches that it has trained on; its weight depends on all of them, in their order."""

    def __init__(self, fail_at: int | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1, 8, 8))
        self.batches: list[torch.Tensor] = []
        self.fail_at = fail_at

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.fail_at == self.global_step:
            raise KeyboardInterrupt
        self.batches.append(batch[0])
        return (batch[0].float() / 255 - self.weight).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", (batch[0].float() / 255 - self.weight).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 0  # asks for the loader, before any position is restored
        return torch.optim.Adam(self.parameters(), 0.1)


def fit(folder: Path, *callbacks: Any, resume: str | None = None, fail_at: int | None = None, **options: Any):
    """Three epochs of five batches."""
    workers = options.pop("num_workers", 0)
    module = ImageDataModule("digits", 64, None, 1, True, workers, limit=300, validation=100)
    model = Recorder(fail_at)
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, "accelerator": "cpu"} | off | options
    saves = {"callbacks": list(callbacks), "enable_checkpointing": bool(callbacks)}
    trainer = pl.Trainer(default_root_dir=folder, **saves, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        try:
            trainer.fit(model, module, ckpt_path=resume and folder / resume)
        except (KeyboardInterrupt, SystemExit):
            assert fail_at is not None
    return model


def assert_goes_on(resumed: Recorder, whole: Recorder, step: int) -> None:
    """A resumed run sees the batches of the unbroken one from ``step`` on, and ends with its weight."""
    assert same(resumed.batches, whole.batches[step:]), step
    assert torch.equal(resumed.weight, whole.weight), step


WAYS = {"num_workers": 1}, {"limit_train_batches": 4}, {"val_check_interval": 2}, {"max_epochs": -1, "max_steps": 12}


@pytest.mark.parametrize("options", [{}, *WAYS], ids=str)
def test_resumed_run_sees_the_batches_of_an_unbroken_one(tmp_path: Path, options: dict[str, Any]) -> None:
    when: dict[str, Any] = {"every_n_train_steps": 1, "save_on_train_epoch_end": False}
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, enable_version_counter=False, **when)
    whole = fit(tmp_path, saver, **options)
    assert all(not torch.equal(a, b) for a, b in pairwise(whole.batches) if a.shape == b.shape)
    for step in (1, 7, 9) if "num_workers" in options else (1, 3, 4, 5, 6, 8, 9, 10, 11):
        assert_goes_on(fit(tmp_path, resume=f"step={step}.ckpt", **options), whole, step)


def test_end_of_epoch_checkpoint_resumes_with_the_next_epoch(tmp_path: Path) -> None:
    whole = fit(tmp_path, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True))
    assert_goes_on(fit(tmp_path, resume="epoch=1.ckpt"), whole, 10)


@pytest.mark.parametrize("step", [2, 4, 5, 8])
def test_interrupted_step_is_taken_again(tmp_path: Path, step: int) -> None:
    fit(tmp_path, OnExceptionCheckpoint(tmp_path, "broken"), fail_at=step)
    assert_goes_on(fit(tmp_path, resume="broken.ckpt"), fit(tmp_path), step)


def test_after_a_fit_the_loader_is_whole(tmp_path: Path) -> None:
    trainer: Any = fit(tmp_path, max_epochs=1).trainer
    assert len(list(trainer.datamodule.train_dataloader())) == 5


@pytest.mark.parametrize("num_replicas", [1, 2, 3])
@pytest.mark.parametrize("num_images", [7, 12])
def test_the_order_of_an_epoch_is_torch_s_own_for_every_process(num_replicas, num_images):
    x = torch.zeros(num_images, 1, 2, 2, dtype=torch.uint8)
    dataset = ImageDataset(Images(x, torch.zeros(num_images, dtype=torch.long)), seed=5)
    for rank in range(num_replicas):
        whole = DistributedSampler(dataset, num_replicas, rank, shuffle=True, seed=5)
        ours, rest = EpochSampler(dataset), EpochSampler(dataset, lambda: 2)
        for each in (ours, rest):  # as they are where torch.distributed runs
            each.num_replicas, each.rank = num_replicas, rank
            each.num_samples, each.total_size = whole.num_samples, whole.total_size
        for epoch in (0, 3):
            for each in (whole, ours, rest):
                each.set_epoch(epoch)
            assert list(ours) == list(whole)
            assert list(rest) == list(whole)[2:]
