"""The learning rate over time."""

import itertools
import math
from types import SimpleNamespace

import pytest
from helpers_runs import train
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from resvae.data import ImageDataModule
from resvae.errors import ResvaeError
from resvae.models import VAE
from resvae.training.module import LitVAE
from resvae.training.schedule import Schedule


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_warm_up_is_linear_and_never_zero(kind):
    factor = Schedule(kind, warmup_steps=4).at(1000)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert Schedule(kind, warmup_steps=0).at(10)(0) == 1  # without, the first update has the whole rate


def test_constant_stays_even_without_an_end():
    assert [Schedule("constant", warmup_steps=2).at(math.inf)(step) for step in (2, 10, 10**6)] == [1, 1, 1]


def test_cosine_is_half_way_at_half_time_and_ends_where_it_should():
    factor = Schedule("cosine", warmup_steps=10, final=0.1).at(110)
    assert factor(10) == 1
    assert factor(60) == pytest.approx(0.55)
    assert factor(35) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert factor(110) == pytest.approx(0.1)
    assert factor(500) == pytest.approx(0.1)  # stays there
    rates = [factor(step) for step in range(10, 111)]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_a_warm_up_longer_than_the_run_stays_finite():
    factor = Schedule("cosine", warmup_steps=100).at(20)
    assert all(0 < factor(step) <= 1 for step in range(21))


def test_cosine_without_an_end_is_refused():
    with pytest.raises(ResvaeError, match="cosine needs an end"):
        Schedule("cosine").at(math.inf)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps: -1"),
        ({"kind": "linear"}, "kind: 'linear' is not allowed; one of constant, cosine"),
        ({"kind": "plateau", "warmup_steps": 0, "factor": 1.5}, r"factor: 1\.5"),
        ({"kind": "plateau", "warmup_steps": 5}, "warmup_steps: 5 is not allowed with kind plateau"),
        ({"kind": "steps"}, "milestones"),
        ({"kind": "cosine", "milestones": (10,)}, "milestones"),
    ],
)
def test_a_bad_value_is_refused_by_name(options, message):
    with pytest.raises(ResvaeError, match=rf"schedule\.{message}"):
        Schedule(**options)


def test_cosine_follows_whichever_of_time_and_updates_is_nearer_its_end():
    clock = SimpleNamespace(elapsed=0.0)
    factor = Schedule("cosine", warmup_steps=2).at(math.inf, lambda: clock.elapsed)
    assert [factor(step) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
    clock.elapsed = 0.5
    assert factor(3) == pytest.approx(0.5)
    assert Schedule("cosine", warmup_steps=0).at(4, lambda: clock.elapsed)(3) < 0.2  # three of four updates are done
    clock.elapsed = 1.2  # the last validation takes its time
    assert factor(4) == 0


class Clock(Callback):
    """A clock that goes 10 seconds an update; notes each update's rate."""

    def __init__(self, monkeypatch, now: float, stop: int | None = None):
        self.now, self.stop, self.rates = now, stop, []
        timer = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("pytorch_lightning.callbacks.timer.time", timer)

    def on_train_batch_start(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"] / 1e-3)

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop |= trainer.global_step == self.stop

    def on_before_zero_grad(self, *_):
        self.now += 10


@pytest.mark.filterwarnings("ignore:.*many workers.*", "ignore:.*LeafSpec.*", "ignore:Checkpoint directory.*")
def test_cosine_ends_with_the_time_and_goes_on_with_it_after_a_resume(tmp_path, monkeypatch):
    def fit(clock: Clock, checkpoint: str | None = None) -> int:
        vae = VAE((1, 1), 2, (1, 8, 8), (4, 4), (1, 2))
        model = LitVAE(vae, schedule=Schedule("cosine", warmup_steps=0), ema_decay=0)
        save = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1)
        data = ImageDataModule("digits", batch_size=32, validation=20, limit=96)
        options = {"max_epochs": -1, "max_time": {"seconds": 100}, "enable_checkpointing": True}
        trainer = train(model, data, clock, save, ckpt_path=checkpoint, **options)
        return trainer.global_step

    whole = [(1 + math.cos(math.pi * tenths / 10)) / 2 for tenths in range(10)]
    first = Clock(monkeypatch, now=7.0, stop=4)
    assert fit(first) == 4
    second = Clock(monkeypatch, now=5000.0)
    assert fit(second, str(tmp_path / "last.ckpt")) == 10
    assert first.rates + second.rates == pytest.approx(whole, abs=1e-6)
