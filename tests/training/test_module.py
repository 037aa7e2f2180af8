"""One training step and what surrounds it: skipping, clipping, weights of the KL, noise, the running average."""

import copy
import math
import threading
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
from helpers_runs import read, train
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from resvae.data import ImageDataModule
from resvae.errors import ResvaeError
from resvae.models import VAE
from resvae.networks import BlockConfig
from resvae.probability import KlSchedule, weighted_elbo
from resvae.storage import load, save
from resvae.training.guard import GradientGuard
from resvae.training.means import Means
from resvae.training.module import LitVAE
from resvae.training.muon import Muon
from resvae.training.schedule import Schedule
from resvae.training.summary import Summary

CONSTANT = Schedule("constant", warmup_steps=0)
pytestmark = pytest.mark.filterwarnings("ignore::resvae.training.guard.GradientWarning", "ignore:.*many workers.*")


def tiny(**options) -> LitVAE:
    torch.manual_seed(0)
    vae = VAE(depth=(1, 1), latent_dim=4, image_shape=(1, 8, 8), widths=(8, 8), strides=(1, 2))
    return LitVAE(vae, **{"precision": "fp32", "schedule": CONSTANT, **options})


def digits() -> ImageDataModule:
    return ImageDataModule("digits", batch_size=32, validation=50, limit=96)


def fit(model: LitVAE, *callbacks: Callback, **options) -> pl.Trainer:
    return train(model, digits(), *callbacks, **options)


def state(model: LitVAE) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.vae.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


class Spoil(Callback):
    """Multiplies the gradients of one update; notes weights and optimiser around each."""

    def __init__(self, step: int, factor: float):
        self.step, self.factor = step, factor
        self.weights, self.optimizers = [], []

    def on_after_backward(self, trainer, pl_module):
        if len(self.weights) == self.step:
            for parameter in pl_module.parameters():
                parameter.grad *= self.factor

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(state(pl_module))
        self.optimizers.append(copy.deepcopy(trainer.optimizers[0].state_dict()["state"]))


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    monkeypatch.setattr("resvae.training.base.reading_waits", lambda device: True)


OPTIMIZERS = {
    "AdamW": AdamW,
    "AdamW in one kernel": lambda p: AdamW(p, fused=True),
    "SGD in one kernel": lambda p: SGD(p, 1e-3, momentum=0.9, fused=True),
    "Muon": Muon,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_accelerator_trains_and_skips_as_a_cpu_does(optimizer, monkeypatch):
    def trained():
        model, spoil = tiny(ema_decay=0, optimizer=optimizer), Spoil(2, math.nan)
        trainer = fit(model, spoil, max_epochs=2)
        names = ("train/grad_norm", "train/skipped_updates", "train/loss")
        return spoil.weights, model.guard.state(), {name: trainer.callback_metrics[name] for name in names}

    here = trained()
    monkeypatch.setattr("resvae.training.base.reading_waits", lambda device: True)
    there = trained()
    torch.testing.assert_close(there[0], here[0])
    assert same(there[0][1], there[0][2])
    assert not same(there[0][2], there[0][3])
    assert there[1] == pytest.approx(here[1], rel=1e-4, nan_ok=True)
    torch.testing.assert_close(there[2], here[2])


def test_an_accelerator_gives_up_where_nothing_is_finite(as_on_an_accelerator):
    model = tiny(optimizer=Muon)
    model.guard = GradientGuard(non_finite_in_a_row=198)
    with pytest.raises(ResvaeError, match="200 updates in a row"):
        fit(model, *(Spoil(step, math.nan) for step in range(3)))  # a whole epoch
    assert all(value.isfinite().all() for value in model.vae.state_dict().values())


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_skipped_update_leaves_weights_and_optimizer_as_they_were(factor, optimizer, as_on_an_accelerator):
    check_skipped(factor, optimizer)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_cpu_skips_the_same_way(factor):
    check_skipped(factor, AdamW)


def check_skipped(factor, optimizer):
    model, spoil = tiny(ema_decay=0, optimizer=optimizer), Spoil(2, factor)
    trainer = fit(model, spoil, max_epochs=2)
    before, after, later = spoil.weights[1:4]
    assert same(before, after)
    assert not same(after, later)  # and training goes on
    for parameter, values in spoil.optimizers[1].items():
        assert all(torch.equal(value, spoil.optimizers[2][parameter][key]) for key, value in values.items())
    assert any(
        not torch.equal(value, spoil.optimizers[3][parameter][key])
        for parameter, values in spoil.optimizers[2].items()
        for key, value in values.items()
    )
    assert model.guard.skipped == 1
    assert trainer.callback_metrics["train/skipped_updates"] == 1
    assert trainer.callback_metrics["train/grad_norm"].isfinite()


def test_a_batch_of_nan_does_not_poison_the_weights():
    class Nan(LitVAE):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.nan if batch_idx == 1 else 1)

    model = tiny()
    model.__class__ = Nan
    trainer = fit(model)
    assert model.guard.skipped == 1
    assert all(value.isfinite().all() for value in model.vae.state_dict().values())
    assert trainer.callback_metrics["val/loss"].isfinite()


def test_an_explosion_is_skipped_in_training():
    model = tiny(ema_decay=0)
    model.guard = GradientGuard(mean=math.log(50.0), variance=0.01, seen=500)
    spoil = Spoil(2, 1e6)
    fit(model, spoil)
    assert same(spoil.weights[1], spoil.weights[2])
    assert model.guard.skipped == 1


@pytest.mark.parametrize(("clip_norm", "expected"), [(0.5, 0.5), (1e9, None)])
def test_the_gradient_is_clipped_to_its_norm(clip_norm, expected):
    # plain descent with rate 1 moves the weights by exactly the gradient
    model = tiny(ema_decay=0, clip_norm=clip_norm, optimizer=lambda p: SGD(p, lr=1.0))
    before = state(model)
    trainer = fit(model, max_steps=1)
    moved = math.sqrt(sum((after - before[name]).square().sum() for name, after in state(model).items()))
    norm = trainer.callback_metrics["train/grad_norm"].item()  # as it was before the clipping
    assert norm > 1
    assert moved == pytest.approx(expected or norm, rel=1e-3)


def test_kl_weight_and_free_bits_count_in_training_only():
    batch = digits().images("train")[:16]
    plain, weighted = tiny(), tiny(kl=KlSchedule(0.25, 0.25, 10), free_bits=50.0)
    losses, logged = [], []
    for model in (plain, weighted):
        values: dict[str, torch.Tensor] = {}
        model.log_dict = lambda figures, values=values, **_: values.update(figures)
        model.log = lambda name, value, **_: None
        torch.manual_seed(1)
        losses.append(model.training_step((batch, None), 0).item())
        model.validation_step((batch, None), 0)
        model.test_step((batch, None), 0)
        for split in ("train", "val", "test"):
            model.means.log(model, split)
        logged.append({name: value.item() for name, value in values.items()})
    torch.manual_seed(1)
    terms = weighted.vae.elbo(batch)
    assert terms.kl.mean() < 50
    assert losses[0] == pytest.approx(-terms.elbo.mean().item())
    assert losses[1] == pytest.approx(-weighted_elbo(terms, 0.25, 50.0).mean().item())
    assert losses[1] == pytest.approx(-terms.log_likelihood.mean().item() + 12.5)
    assert logged[1].pop("train/kl_weight") == 0.25
    assert logged[0] == logged[1]  # what is logged is the true objective, in training too
    assert logged[1]["train/loss"] == pytest.approx(losses[0])
    assert logged[1]["val/loss"] == -logged[1]["val/elbo"]


def test_the_kl_weight_warms_up_over_the_updates():
    seen = []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(trainer.callback_metrics["train/kl_weight"].item())

    fit(tiny(kl=KlSchedule(0.0, 1.0, 6)), Watch(), max_epochs=3)  # 3 updates an epoch
    assert seen == pytest.approx([1 / 6, 4 / 6, 1.0])


def test_validation_draws_the_same_noise_each_time_and_leaves_the_global_stream_alone():
    model, trainer = tiny(), pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    data = digits()
    before = torch.get_rng_state()
    first = trainer.validate(model, data, verbose=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12345)
    assert trainer.validate(model, data, verbose=False) == first
    # another batch has other noise: the same images as first and as second batch give other figures
    x, figures = data.images("val"), []
    model.log_dict = lambda values, **_: figures.append(values["val/elbo"].item())
    for batch_idx in (0, 1):
        model.validation_step((x, None), batch_idx)
        model.means.log(model, "val")
    assert figures[0] != figures[1]


def test_a_loaded_model_trains_in_train_mode(tmp_path):
    block = BlockConfig(norm="batch", order="full_pre")
    vae = VAE(16, image_shape=(1, 8, 8), widths=(8, 16), strides=(1, 2), likelihood="gaussian", block=block)
    loaded = load(save(vae, tmp_path / "saved"))
    assert not loaded.training
    before = {name: value.clone() for name, value in loaded.named_buffers()}
    fit(LitVAE(loaded, ema_decay=0))
    moved = {name for name, value in loaded.named_buffers() if not torch.equal(value, before[name])}
    assert moved == before.keys() - {name for name in before if "spread" in name}


def test_the_average_copies_neither_data_nor_trainer():
    data = digits()
    data.lock = threading.Lock()  # pyright: ignore[reportAttributeAccessIssue]  nobody can copy it
    model = tiny(ema_decay=0.5)
    trainer = train(model, data)
    assert trainer.global_step == 3
    assert model.trainer is trainer


def test_an_update_reads_nothing_back_from_an_accelerator(monkeypatch):
    class Accelerator(CPUAccelerator):
        def setup_device(self, device: torch.device) -> None:
            """Any is good."""

    class Strategy(SingleDeviceStrategy):
        """Trains on the device ``meta``, where reading a number is an error."""

        def teardown(self) -> None:
            """Leave the weights where they are: they cannot be copied."""

        def reduce(self, tensor, *_, **__):
            return torch.ones(())  # Lightning reads whether there are images, once

    class Plain(Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 0.1})

        def step(self, closure=None):
            loss = closure()
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.sub_(p.grad)
            return loss

    class End(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 2:
                raise KeyError("two updates")

    monkeypatch.setattr("resvae.training.base.skips_by_itself", lambda optimizer: True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    strategy = Strategy(torch.device("meta"), Accelerator())
    trainer = pl.Trainer(strategy=strategy, max_epochs=1, num_sanity_val_steps=0, callbacks=[End()], **quiet)
    with pytest.raises(KeyError, match="two updates"):
        trainer.fit(tiny(optimizer=Plain, ema_decay=0.5), digits())


def test_means_are_over_images_however_large_the_batches_and_however_often_they_are_logged():
    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.mean = trainer.callback_metrics["train/loss"].item()

    class Known(LitVAE):
        """Says that each image's loss is the number of the batch, counted from 1."""

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.means = Means() if batch_idx == 0 else self.means
            self.means.add("train", {"loss": torch.tensor(batch_idx + 1.0)}, len(batch[0]))
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 1:
                self.means.log(self, "train")  # in the middle of the epoch, too
            super().on_train_batch_end(outputs, batch, batch_idx)

    model, watch = tiny(), Watch()
    model.__class__ = Known
    model._log = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    train(model, ImageDataModule("digits", batch_size=40, validation=50, limit=96), watch)
    sizes = [40, 40, 16]
    assert watch.mean == pytest.approx(sum((i + 1) * n for i, n in enumerate(sizes)) / sum(sizes))


def test_an_interrupted_validation_is_forgotten():
    class Stop(Exception):
        """Of this test alone."""

    model, trainer = tiny(), pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    data = ImageDataModule("digits", batch_size=32, validation=100, limit=96)
    whole = trainer.validate(model, data, verbose=False)
    evaluate = model.evaluate

    def interrupted(split, batch, batch_idx):
        evaluate(split, batch, batch_idx)
        raise Stop

    model.evaluate = interrupted
    with pytest.raises(Stop):
        trainer.validate(model, data, verbose=False)
    model.evaluate = evaluate
    assert trainer.validate(model, data, verbose=False) == whole


def test_how_often_one_validates_does_not_change_training():
    often, seldom = tiny(ema_decay=0), tiny(ema_decay=0)
    for model, every in ((often, 1), (seldom, 3)):
        pl.seed_everything(0, verbose=False)
        fit(model, max_epochs=3, check_val_every_n_epoch=every)
    assert same(state(often), state(seldom))


def test_the_average_is_the_one_computed_by_hand_with_its_warm_up():
    class Follow(Callback):
        """The recursion written out; and what validation sees."""

        def __init__(self):
            self.n, self.average, self.current, self.validated = 0, {}, {}, None

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.current = state(pl_module)
            if self.n == 0:  # the first update starts the average
                self.average = copy.deepcopy(self.current)
            else:
                decay = min(0.6, (1 + self.n) / (10 + self.n))
                for name, value in self.current.items():
                    self.average[name] = decay * self.average[name] + (1 - decay) * value
            self.n += 1

        def on_validation_batch_end(self, trainer, pl_module, *_):
            self.validated = state(pl_module)

    follow, model = Follow(), tiny(ema_decay=0.6)  # the warm-up reaches .6 at the 13th update
    fit(model, follow, max_epochs=6)
    assert follow.n == 18
    final = state(model)  # after training the model holds the average
    for name, value in follow.average.items():
        torch.testing.assert_close(final[name], value, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(follow.validated[name], value, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(final["head.weight"], follow.current["head.weight"], atol=1e-5)


def test_a_run_that_cannot_improve_ends_after_its_patience_and_says_so(tmp_path, capsys):
    stopping = EarlyStopping("val/loss", min_delta=0.1, patience=3)
    model, summary = tiny(ema_decay=0, optimizer=lambda p: AdamW(p, lr=0.0)), Summary(tmp_path)
    trainer = fit(model, stopping, summary, max_epochs=50)
    assert trainer.current_epoch == 4  # the first, and three without progress
    written = read(tmp_path / "summary.json")
    assert written["ended"] == "early stopping: val/loss did not improve by more than 0.1 for 3 epochs"
    assert (written["epochs"], written["epoch"]) == (4, 1)
    assert written["ended"] in summary.text()
    assert written["parameters"] == sum(p.numel() for p in model.parameters())
    assert "epoch    4 |" in capsys.readouterr().out


def test_a_run_whose_validation_is_not_finite_says_that(tmp_path):
    class Broken(LitVAE):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", math.nan, batch_size=1)

    model = tiny(ema_decay=0)
    model.__class__ = Broken
    fit(model, EarlyStopping("val/loss", patience=3), Summary(tmp_path), max_epochs=5)
    ended = read(tmp_path / "summary.json")["ended"]
    assert ended.startswith("early stopping: Monitored metric val/loss = nan is not finite")


def test_plateau_halves_the_rate_when_validation_stalls():
    plateau = Schedule("plateau", warmup_steps=0, patience=1, min_lr=0.0)
    model = tiny(ema_decay=0, schedule=plateau, optimizer=lambda p: SGD(p, lr=1e-30))
    trainer = fit(model, max_epochs=3)  # the first epoch is the best; the third is the second without progress
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-31)


@pytest.mark.parametrize(
    ("name", "value"), [("ema_decay", 1.0), ("clip_norm", 0.0), ("free_bits", -1.0), ("precision", "bf-16")]
)
def test_a_bad_value_is_refused_by_name(name, value):
    with pytest.raises(ResvaeError, match=f"{name}: {value!r} is not allowed"):
        tiny(**{name: value})


def test_bf16_keeps_likelihood_and_weights_in_float32():
    model = tiny(precision="bf16")
    dtypes = []
    model.vae.decoder.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    terms = model.compute("train", digits().images("train")[:4])
    assert dtypes == [torch.bfloat16]
    assert terms.log_likelihood.dtype == terms.kl.dtype == torch.float32
    assert {p.dtype for p in model.parameters() if isinstance(p, nn.Parameter)} == {torch.float32}
