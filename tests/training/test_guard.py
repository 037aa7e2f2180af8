"""The guard skips what is not finite and what explodes, and never locks up."""

import itertools
import math
import random

import pytest
import torch

from resvae.errors import ResvaeError
from resvae.training.guard import MAX_IN_A_ROW, MAX_NON_FINITE, WARM_UP, GradientGuard, GradientWarning

pytestmark = pytest.mark.filterwarnings("ignore::resvae.training.guard.GradientWarning")


def accepts(guard: GradientGuard, norm: float) -> bool:
    """Its judgement, after which it is looked at."""
    accepted = bool(guard.accepts(torch.tensor(norm, dtype=torch.float64)))
    guard.look()
    return accepted


def settled(norm: float = 10.0) -> GradientGuard:
    """A guard that has seen ordinary norms for long."""
    guard, spread = GradientGuard(), random.Random(0)
    assert all(accepts(guard, norm * spread.uniform(0.8, 1.25)) for _ in range(200))
    return guard


def longest_skip(guard: GradientGuard, norms: list[float]) -> int:
    """The most updates skipped in a row."""
    runs = itertools.groupby(accepts(guard, norm) for norm in norms)
    return max((len(list(run)) for accepted, run in runs if not accepted), default=0)


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_skipped_and_leaves_the_statistics(norm: float):
    fresh, guard = GradientGuard(), settled()
    before = guard.state()
    assert not accepts(fresh, norm)
    assert not accepts(guard, norm)
    now = guard.state()
    assert all(now[name] == before[name] for name in ("mean", "variance", "seen"))
    assert guard.skipped == 1
    assert accepts(guard, 10.0)


def test_an_explosion_is_skipped_and_an_ordinary_large_norm_is_not():
    assert not accepts(settled(), 1e4)
    assert accepts(settled(), 60.0)  # six times the usual
    assert accepts(settled(), 1e-6)  # small is never an explosion


def test_nothing_finite_is_skipped_before_the_statistics_are_trusted():
    guard = GradientGuard()
    assert all(accepts(guard, 10.0 ** (i % 7)) for i in range(WARM_UP))


def test_a_new_scale_is_skipped_at_first_and_then_taken_for_good():
    guard = settled()
    taken = [accepts(guard, 1e4) for _ in range(300)]
    assert not taken[0]
    assert sum(not accepted for accepted in taken) <= 10
    assert all(taken[-200:])
    assert guard.state()["mean"] == pytest.approx(math.log(1e4), abs=0.5)


SEQUENCES = {
    "tenfold each step": [10.0 ** min(i, 300) for i in range(400)],
    "thousandfold each step": [10.0 ** min(3 * i, 300) for i in range(300)],
    "one new scale": [1e30] * 300,
    "to and fro": [1e-30 if i % 5 == 0 else 1e30 for i in range(300)],
    "zero, then huge": [0.0] * 100 + [1e38] * 100,
    "spikes": [1e8 if i % 4 else 1.0 for i in range(300)],
}


@pytest.mark.parametrize("norms", SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize("guard", [GradientGuard, settled], ids=["fresh", "settled"])
def test_it_never_locks_up(guard, norms):
    assert longest_skip(guard(), norms) <= MAX_IN_A_ROW == 3


@pytest.mark.parametrize("seed", range(8))
def test_it_never_locks_up_at_random(seed: int):
    draw = random.Random(seed)
    norms, scale = [], 0.0
    for _ in range(500):
        scale = max(-300.0, min(300.0, scale + draw.choice([0, 0, 1, 1, 10, -10, 50])))
        norms.append(10.0**scale)
    assert longest_skip(settled(), norms) <= 3


def test_norms_that_are_not_finite_do_not_lengthen_a_row_of_finite_skips():
    guard = settled()
    norms = [norm for i in range(300) for norm in (math.nan, 10.0 ** min(4 + i * i, 300))]
    taken = [accepts(guard, norm) for norm in norms][1::2]
    assert max(len(list(run)) for accepted, run in itertools.groupby(taken) if not accepted) <= 3


def test_it_gives_up_after_so_many_that_are_not_finite_and_says_what_to_change():
    guard = GradientGuard()
    for _ in range(MAX_NON_FINITE - 1):
        assert not accepts(guard, math.nan)
    with pytest.raises(ResvaeError, match=r"200 updates in a row; lower the learning rate"):
        accepts(guard, math.nan)


def test_one_finite_update_begins_the_count_anew():
    guard = GradientGuard()
    for i in range(3 * MAX_NON_FINITE):
        accepts(guard, 1.0 if i % MAX_NON_FINITE == MAX_NON_FINITE - 1 else math.nan)
    assert guard.skipped == 3 * (MAX_NON_FINITE - 1)


@pytest.mark.filterwarnings("default::resvae.training.guard.GradientWarning")
def test_it_warns_without_flooding():
    guard = GradientGuard()
    with pytest.warns(GradientWarning, match=r"update skipped: gradient norm nan") as caught:
        assert not any(accepts(guard, math.nan) for _ in range(100))
    assert len(caught) == 7  # the 1st, 2nd, 4th ... 64th


def test_what_is_read_late_is_told_as_if_it_had_been_read_at_once():
    guard = GradientGuard()
    for norm in (1.0, math.nan, math.nan, math.nan):
        guard.accepts(torch.tensor(norm))
        guard.look(every=5)
    guard.accepts(torch.tensor(2.0))
    with pytest.warns(GradientWarning, match=r"norm nan, lately about 1.41 \(3 skipped so far\)"):
        guard.look(every=5)


def test_it_goes_on_with_its_state():
    guard = settled()
    accepts(guard, 1e5)
    again = GradientGuard(**guard.state())
    norms = [10.0, 1e5, 1e5, math.nan, 1e5, 1e5, 20.0]
    assert [accepts(guard, norm) for norm in norms] == [accepts(again, norm) for norm in norms]
    assert again.state()["seen"] == guard.state()["seen"] == 200 + 1 + 6


def test_it_judges_where_the_norm_is():
    assert GradientGuard().accepts(torch.tensor(1.0, device="meta")).device.type == "meta"
