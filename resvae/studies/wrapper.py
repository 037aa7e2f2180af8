"""``resvae study wrapper``: ``Residual`` around convolutions and around recurrent layers, beside the same without."""

import statistics
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resvae.data import ImageDataModule, Images
from resvae.devices import chosen
from resvae.errors import whole_from
from resvae.files import write_figure
from resvae.networks.residual import MergeName, Residual, make_merge
from resvae.progress import progress
from resvae.studies.record import Record, Row

BATCH, LEARNING_RATE = 64, 3e-3


@dataclass(frozen=True)
class Training:
    """What one training gave: cross-entropy of each epoch (nats per image), share of errors on the test images."""

    losses: list[float]
    test_error: float
    parameters: int
    seconds: float


def convolutions(merge: MergeName = "sum", num_layers: int = 5) -> nn.Module:
    """Digits ``[B, 1, 8, 8]`` to 10 logits: conv 64 - conv 8 - 5 x [Residual(conv 8) - ReLU] - pool - dropout - linear.

    All convolutions are 3x3, and the first two have a ReLU too (Bolte's network for MNIST).
    """
    layers = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 3, padding=1), nn.ReLU()]
    for _ in range(num_layers):
        layers += [Residual(nn.Conv2d(8, 8, 3, padding=1), make_merge(merge, 8)), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8 * 4 * 4, 10))


class Rows(nn.Module):
    """Digits ``[B, 1, 8, 8]`` to 10 logits, row by row: linear - 6 x Residual(bidirectional LSTM) - mean - linear."""

    def __init__(self, merge: MergeName = "sum", num_layers: int = 6):
        super().__init__()
        self.embed, self.classifier = nn.Linear(8, 32), nn.Linear(32, 10)
        self.layers = nn.ModuleList(
            Residual(nn.LSTM(32, 16, batch_first=True, bidirectional=True), make_merge(merge, 32, dim=-1))
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, 1, 8, 8]`` in [0, 1], its rows the steps, to logits ``[B, 10]``."""
        h = self.embed(x[:, 0])
        for layer in self.layers:
            h, _ = layer(h)
        return self.classifier(h.mean(1))


EXAMPLES = {"convolutions": convolutions, "bidirectional LSTM": Rows}


def train(model: nn.Module, data: Images, test: Images, epochs: int) -> Training:
    """Adam on the cross-entropy, minibatches in random order; ``x`` float32 in [0, 1], on the model's device."""
    optimizer = torch.optim.Adam(model.train().parameters(), LEARNING_RATE)
    losses, start = [], time.perf_counter()
    for _ in range(epochs):
        losses.append(0.0)
        for index in torch.randperm(len(data.y)).split(BATCH):
            loss = F.cross_entropy(model(data.x[index]), data.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item() * len(index) / len(data.y)
    with torch.no_grad():
        error = (model.eval()(test.x).argmax(1) != test.y).double().mean().item()
    return Training(losses, error, sum(p.numel() for p in model.parameters()), time.perf_counter() - start)


def wrapper(
    merges: tuple[MergeName, ...] = ("none", "sum", "highway"),
    seeds: int = 5,
    epochs: int = 12,
    out: str = "runs/study_wrapper",
) -> None:
    """Train a convolutional and a recurrent network on scikit-learn's digits, their layers wrapped with each merge.

    Args:
        merges: of sum, product, half, highway, shortcut_gate, and none, the same network without: [none,product].
        seeds: how many, 0, 1, ...: of the first weights, the order of the images and dropout.
        epochs: of each training.
        out: the folder of table and plot; a study that was stopped resumes there, and takes more merges or seeds.
    """
    whole_from(1, merges=len(merges), seeds=seeds, epochs=epochs)
    device = chosen()
    digits = ImageDataModule("digits", protocol="test_as_validation")
    data, test = (Images((digits.images(s) / 255).to(device), digits.labels(s).to(device)) for s in ("train", "test"))
    record = Record(out, {"epochs": epochs})
    found: dict[str, dict[str, list[Training]]] = {name: {merge: [] for merge in merges} for name in EXAMPLES}
    planned = list(product(EXAMPLES, dict.fromkeys(merges), range(seeds)))
    for example, merge, seed in progress(planned, "training"):
        torch.manual_seed(seed)
        model = EXAMPLES[example](merge).to(device)
        figures = record.measure(f"{example} {merge} {seed}", lambda: asdict(train(model, data, test, epochs)))  # noqa: B023
        found[example][merge].append(Training(**figures))
    rows = [{"example": e} | {"merge": m} | _row(runs) for e, of in found.items() for m, runs in of.items()]
    notes = (
        f"scikit-learn's digits, {len(data.y):,} to train and {len(test.y)} to test; Adam {LEARNING_RATE:g}, batch "
        f"{BATCH}, {epochs} epochs, {seeds} seeds, ±: the standard deviation over them. Training loss: nats, last "
        "epoch. none: the same without residuals. No figures are published for these networks."
    )
    print(record.write("wrapper", rows, notes))
    write_plot(found, record.folder / "wrapper.png")
    print("\n".join(f"wrote {record.folder / 'wrapper'}.{kind}" for kind in ("md", "csv", "png")))


def write_plot(found: dict[str, dict[str, list[Training]]], path: Path) -> None:
    """Training loss against epoch, a panel an example: a line a merge, the mean over seeds, shaded between extremes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(found), 4), layout="constrained")
    panels = figure.subplots(1, len(found))
    for panel, (example, merges) in zip(panels, found.items(), strict=True):
        for merge, runs in merges.items():
            losses = torch.tensor([run.losses for run in runs])
            epochs = range(1, losses.shape[1] + 1)
            (line,) = panel.plot(epochs, losses.mean(0), label=merge)
            panel.fill_between(epochs, losses.amin(0), losses.amax(0), color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set(title=example, xlabel="epoch", ylabel="training loss, nats per image", yscale="log")
        panel.grid(alpha=0.3)
    panels[-1].legend(title="merge")
    write_figure(path, figure)


def _row(runs: list[Training]) -> Row:
    row: Row = {}
    errors, losses = [100 * run.test_error for run in runs], [run.losses[-1] for run in runs]
    for name, values in (("test error, %", errors), ("training loss", losses)):
        row[name] = statistics.fmean(values)
        row |= {f"{name} ±": statistics.stdev(values)} if len(values) > 1 else {}
    return row | {"parameters": runs[0].parameters, "seconds": statistics.fmean(run.seconds for run in runs)}
