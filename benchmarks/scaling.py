"""Does a training step in several processes take the time that the model of ``docs/scaling.md`` expects?

    torchrun --nproc_per_node 2 benchmarks/scaling.py --config configs/cifar10_cpu.yaml --model.compile false

All processes take the step without and with exchanging gradients, and sum a vector as long as the gradients, in turns.
The first process prints the medians and the model's prediction. Options of ``resvae fit`` may follow.
"""

import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from resvae.benchmark.steps import Training
from resvae.training.configuration import parse

ROUNDS, SECONDS = 7, 2.0  # of each case; a round takes at least so many seconds


class Loss(nn.Module):
    """The loss of the training's batch, as a module that can be distributed."""

    def __init__(self, training: Training):
        super().__init__()
        self.vae = training.vae
        self.loss = training.loss

    def forward(self) -> Tensor:
        return self.loss()


def seconds(step: Callable[[], Any], device: torch.device) -> float:
    """Of one step: the mean over a round that all processes begin together."""
    num, begun = 0, time.perf_counter()
    least = torch.zeros(1, device=device)
    while least.item() < SECONDS:
        step()
        num += 1
        least[0] = time.perf_counter() - begun
        distributed.all_reduce(least, distributed.ReduceOp.MIN)  # all of them take as many steps
    return (time.perf_counter() - begun) / num


def main() -> None:
    """Measure, and print the table."""
    cuda = torch.cuda.is_available()
    distributed.init_process_group("nccl" if cuda else "gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    configuration, _ = parse(sys.argv[1:])
    training = Training(configuration, device)
    together = DistributedDataParallel(Loss(training))
    gradients = torch.zeros(sum(p.numel() for p in training.vae.parameters()), device=device)

    def step(exchange: bool) -> None:
        training.x = training.fetch()
        training.optimizer.zero_grad()
        if exchange:
            together().backward()
        else:
            with together.no_sync():
                together().backward()
        training.judge()
        training.optimizer.step()
        training.follow()

    cases: dict[str, Callable[[], Any]] = {
        "nothing": lambda: None,  # what waiting for one another takes
        "step, nothing exchanged": lambda: step(False),
        "all-reduce of the gradients": lambda: distributed.all_reduce(gradients),
        "step, gradients exchanged": lambda: step(True),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(ROUNDS + 1):
        for name, case in cases.items():
            took = seconds(case, device)
            times[name] += [took] if number else []  # the first round is not counted
    waiting, alone, reduced, measured = (1e3 * statistics.median(each) for each in times.values())
    alone, reduced, measured = alone - waiting, reduced - waiting, measured - waiting
    if rank == 0:
        images = world * training.batch_size
        print(f"| {world} processes, {gradients.numel():,} parameters, {training.batch_size} images each | ms |\n|-|-|")
        print(f"| step, nothing exchanged | {alone:.1f} |\n| all-reduce of the gradients | {reduced:.1f} |")
        print(f"| step, as expected: the sum | {alone + reduced:.1f} |\n| step, as measured | {measured:.1f} |")
        print(f"\n{images / measured * 1e3:,.0f} images/s in all; of {world} times one: {alone / measured:.0%}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    main()
