import pytest
import torch
import torch.nn.functional as F
from helpers_networks import example
from torch import nn

from resvae.errors import ResvaeError
from resvae.networks import ResidualGRUCell


def by_hand(cell, x, h, kernel, hidden_kernel):
    """The paper's equations, each weight by itself."""
    c = h.shape[1]
    (wz, wr, w, wox), (bz, br, b, box) = cell.input.weight.split(c), cell.input.bias.split(c)
    uz, ur, wh = cell.hidden.weight.split(c)
    u = cell.candidate.weight
    p, q = kernel // 2, hidden_kernel // 2
    z = torch.sigmoid(F.conv2d(x, wz, bz, padding=p) + F.conv2d(h, uz, padding=q))
    r = torch.sigmoid(F.conv2d(x, wr, br, padding=p) + F.conv2d(h, ur, padding=q))
    candidate = torch.tanh(F.conv2d(x, w, b, padding=p) + F.conv2d(r * h, u, padding=q))
    new = (1 - z) * h + z * candidate + 0.1 * F.conv2d(h, wh, padding=q)
    return new + 0.1 * F.conv2d(x, wox, box, padding=p), new


@pytest.mark.parametrize(("kernel", "hidden_kernel"), [(3, 1), (3, 3), (1, 5)])
def test_the_cell_is_the_papers(kernel, hidden_kernel):
    cell = ResidualGRUCell(3, 4, kernel, hidden_kernel)
    x, h = example(2, 3, 6, 5).requires_grad_(), example(2, 4, 6, 5, seed=1).requires_grad_()
    torch.testing.assert_close(cell(x), cell(x, torch.zeros_like(h)))
    found = []
    for outputs in (cell(x, h), by_hand(cell, x, h, kernel, hidden_kernel)):
        both = torch.cat(outputs)
        found.append([both, *torch.autograd.grad(both.sin().sum(), [*cell.parameters(), x, h])])
    torch.testing.assert_close(*found)


def test_without_residuals_it_is_a_gru():
    cell = ResidualGRUCell(3, 4, 1, 1, a_h=0.0, a_x=0.0)
    gru = nn.GRUCell(3, 4)  # gates in the order r, z, n; its z keeps what the paper's renews
    (ir, iz, i), (hr, hz, _) = gru.weight_ih.split(4), gru.weight_hh.split(4)
    br, bz, _ = (gru.bias_ih + gru.bias_hh).split(4)
    diagonal = example(4).diag()  # then r (U h) and U (r h) are the same
    with torch.no_grad():
        gru.weight_hh[8:] = diagonal
        gru.bias_hh[8:] = 0
        zero = torch.zeros(4, 3)
        cell.input.weight[:] = torch.cat([-iz, ir, i, zero])[..., None, None]
        cell.input.bias[:] = torch.cat([-bz, br, gru.bias_ih[8:], zero[:, 0]])
        cell.hidden.weight[:8] = torch.cat([-hz, hr])[..., None, None]
        cell.candidate.weight[:] = diagonal[..., None, None]
    x, h = example(5, 3), example(5, 4, seed=1)
    o, new = cell(x[..., None, None], h[..., None, None])
    torch.testing.assert_close(new[..., 0, 0], gru(x, h))
    assert torch.equal(o, new)


@pytest.mark.parametrize(("field", "value"), [("kernel_size", 2), ("hidden_kernel_size", 0)])
def test_even_kernels_are_refused(field, value):
    with pytest.raises(ResvaeError, match=f"{field}: {value} is not allowed; it must be odd and at least 1"):
        ResidualGRUCell(3, 4, **{field: value})
