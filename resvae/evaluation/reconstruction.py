"""How well a model reconstructs: PSNR, SSIM, and images over their reconstructions."""

from typing import Any

import torch
from torch import Tensor

from resvae.evaluation.grids import beside, image_grid
from resvae.evaluation.measure import COLUMNS, Asked, Measure, Picture, always
from resvae.models import Encoded

SSIM_SMALLEST = 6  # pixels: the window of 11 is mirrored by 5 at the edges
SHOWN = 32


@always
class Reconstruction(Measure):
    """PSNR in decibels, SSIM where the images have 6 pixels or more on each side."""

    def begin(self, asked: Asked) -> None:
        from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

        psnr = PeakSignalNoiseRatio(data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3))
        self._metrics: dict[str, Any] = {"psnr": psnr.to(asked.device)}
        if min(asked.model.image_shape[1:]) >= SSIM_SMALLEST:
            self._metrics["ssim"] = StructuralSimilarityIndexMeasure(data_range=1.0).to(asked.device)
        self._pairs: list[Tensor] = []  # [2, B, C, H, W]

    def update(self, asked: Asked, x: Encoded, y: Tensor | None) -> None:
        reconstruction = asked.model.reconstruct(x)
        for metric in self._metrics.values():
            metric.update(reconstruction, x.x)
        if sum(pair.shape[1] for pair in self._pairs) < SHOWN:
            self._pairs.append(torch.stack([x.x, reconstruction])[:, :SHOWN].cpu())

    def finish(self, asked: Asked, samples: Tensor) -> None:
        self._fields = {"psnr": None, "ssim": None} | {
            k: metric.compute().item() for k, metric in self._metrics.items()
        }
        self._metrics = {}

    def fields(self) -> dict[str, Any]:
        return self._fields

    def rows(self) -> list[tuple[str, str]]:
        ssim = self._fields["ssim"]
        return [("PSNR, dB", f"{self._fields['psnr']:.2f}"), *([] if ssim is None else [("SSIM", f"{ssim:.4f}")])]

    def pictures(self) -> dict[str, Picture]:
        originals, reconstructions = torch.cat(self._pairs, 1)[:, :SHOWN]
        grid = image_grid(beside(originals, reconstructions), COLUMNS)
        return {"images, each row over its reconstructions": grid}
