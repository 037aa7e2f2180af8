"""The cost of Lightning: a training step of ``LitVAE`` in a Trainer, compared with the same step in a bare loop.

    python benchmarks/lightning_overhead.py --steps 40

Both do everything that training does: fetch the batch, use bf16 where it is native, clip the gradient norm, update with
AdamW, and step the schedule and the average of the weights. They alternate step by step in one process, so that both
run under the same load. The medians are compared.
"""

import argparse
import statistics
import time
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.optim.lr_scheduler import LambdaLR

from resvae import VAE, ImageDataModule, LitVAE
from resvae.training.base import adamw, native_bf16
from resvae.training.schedule import Schedule

WARM_UP = 5


class BareLoop:
    """The same training without Lightning, one step at a time."""

    def __init__(self, data: ImageDataModule, steps: int):
        self.vae = make_vae()
        self.average = [p.detach().clone() for p in self.vae.parameters()]
        self.optimizer = adamw(self.vae.parameters())
        self.scheduler = LambdaLR(self.optimizer, Schedule().at(steps))
        self.batches = iter(data.train_dataloader())
        self.steps = 0

    def step(self) -> None:
        x = next(self.batches)[0].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16("cpu")):
            loss = -self.vae.elbo(x).elbo.mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 200.0)
        self.optimizer.step()
        self.scheduler.step()
        weight = 1 - min(0.999, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.vae.parameters()), weight)
        self.steps += 1


class Alternate(Callback):
    """Run one step of the bare loop after each step of Lightning, and time both from end to end."""

    def __init__(self, bare: BareLoop):
        self.bare = bare
        self.lightning_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self.end = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        if self.end:
            self.lightning_seconds.append(now - self.end)
        self.bare.step()
        self.end = time.perf_counter()
        self.bare_seconds.append(self.end - now)


def make_vae() -> VAE:
    torch.manual_seed(0)
    return VAE(depth=28, latent_dim=128, widths=(32, 64, 128, 128)).to(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--root", default="data")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    data = ImageDataModule("cifar10", arguments.root, arguments.batch_size)
    alternate = Alternate(BareLoop(data, arguments.steps))
    pl.Trainer(
        max_steps=arguments.steps,
        callbacks=[alternate],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    ).fit(LitVAE(make_vae()), data)
    ours = statistics.median(alternate.lightning_seconds[WARM_UP:])
    bare = statistics.median(alternate.bare_seconds[WARM_UP:])
    print(f"Lightning {1000 * ours:.1f} ms, bare loop {1000 * bare:.1f} ms per step: ", end="")
    num = len(alternate.bare_seconds) - WARM_UP
    print(f"ratio {ours / bare:.3f} (medians of {num} in turns, batches of {arguments.batch_size})")


if __name__ == "__main__":
    main()
