"""The learning rate over time."""

import itertools
import math

import pytest

from resvae.errors import ResvaeError
from resvae.training.schedule import Schedule


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_warm_up_is_linear_and_never_zero(kind):
    factor = Schedule(kind, warmup_steps=4).at(1000)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_without_warm_up_the_first_update_has_the_whole_rate():
    assert Schedule("constant", warmup_steps=0).at(10)(0) == 1
    assert Schedule("cosine", warmup_steps=0).at(10)(0) == 1


def test_constant_stays_even_without_an_end():
    factor = Schedule("constant", warmup_steps=2).at(math.inf)
    assert [factor(step) for step in (2, 10, 10**6)] == [1, 1, 1]


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


def test_a_bad_value_is_refused_by_name():
    with pytest.raises(ResvaeError, match=r"schedule\.warmup_steps: -1"):
        Schedule(warmup_steps=-1)
    with pytest.raises(ResvaeError, match=r"schedule\.warmup_steps: 5 is not allowed with kind plateau"):
        Schedule("plateau", warmup_steps=5)
