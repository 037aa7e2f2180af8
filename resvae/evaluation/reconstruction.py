"""How well a model reconstructs: PSNR, SSIM, and pictures of samples and of reconstructions."""

from typing import Any

import torch
from torch import Tensor

from resvae.evaluation.grids import beside, image_grid
from resvae.evaluation.measure import COLUMNS, Asked, Found, Measure, Picture, always
from resvae.models import Encoded

SSIM_SMALLEST = 6  # pixels: the window of 11 is mirrored by 5 at the edges
SHOWN, SAMPLES = 32, 64  # in the pictures


@always
class Reconstruction(Measure):
    """PSNR in decibels, SSIM where the images have 6 pixels or more on each side."""

    def __init__(self, asked: Asked) -> None:
        from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

        super().__init__(asked)
        self.generated = SAMPLES if asked.pictures else 0
        psnr = PeakSignalNoiseRatio(data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3))
        self._metrics: dict[str, Any] = {"psnr": psnr.to(asked.device)}
        if min(asked.model.image_shape[1:]) >= SSIM_SMALLEST:
            self._metrics["ssim"] = StructuralSimilarityIndexMeasure(data_range=1.0).to(asked.device)
        self._pairs: list[Tensor] = []  # [2, B, C, H, W]
        self._samples: list[Tensor] = []

    def update(self, x: Encoded, y: Tensor | None) -> None:
        """Compare a batch with its reconstructions."""
        reconstruction = self.asked.model.reconstruct(x)
        for metric in self._metrics.values():
            metric.update(reconstruction, x.x)
        if sum(pair.shape[1] for pair in self._pairs) < SHOWN:
            self._pairs.append(torch.stack([x.x, reconstruction])[:, :SHOWN].cpu())

    def sampled(self, x: Tensor) -> None:
        """Keep the samples of the picture."""
        self._samples.append(x.cpu())

    def finish(self) -> Found:
        """The two figures, and the pictures."""
        figures = {name: metric.compute().item() for name, metric in self._metrics.items()}
        rows = [("PSNR, dB", f"{figures['psnr']:.2f}")]
        if "ssim" in figures:
            rows.append(("SSIM", f"{figures['ssim']:.4f}"))
        originals, reconstructions = torch.cat(self._pairs, 1)[:, :SHOWN]
        pictures: dict[str, Picture] = {}
        if self._samples:
            pictures[f"samples, {self.asked.pixels}"] = image_grid(torch.cat(self._samples) / 255, COLUMNS)
        pairs = beside(originals, reconstructions)
        pictures["images, each row over its reconstructions"] = image_grid(pairs, COLUMNS)
        return Found({"psnr": None, "ssim": None} | figures, rows, pictures=pictures)
