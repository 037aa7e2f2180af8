"""Whether a model copies: samples beside the training images nearest to them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
    queries: Tensor,
    bank: Tensor,
    num: int = 1,
    embed: Callable[[Tensor], Tensor] | None = None,
    chunk: int = 500,
) -> tuple[Tensor, Tensor]:
    """The ``num`` images of ``bank`` nearest to each query, nearest first.

    Args:
        queries, bank: images ``[Q, C, H, W]`` and ``[N, C, H, W]``, uint8; distances are taken on the queries' device,
            a chunk of the bank at a time.
        embed: images to vectors ``[B, F]``, on the same device; default: the pixels in [0, 1] themselves.

    Returns:
        L2 distances, float64, and indices into the bank: each ``[Q, num]``, on the CPU.
    """
    # float64 is exact for whole pixel values: an image's distance to itself is 0, not the root of a rounding error.
    scale, embed = (255, lambda x: x.flatten(1)) if embed is None else (1, embed)
    q = torch.cat([embed(part).double() for part in queries.split(chunk)])
    best = q.new_full((len(q), 0), torch.inf)
    index = best.long()
    for start in range(0, len(bank), chunk):
        part = embed(bank[start : start + chunk].to(q.device)).double()
        found = torch.cat([best, torch.cdist(q, part)], 1)
        places = torch.arange(start, start + len(part), device=q.device).expand(len(q), -1)
        best, order = found.topk(min(num, found.shape[1]), largest=False)
        index = torch.cat([index, places], 1).gather(1, order)
    return best.cpu() / scale, index.cpu()


def neighbours(
    samples: Tensor,
    test: Tensor,
    train: Tensor,
    space: str = "pixels",
    embed: Callable[[Tensor], Tensor] | None = None,
    shown: int = 10,
    num: int = 7,
) -> tuple[Neighbours, Tensor]:
    """How near samples, and images that the model has not seen, come to the training images.

    Args:
        samples, test, train: uint8 ``[N, C, H, W]``; ``samples`` and ``test`` on the device to compute on.
        space: its name in the report.
        embed: images to vectors; default: pixels.
        shown: how many samples are returned as pictures.
        num: how many neighbours of each.

    Returns:
        The medians, and for ``image_grid`` the first ``shown`` samples, each before its ``num`` nearest training
        images: float32 in [0, 1], ``[shown * (1 + num), C, H, W]``.
    """
    ours, index = nearest(samples, train, num, embed)
    theirs, _ = nearest(test, train, 1, embed)
    rows = torch.cat([samples[:shown].cpu()[:, None], train[index[:shown]]], 1)
    result = Neighbours(
        space=space,
        train_images=len(train),
        samples=len(samples),
        test_images=len(test),
        samples_median=ours[:, 0].median().item(),
        test_median=theirs.median().item(),
    )
    return result, rows.flatten(0, 1) / 255


class NearestImages(Measure):
    """Neighbours in pixels and, where a feature network is given, in its features."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        if asked.neighbours:
            self.generated = NEAREST
            asked.train()

    def finish(self, samples: Tensor) -> Found:
        asked, found, rows, protocol, pictures = self.asked, [], [], [], {}
        spaces = [("pixels", None), *([asked.features] if asked.features else [])]
        for space, network in spaces if asked.neighbours else []:
            ours, theirs = (x[:NEAREST].to(asked.device) for x in (samples, asked.tested()[0]))
            n, shown = neighbours(ours, theirs, asked.train()[0], space, network, ROWS, COLUMNS - 1)
            found.append(n)
            rows += [
                (f"nearest training image of a sample, median L2 ({space})", f"{n.samples_median:.4g}"),
                (f"nearest training image of a test image ({space})", f"{n.test_median:.4g}"),
            ]
            protocol.append(
                f"nearest neighbours in {space}: {n.samples:,} samples and the first {n.test_images:,} images against "
                f"{n.train_images:,} training images"
            )
            pictures[f"sample | its nearest training images ({space})"] = image_grid(shown, COLUMNS)
        return Found({"neighbours": tuple(found)}, rows, protocol=tuple(protocol), pictures=pictures)
