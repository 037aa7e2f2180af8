"""scikit-learn's handwritten digits, which need no network."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from resvae.data.sources import Images, Request, Source, split_off


def read(request: Request) -> Source:
    """The digits, grey, 8x8."""
    # the file that ``sklearn.datasets.load_digits`` reads; importing scikit-learn would take seconds
    package = find_spec("sklearn")
    assert package is not None
    file = Path(str(package.origin)).parent / "datasets/data/digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")  # 64 values and the label in each row
    x = torch.from_numpy(table[:, :-1]).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    return split_off(Images(x, torch.from_numpy(table[:, -1]).long()), every=6)
