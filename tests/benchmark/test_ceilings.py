"""Convolutions are recorded as they are, and done again by themselves."""

import torch
from torch import nn

from resvae.benchmark.ceilings import Recorded, Shape, convolution, copy, matrix_product
from resvae.benchmark.timing import flops_of

CPU = torch.device("cpu")


def test_every_convolution_is_recorded_with_its_shape():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 4, 1, stride=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    )
    with Recorded() as recorded:
        model(torch.zeros(2, 3, 8, 8))
    assert dict(recorded.shapes) == {
        Shape((2, 3, 8, 8), (8, 3, 3, 3), padding=1): 1,
        Shape((2, 8, 8, 8), (8, 4, 3, 3), padding=1, groups=2): 2,
        Shape((2, 8, 8, 8), (4, 8, 1, 1), stride=2): 1,
        Shape((2, 4, 4, 4), (4, 6, 3, 3), 2, 1, True, 1): 1,
    }
    names = [str(shape) for shape in recorded.shapes]
    assert names[1] == "3x3, 2 groups: 2x8x8x8 to 8 channels"
    assert names[3] == "3x3, transposed, stride 2: 2x4x4x4 to 6 channels"


def test_a_recorded_convolution_alone_costs_what_it_costs_in_the_model():
    layer, x = nn.Conv2d(4, 6, 3, padding=1, bias=False), torch.zeros(2, 4, 8, 8, requires_grad=True)
    with Recorded() as recorded:
        layer(x)
    (shape,) = recorded.shapes
    alone = convolution(shape, CPU, torch.float32)
    assert alone.flops == flops_of(lambda: layer(x).sum().backward()) == 3 * 2 * 2 * 64 * 6 * 4 * 9


def test_the_machines_own_ceilings_run():
    for case in (matrix_product(CPU, torch.float32), copy(CPU)):
        case.step()
        assert case.flops > 10**8
