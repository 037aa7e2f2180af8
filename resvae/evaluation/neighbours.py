"""Whether a model copies: samples beside the training images nearest to them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from resvae.devices import double
from resvae.evaluation.grids import image_grid
from resvae.evaluation.measure import COLUMNS, Asked, Found, Measure

NEAREST = 1000  # samples, and test images, whose nearest training image is sought
ROWS = 8


@dataclass(frozen=True)
class Neighbours:
    """Median distances to the nearest training image; samples far under the test images would be copies."""

    space: str  # pixels in [0, 1], or the name of the feature network; L2 in either
    train_images: int
    samples: int
    test_images: int
    samples_median: float
    test_median: float


@torch.no_grad()
def nearest(
    queries: Tensor, bank: Tensor, num: int = 1, embed: Callable[[Tensor], Tensor] | None = None, chunk: int = 500
) -> tuple[Tensor, Tensor]:
    """L2 distances (float64) and indices of the ``num`` images of ``bank`` nearest to each query: ``[Q, num]``, CPU.

    Queries ``[Q, C, H, W]`` and bank ``[N, C, H, W]`` are uint8; distances are taken on the queries' device, a chunk of
    the bank at a time. ``embed`` turns images into vectors ``[B, F]``; default: the pixels in [0, 1] themselves.
    """
    # float64 is exact for whole pixel values: an image's distance to itself is 0, not the root of a rounding error.
    scale, embed = (255, lambda x: x.flatten(1)) if embed is None else (1, embed)
    q = torch.cat([double(embed(part)) for part in queries.split(chunk)])
    best = q.new_full((len(q), 0), torch.inf)
    index = best.long()
    for start in range(0, len(bank), chunk):
        part = double(embed(bank[start : start + chunk].to(queries.device)))
        found = torch.cat([best, torch.cdist(q, part)], 1)
        places = torch.arange(start, start + len(part), device=q.device).expand(len(q), -1)
        best, order = found.topk(min(num, found.shape[1]), largest=False)
        index = torch.cat([index, places], 1).gather(1, order)
    return best.cpu() / scale, index.cpu()


class NearestImages(Measure):
    """How near samples and unseen images come to the training images: in pixels, and in features where they are given.

    Pictures show the first samples, each before its nearest training images.
    """

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        if asked.neighbours:
            self.generated = NEAREST
            asked.train()
        self._samples: list[Tensor] = []

    def sampled(self, x: Tensor) -> None:
        """Keep the samples."""
        self._samples.append(x)

    def finish(self) -> Found:
        """Find the training images nearest to samples and to the measured images."""
        asked, found, rows, protocol, pictures = self.asked, [], [], [], {}
        spaces = [("pixels", None), *([asked.features] if asked.features else [])]
        for space, embed in spaces if asked.neighbours else []:
            train = asked.train()[0]
            ours, theirs = torch.cat(self._samples), asked.tested()[0][:NEAREST].to(asked.device)
            near, index = nearest(ours, train, COLUMNS - 1, embed)
            control, _ = nearest(theirs, train, 1, embed)
            medians = near[:, 0].median().item(), control.median().item()
            found.append(Neighbours(space, len(train), len(ours), len(theirs), *medians))
            rows += [
                (f"nearest training image of a sample, median L2 ({space})", f"{medians[0]:.4g}"),
                (f"nearest training image of a test image ({space})", f"{medians[1]:.4g}"),
            ]
            protocol.append(
                f"nearest neighbours in {space}: {len(ours):,} samples and the first {len(theirs):,} images against "
                f"{len(train):,} training images"
            )
            shown = torch.cat([ours[:ROWS, None].cpu(), train[index[:ROWS]]], 1).flatten(0, 1) / 255
            pictures[f"sample | its nearest training images ({space})"] = image_grid(shown, COLUMNS)
        return Found({"neighbours": tuple(found)}, rows, protocol=tuple(protocol), pictures=pictures)
