"""Measures that no library has."""

import torch
from torch import Tensor

THRESHOLD = 0.01


class ActiveUnits:
    """Counts latents that the encoder uses: Var_x E_q[z] > .01 (Burda 2016, section 5.2), in one pass over the data."""

    def __init__(self) -> None:
        self._num = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, posterior_mean: Tensor) -> None:
        """Add posterior means ``[B, ...]``."""
        values = posterior_mean.detach().flatten(1).double().cpu()
        # Welford's update in batches: sums of squares alone would cancel for means far from 0.
        num = self._num + len(values)
        mean = values.mean(0)
        delta = mean - self._mean
        self._squares = self._squares + (values - mean).square().sum(0) + delta**2 * self._num * len(values) / num
        self._mean = self._mean + delta * len(values) / num
        self._num = num

    @property
    def latents(self) -> int:
        """The number of latents."""
        return self._mean.numel()

    def variance(self) -> Tensor:
        """Var_x E_q[z] of each latent, ``[D]``."""
        return self._squares / max(self._num - 1, 1)

    def count(self) -> int:
        """How many are active."""
        return int((self.variance() > THRESHOLD).sum())
