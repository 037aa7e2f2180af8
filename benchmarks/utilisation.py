"""FLOP/s of a training step as a share of the FLOP/s that convolutions reach on this device; both are measured.

    python benchmarks/utilisation.py --config configs/cifar10_hierarchical.yaml --seconds 60 --out utilisation.json

Rounds of training steps alternate with rounds of a few 3x3 convolutions (forward and backward, channels last, the same
precision), so that both run under the same load. The medians are printed, and the fastest convolution is the reference.
FLOPs are torch's count of the convolutions and matrix products of one step, two per multiplication and addition.
Element-wise work is not counted. Options of ``resvae fit`` may follow, such as ``--model.compile true``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from resvae.provenance import commit, hardware
from resvae.training.base import native_bf16
from resvae.training.configuration import Configuration, parse
from resvae.training.muon import mark_hidden

PEAK_SHAPES = ((256, 64, 32), (256, 256, 16), (128, 512, 16), (64, 256, 8), (16, 64, 32))  # batch, channels, size
ROUNDS = 5


def rate(step: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Steps per second, measured over about this many seconds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    wait()
    start, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - start < seconds:
        step()
        steps += 1
        if steps % 8 == 0:
            wait()
    wait()
    return steps / (time.perf_counter() - start)


def flops(step: Callable[[], Any]) -> int:
    """The FLOPs of one step, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def training_step(options: list[str], device: torch.device) -> tuple[Callable[[], Any], int, Configuration]:
    """One update of a configuration on random images, and its FLOPs. It is compiled if the configuration says so."""
    configuration, _ = parse(options)
    parts = configuration.instantiate()
    module: Any = parts.model.to(device, memory_format=torch.channels_last)
    if configuration.field != "vae":
        raise SystemExit("utilisation.py: the configuration trains a classifier; give one that trains a VAE")
    mark_hidden(module.model)
    optimizer = module.optimizer(module.model.parameters())
    num = configuration.values.data.batch_size
    x = torch.randint(256, (num, *module.image_shape), dtype=torch.uint8, device=device)

    def step(split: str = "train") -> None:
        (-module.compute(split, x).elbo.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    num_flops = flops(lambda: step("eager"))  # the counter sees only eager operations
    module.on_fit_start()
    return step, num_flops, configuration


def convolution(shape: tuple[int, int, int], device: torch.device, bf16: bool) -> Callable[[], Any]:
    """A 3x3 convolution, forward and backward, on ``[batch, channels, size, size]``."""
    batch, channels, size = shape
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    dtype = torch.bfloat16 if bf16 else torch.float32
    layer = layer.to(device, dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.randn(batch, channels, size, size, device=device, dtype=dtype).requires_grad_()
    x.data = x.data.contiguous(memory_format=torch.channels_last)
    gradient = torch.ones_like(layer(x))
    return lambda: layer(x).backward(gradient)


def main() -> None:
    """Measure and print the figures. With ``--out``, also write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/cifar10_hierarchical.yaml"))
    parser.add_argument("--seconds", type=float, default=30, help="total duration of each of the two measurements")
    parser.add_argument("--out", type=Path)
    arguments, options = parser.parse_known_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    step, per_step, configuration = training_step(["--config", str(arguments.config), *options], device)
    values, bf16 = configuration.values, native_bf16(device.type)
    for _ in range(3):
        step()
    layers = [convolution(shape, device, bf16) for shape in PEAK_SHAPES]
    counts = [flops(layer) for layer in layers]
    each = arguments.seconds / ROUNDS
    steps, peaks = [], []
    for _ in range(ROUNDS):
        steps.append(rate(step, device, each))
        peaks.append([n * rate(f, device, each / len(layers)) for n, f in zip(counts, layers, strict=True)])
    medians = [statistics.median(column) for column in zip(*peaks, strict=True)]
    speed, peak = statistics.median(steps), max(medians)
    shape = PEAK_SHAPES[medians.index(peak)]
    figures = {
        "config": str(arguments.config),
        "commit": commit(),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "precision": "bf16" if bf16 else "fp32",
        "compiled": values.model.compile,
        "batch_size": (images := values.data.batch_size),
        "images_per_second": speed * images,
        "gigaflop_per_image": per_step / images / 1e9,
        "model_teraflops": speed * per_step / 1e12,
        "peak_teraflops": peak / 1e12,
        "peak_convolution": f"3x3, {shape[0]}x{shape[1]}x{shape[2]}x{shape[2]}",
        "utilisation": speed * per_step / peak,
    }
    for name, value in figures.items():
        print(f"{name:20} {value:,.4g}" if isinstance(value, float) else f"{name:20} {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
