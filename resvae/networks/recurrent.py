"""A recurrent cell with residual connections."""

import torch
from torch import Tensor, nn

from resvae.errors import ResvaeError


class ResidualGRUCell(nn.Module):
    """A convolutional GRU with one residual connection in its state and one around the cell (Toderici 2017).

    ::

        z, r = sigmoid(W x + U h), each with its own W and U
        h'   = (1 - z) h + z tanh(W x + U (r h)) + a_h W_h h
        o    = h' + a_x W_ox x

    W, U, W_h and W_ox are convolutions that keep the size; those of x have biases. With kernels of size 1 on 1x1 maps,
    this is a cell of vectors. With a_h = a_x = 0 it is the plain GRU, o = h'.

    Args:
        in_channels, channels: those of x; those of the state and the output.
        kernel_size, hidden_kernel_size: of W and W_ox; of U and W_h. Odd, else ``ResvaeError``.
        a_h, a_x: the factors on the two residuals.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 3,
        hidden_kernel_size: int = 1,
        a_h: float = 0.1,
        a_x: float = 0.1,
    ):
        super().__init__()
        for field, size in (("kernel_size", kernel_size), ("hidden_kernel_size", hidden_kernel_size)):
            if size < 1 or size % 2 == 0:
                raise ResvaeError(f"{field}: {size} is not allowed; it must be odd and at least 1")
        self.a_h, self.a_x = a_h, a_x
        self.input = nn.Conv2d(in_channels, 4 * channels, kernel_size, padding="same")  # z, r, candidate, output
        self.hidden = nn.Conv2d(
            channels, 3 * channels, hidden_kernel_size, padding="same", bias=False
        )  # z, r, residual
        self.candidate = nn.Conv2d(channels, channels, hidden_kernel_size, padding="same", bias=False)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``x [B, in_channels, H, W]`` and the state ``h [B, channels, H, W]`` (default: zeros) to (o, h')."""
        z, r, candidate, out = self.input(x).chunk(4, 1)
        old = torch.zeros_like(z) if h is None else h
        hidden_z, hidden_r, residual = self.hidden(old).chunk(3, 1)
        z, r = torch.sigmoid(z + hidden_z), torch.sigmoid(r + hidden_r)
        new = (1 - z) * old + z * torch.tanh(candidate + self.candidate(r * old)) + self.a_h * residual
        return new + self.a_x * out, new
