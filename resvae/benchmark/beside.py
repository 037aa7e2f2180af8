"""What others need for the same: Lightning's part of a step, torchvision's loader, pythae's ResNet VAE."""

import logging
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resvae.benchmark.steps import Training
from resvae.benchmark.timing import Case, Step, flops_of
from resvae.data.module import EpochSampler, ImageDataset, TrainLoader
from resvae.data.sources import Images
from resvae.errors import ResvaeError
from resvae.training.loggers import RunCSVLogger

WARM_UP = 5
MARGIN = 4  # of the crops


class Turns(Callback):
    """After each step of Lightning one step without it; the seconds of both, from end to end."""

    def __init__(self, training: Training, seconds: float):
        self.training, self.seconds = training, seconds
        self.lightning: list[float] = []
        self.bare: list[float] = []
        self.start = self.last = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take turns until the time is over."""
        now = time.perf_counter()
        self.lightning.append(now - self.last)
        self.training.step()
        self.last = time.perf_counter()
        self.bare.append(self.last - now)
        trainer.should_stop = len(self.bare) > WARM_UP and self.last - self.start > self.seconds


def of_lightning(training: Training, seconds: float) -> tuple[float, float]:
    """Median seconds of a step in a Trainer, logged as ``resvae fit`` does, and of the same step without Lightning."""
    turns = Turns(training, seconds)
    module: Any = training.configuration.instantiate().model
    loader = TrainLoader(
        training.dataset, training.batch_size, sampler=EpochSampler(training.dataset), collate_fn=tuple
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        pl.Trainer(
            max_steps=10**6,  # the schedule wants an end; the clock comes first
            callbacks=[turns],
            logger=RunCSVLogger(Path(folder) / "run"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, loader)
    return median(turns.lightning[WARM_UP:]), median(turns.bare[WARM_UP:])


def pythae(training: Training) -> Case:
    """A training step of pythae's ResNet VAE for CIFAR-10 as it ships: float32, channels first, Adam.

    Raises:
        ResvaeError: it is not installed, or the training's images are not 32x32 in colour.
    """
    if training.module.image_shape != (3, 32, 32):
        raise ResvaeError(f"peers: images {training.module.image_shape} are not allowed; pythae's takes (3, 32, 32)")
    try:
        from pythae.models import VAE, VAEConfig  # pyright: ignore[reportMissingImports]
        from pythae.models.nn.benchmarks import cifar  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ResvaeError("peers: pythae is not installed; pip install pythae") from error
    config = VAEConfig(input_dim=(3, 32, 32), latent_dim=256)
    encoder, decoder = cifar.Encoder_ResNet_VAE_CIFAR(config), cifar.Decoder_ResNet_AE_CIFAR(config)
    model = VAE(config, encoder, decoder).to(training.device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    x = torch.rand(training.batch_size, 3, 32, 32, device=training.device)

    def backward() -> None:
        model({"data": x}).loss.backward()

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return Case("pythae's ResNet VAE", step, training.batch_size, flops_of(backward))


def loaders(shape: tuple[int, int, int], batch_size: int) -> list[Case]:
    """Epochs of cropped and mirrored batches: ours, and torchvision's usual way with 0 to 2 processes."""
    num = 50 * batch_size
    x = torch.randint(256, (num, *shape), dtype=torch.uint8)
    dataset = ImageDataset(Images(x, torch.zeros(num, dtype=torch.long)), MARGIN, flip=True)
    ours = TrainLoader(dataset, batch_size, sampler=EpochSampler(dataset), collate_fn=tuple)
    usual = Usual(x)
    cases: dict[str, Step] = {
        "ours, uint8": lambda: sum(1 for _ in ours),
        "ours, as floats": lambda: sum(1 for x, _ in ours if x.float().div_(255).dim()),
    }
    for n in range(3):
        loader = DataLoader(usual, batch_size, num_workers=n)
        cases[f"torchvision, {n} processes"] = lambda loader=loader: sum(1 for _ in loader)
    return [Case(name, step, num) for name, step in cases.items()]


class Usual(Dataset[Any]):
    """Images of torchvision: one by one, through PIL."""

    def __init__(self, x: Tensor):
        from PIL import Image
        from torchvision import transforms

        modes: Any = {1: lambda image: image[0], 3: lambda image: image.permute(1, 2, 0)}
        self.images = [Image.fromarray(modes[x.shape[1]](image).numpy()) for image in x]
        size = x.shape[-2:]
        self.transform = transforms.Compose(
            [transforms.RandomCrop(size, MARGIN), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index])
