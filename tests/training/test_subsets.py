"""Units left out in training: how they are drawn, that an update is theirs alone, and that a resume draws the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_runs import CLASSIFIER, Stop, assert_same, callback, checkpoint, read, refused, stop, train
from helpers_runs import command as fit_command
from pytorch_lightning import Callback

from resvae import ImageDataModule, LitClassifier, ResNetClassifier, load
from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.models.classifier import HE
from resvae.networks.units import units
from resvae.training.schedule import Schedule
from resvae.training.subsets import RandomSubset, StochasticDepth, UnitSubset

PRE = replace(HE, order="full_pre")
# 3 batches an epoch
OPTIONS = """
    --data.batch_size 16 --data.validation 20 --data.limit 48 --save_every_n_steps 1 --trainer.max_epochs 2
    --model.ema_decay 0.8 --model.schedule.kind constant --model.schedule.warmup_steps 0
"""


def module(block: Any = PRE, **more: Any) -> LitClassifier:
    torch.manual_seed(0)
    classifier = ResNetClassifier(depth=14, image_shape=(1, 8, 8), block=block)
    return LitClassifier(classifier, schedule=Schedule("constant", 0), precision="fp32", **more)


def fit(lit: LitClassifier, *callbacks: Callback, **more: Any) -> None:
    train(lit, ImageDataModule("digits", batch_size=16, validation=20, limit=48), *callbacks, **more)


def draws(subset: UnitSubset, num: int = 3000) -> np.ndarray:
    return np.array([[factor for _, factor in subset.drawn(MODULE, step)] for step in range(num)])


MODULE = module()


def test_a_random_subset_has_its_size_and_leaves_none_out_more_often_than_another():
    factors = draws(RandomSubset(2))
    assert set(np.unique(factors)) == {0, 3}  # of 6 units; their mean is 1, as in the whole network
    assert ((factors > 0).sum(1) == 2).all()
    assert factors.mean(0) == pytest.approx(np.ones(6), abs=0.1)
    assert len(np.unique(factors, axis=0)) == 15
    assert (draws(RandomSubset(6), 5) == 1).all()


def test_survival_falls_linearly_with_depth_and_every_unit_keeps_its_expectation():
    factors = draws(StochasticDepth(0.4))
    assert (factors > 0).mean(0) == pytest.approx(np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), abs=0.03)
    assert factors.mean(0) == pytest.approx(np.ones(6), abs=0.1)
    assert abs(np.corrcoef(factors.T)[0, 1:]).max() < 0.1  # each by itself
    assert (draws(StochasticDepth(1.0), 5) == 1).all()


@pytest.mark.parametrize("kind", [RandomSubset, StochasticDepth])
def test_a_draw_depends_on_seed_and_step_alone(kind: Any):
    arguments = [3] if kind is RandomSubset else []
    first = draws(kind(*arguments), 20)
    torch.rand(1), np.random.default_rng().random()
    assert (draws(kind(*arguments), 20) == first).all()
    assert (draws(kind(*arguments, seed=1), 20) != first).any()
    assert len(np.unique(first, axis=0)) > 5


def test_an_update_is_of_the_units_that_were_drawn():
    lit, subset = module(ema_decay=0), RandomSubset(2)
    before = {name: value.clone() for name, value in lit.classifier.state_dict().items()}
    fit(lit, subset, max_steps=1, limit_val_batches=0)
    kept = [factor > 0 for _, factor in subset.drawn(lit, 0)]
    assert sum(kept) == 2
    after = lit.classifier.state_dict()
    for unit, updated in zip(units(lit.classifier), kept, strict=True):
        of_branch = [name for name in before if name.startswith(f"{unit.name}.branch")]
        assert all(torch.equal(after[name], before[name]) != updated for name in of_branch), unit.name


def test_training_computes_the_units_drawn_and_validation_all_of_them():
    lit, computed = module(), []
    for unit in units(lit.classifier):
        unit.block.branch.register_forward_hook(lambda branch, *_: computed.append(branch.training))
    fit(lit, RandomSubset(2), max_epochs=2)
    epoch = [True] * 3 * 2 + [False] * 6
    assert computed == epoch * 2
    assert not any("forward" in unit.block.__dict__ for unit in units(lit))


def test_what_is_drawn_is_weighted_and_the_rest_handed_on():
    unit, x = units(MODULE)[0], torch.rand(2, 16, 8, 8)
    assert len(unit.block.before) == 2  # normalisation and activation ahead of the split
    torch.testing.assert_close(unit.weighted(3.0, x), unit.carried(x) + 3 * unit.added(x))
    torch.testing.assert_close(unit.weighted(1.0, x), unit.block(x))
    torch.testing.assert_close(unit.weighted(0.0, x), unit.carried(x), rtol=0, atol=0)


def test_an_interrupted_network_is_whole_again():
    lit = module()
    with pytest.raises(RuntimeError, match="the cat"):
        fit(lit, RandomSubset(2), Stop(1, hook="on_before_backward"))
    assert not any("forward" in unit.block.__dict__ for unit in units(lit))


def command(folder: Path, name: str, more: str = "", **arguments: float) -> list[str]:
    subset = callback(f"resvae.training.subsets.{name}", **arguments)
    return [*fit_command(folder, f"{OPTIONS} {more}", CLASSIFIER), *subset]


@pytest.mark.parametrize(("name", "arguments"), [("RandomSubset", {"num": 2}), ("StochasticDepth", {"last": 0.4})])
def test_a_run_goes_on_with_the_draws_that_it_would_have_had(tmp_path, name, arguments):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(command(whole, name, **arguments)) == 0
    with pytest.raises(RuntimeError, match="the cat"):
        main([*command(broken, name, **arguments), *stop(4)])
    assert checkpoint(broken / "runs/run")["global_step"] == 4  # in the middle of the second epoch
    assert main(command(broken, name, "--ckpt_path last", **arguments)) == 0
    here, there = checkpoint(broken / "runs/run"), checkpoint(whole / "runs/run")
    assert here["global_step"] == 6
    for key in ("state_dict", "current_model_state", "guard", "global_step"):  # the average, and what trains
        assert_same(here[key], there[key], key)
    # what was validated is what is loaded: the whole network, with nothing to remember of how it was trained
    data, classifier = ImageDataModule("digits", validation=20), load(whole / "runs/run")
    with torch.no_grad():
        loss = F.cross_entropy(classifier(data.images("val")), data.labels("val"))
    assert loss.item() == pytest.approx(read(whole / "runs/run/summary.json")["val_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("lit", "subset", "told"),
    [
        (module(), RandomSubset(7), "num: 7 is not allowed; 1 to the number of units, 6"),
        (module(), RandomSubset(0), "num: 0 is not allowed"),
        (module(replace(PRE, merge="none")), StochasticDepth(), "must be merged by sum"),
        (module(replace(PRE, merge="highway")), StochasticDepth(), "must be merged by sum"),
        (module(compile=True), StochasticDepth(), "model.compile: it must be false"),
    ],
)
def test_what_does_not_fit_is_refused(lit, subset, told):
    with pytest.raises(ResvaeError, match=told):
        subset.drawn(lit, 0)


def test_what_does_not_fit_leaves_no_folder_behind(tmp_path, capsys):
    refused(capsys, command(tmp_path, "RandomSubset", num=70), "num: 70 is not allowed")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("last", [0.0, 1.1, float("nan")])
def test_a_survival_that_is_none_is_refused(last):
    with pytest.raises(ResvaeError, match=r"last: .* is not allowed; more than 0, at most 1"):
        StochasticDepth(last)
