"""Images per second: ``ImageDataModule`` and the usual torchvision loader, on CIFAR-10 with crop and flip.

    python benchmarks/data_path.py [root of the data] [rounds]

The rounds alternate, so that both loaders run under the same load, and the medians are printed. The usual loader
returns floats. Ours returns uint8, which the model converts, so it is also measured with that conversion. The exit code
is 1 if ours is less than 10 times as fast.
"""

import statistics
import sys
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from resvae.data import ImageDataModule

BATCH = 128


def usual(root: str, num_workers: int) -> DataLoader[Any]:
    """The loader of torchvision, which transforms image by image through PIL."""
    steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    dataset = datasets.CIFAR10(root, train=True, transform=transforms.Compose(steps))
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=num_workers)


def rate(batches: Iterable[Any], limit: int | None = None, to_float: bool = False) -> float:
    """Images per second over an epoch or its first ``limit`` batches, including the start of the workers."""
    start, count = time.perf_counter(), 0
    for x, _ in islice(batches, limit):
        count += len(x.float().div_(255) if to_float else x)
    return count / (time.perf_counter() - start)


def main(root: str = "data", rounds: str = "5") -> int:
    """Measure and print; returns the exit code."""
    ours = ImageDataModule("cifar10", root, BATCH, crop_padding=4, flip=True).train_dataloader()
    loaders = {f"torchvision, {workers} workers": usual(root, workers) for workers in range(3)}
    rates: dict[str, list[float]] = {}
    for _ in range(int(rounds)):
        for name, loader in loaders.items():
            rates.setdefault(name, []).append(rate(loader, limit=160))
        rates.setdefault("ours, uint8", []).append(rate(ours))
        rates.setdefault("ours, with to float", []).append(rate(ours, to_float=True))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:25} {medians[name]:10,.0f} images/s   ({min(values):,.0f} to {max(values):,.0f})")
    best = max(medians[name] for name in loaders)
    for name in rates.keys() - loaders.keys():
        print(f"{name}: {medians[name] / best:.1f} times the best of torchvision")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, {rounds} rounds")
    return 0 if medians["ours, uint8"] >= 10 * best else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
