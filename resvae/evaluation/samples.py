"""Generated images: what distances and neighbours are measured of, and a grid of them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from resvae.evaluation.grids import image_grid
from resvae.evaluation.measure import BATCH, COLUMNS, Asked, Found, Measure
from resvae.isolation import isolated
from resvae.models import ImageVAE

SHOWN = 64


def generate(vae: ImageVAE, num: int, seed: int = 0, batch_size: int = BATCH) -> Iterator[Tensor]:
    """Batches of samples at temperature 1, uint8 ``[B, C, H, W]``: means of p(x|z), rounded to the 256 values."""
    seeds = torch.Generator().manual_seed(seed)
    for start in range(0, num, batch_size):
        # One stream per batch: nothing of it is left between two batches, where the caller draws its own numbers.
        with isolated(vae, int(torch.randint(2**62, (), generator=seeds))):
            x = (255 * vae.sample(min(batch_size, num - start))).round().to(torch.uint8)
        yield x


class Samples(Measure):
    """No figures: a picture of the first samples."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.generated = SHOWN if asked.pictures else 0

    def finish(self, samples: Tensor) -> Found:
        if not self.generated:
            return Found({})
        return Found({}, pictures={"samples, the mean of p(x|z)": image_grid(samples[:SHOWN] / 255, COLUMNS)})
