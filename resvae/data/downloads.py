"""The data sets that torchvision downloads."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from resvae.data.sources import Images, Request, Source, channels_first, resized
from resvae.errors import ResvaeError, one_line

# torchvision's class, the address of the files, their place under the root
DOWNLOADS = {
    "cifar10": ("CIFAR10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "cifar-100-python"),
    "svhn": ("SVHN", "http://ufldl.stanford.edu/housenumbers", "train_32x32.mat and test_32x32.mat"),
    "mnist": ("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist", "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist", "FashionMNIST/raw"),
}


def read(request: Request) -> Source:
    """One of ``DOWNLOADS``. The 28x28 images of MNIST are padded to 32x32 if no ``image_size`` is given."""
    from torchvision import datasets

    name, root = request.name, request.root
    kind, page, place = DOWNLOADS[name]
    parts = []
    for train in (True, False):
        which: dict[str, Any] = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
        try:
            loaded = getattr(datasets, kind)(root, download=request.download, **which)
        except (OSError, RuntimeError, EOFError) as error:
            raise ResvaeError(
                f"data.name: {name} is not in {root} and was not downloaded ({one_line(error)}); download {page} "
                f"and unpack it to {Path(root) / place}, or use the data set digits, which needs no network"
            ) from error
        labels = loaded.labels if name == "svhn" else loaded.targets
        x = channels_first(np.asarray(loaded.data), name)
        x = resized(x, 32) if "mnist" in name and request.image_size is None else x
        parts.append(Images(x, torch.as_tensor(np.asarray(labels)).long()))
    return Source(*parts)
