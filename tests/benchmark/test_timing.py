"""Cases take turns; FLOPs and memory are counted, not guessed."""

import time

import pytest
import torch

from resvae.benchmark.timing import Case, flops_of, peak_memory, take_turns

CPU = torch.device("cpu")


def test_cases_take_turns():
    order = []

    def step(name, seconds):
        order.append(name)
        time.sleep(seconds)

    cases = [
        Case("quick", lambda: step("quick", 0.001), images=4, flops=1000),
        Case("slow", lambda: step("slow", 0.01), images=4, flops=1000),
    ]
    quick, slow = take_turns(cases, CPU, seconds=0.1, rounds=3)
    rounds = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert rounds == ["quick", "slow"] * 4  # the first does not count
    assert quick.low >= 0.001
    assert slow.low >= 0.01
    for each in (quick, slow):
        assert each.low <= each.seconds <= each.high
        assert each.images_per_second == pytest.approx(4 / each.seconds)
        assert each.flops_per_second == pytest.approx(1000 / each.seconds)


def test_flops_of_a_matrix_product():
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert flops_of(lambda: a @ b) == 2 * 3 * 5 * 7


def test_peak_memory_is_of_what_is_alive_at_once():
    x = torch.zeros(2**20)

    def one_after_another():
        for _ in range(4):
            _ = x + 1

    def together():
        return [x + 1 for _ in range(4)]

    size = 4 * 2**20
    assert size <= peak_memory(one_after_another, CPU) < 2.1 * size
    assert 4 * size <= peak_memory(together, CPU) < 4.1 * size
