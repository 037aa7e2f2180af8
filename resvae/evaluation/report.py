"""One report on one model: what was measured, and the protocol that gave it."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resvae.data import ImageSets, Split
from resvae.errors import ResvaeError, whole_from
from resvae.evaluation.bounds import Bounds
from resvae.evaluation.distances import GeneratedDistances
from resvae.evaluation.measure import ALWAYS, BATCH, Asked, Found, Measure
from resvae.evaluation.neighbours import NearestImages
from resvae.evaluation.probe import LinearProbe
from resvae.files import write_atomically, write_text
from resvae.isolation import isolated
from resvae.models import ImageModel, ImageVAE
from resvae.provenance import origin


@dataclass(frozen=True)
class Report:
    """What was measured, and how. Every field of ``report.json`` is an attribute, such as ``report.elbo``."""

    about: dict[str, Any]  # the model, the images, the machine and the code, by their names in ``report.json``
    found: tuple[Found, ...]  # what each measure found, in the order of the table

    def __getattr__(self, name: str) -> Any:
        if "found" in self.__dict__ and name in (fields := self.about | self.figures):
            return fields[name]
        raise AttributeError(f"the report has no {name}")

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of all measures by their names."""
        return {name: value for found in self.found for name, value in found.figures.items()}

    def json(self) -> str:
        """All fields, indented."""
        return json.dumps(self.about | self.figures, indent=2, default=asdict)

    def title(self) -> str:
        """The model and the images in a line."""
        images = " ".join(part for part in (f"{self.images:,}", self.data, self.split, "images") if part)
        return f"{self.model}, {self.parameters:,} parameters, {images}, seed {self.seed}"

    def weights(self) -> str:
        """Where the weights come from, in a line."""
        return f"weights: {self.source or 'given in memory'}"

    def table(self) -> str:
        """A Markdown table, one row per figure."""
        rows = [f"| {name} | {figure} |" for found in self.found for name, figure in found.rows]
        return "\n".join([f"| {self.title()} | |", "|-|-|", *rows])

    def protocol(self) -> str:
        """How the figures were obtained: a Markdown list."""
        arguments = ", ".join(f"{name}={value}" for name, value in (self.arguments or {}).items())
        lines = [line for found in self.found for line in found.protocol]
        commit = f" at {self.commit}" if self.commit else ""
        end = f"{self.hardware}, torch {self.torch}, resvae {self.resvae}{commit}, {self.seconds:.0f} s"
        return "\n".join(f"- {line}" for line in (self.weights(), f"{self.model}: {arguments}", *lines, end))

    def page(self, path: Path) -> None:
        """Write a picture of all pictures, two per row, each under its title."""
        from matplotlib.figure import Figure

        panels = [panel for found in self.found for panel in found.pictures.items()]
        rows = [panels[i : i + 2] for i in range(0, len(panels), 2)]
        heights = [4.2 if any(isinstance(picture, Tensor) for _, picture in row) else 2.6 for row in rows]
        figure = Figure((10, sum(heights)), layout="constrained")
        axes = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights)
        headlines = [row for found in self.found for row in found.rows if row[0].startswith(found.headlines)]
        figures = ", ".join(f"{name}: {text}" for name, text in headlines)
        figure.suptitle(f"{self.title()}\n{self.weights()}\n{figures}", x=0.01, ha="left", fontsize=9)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, (title, picture) in zip(axes.flat, panels, strict=False):
            axis.set_title(title, fontsize=10)
            if isinstance(picture, Tensor):
                axis.axis("off")
                axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            else:
                picture(axis)
        figure.savefig(path, dpi=150, format="png")


def write_report(report: Report, path: Path) -> list[Path]:
    """Write ``path`` (all fields), and beside it the table (.md) and the page of plots (.png); returns the three."""
    table, page = path.with_suffix(".md"), path.with_suffix(".png")
    write_text(path, report.json() + "\n")
    write_text(table, f"{report.table()}\n\n{report.protocol()}\n")
    write_atomically(page, report.page)
    return [path, table, page]


def generate(
    vae: ImageVAE,
    num: int,
    seed: int = 0,
    batch_size: int = BATCH,
    temperature: float | Sequence[float] = 1.0,
    pixel_noise: bool = False,
) -> Iterator[Tensor]:
    """Batches of ``vae.sample``, uint8 ``[B, C, H, W]``: rounded to the 256 values."""
    seeds = torch.Generator().manual_seed(seed)
    for start in range(0, num, batch_size):
        # One stream per batch: nothing of it is left between two batches, where the caller draws its own numbers.
        with isolated(vae, int(torch.randint(2**62, (), generator=seeds))):
            x = (255 * vae.sample(min(batch_size, num - start), temperature, pixel_noise)).round().to(torch.uint8)
        yield x


def evaluate(
    model: ImageModel,
    images: ImageSets | Iterable[Any],
    num_samples: int = 1,
    seed: int = 0,
    iw_images: int | None = None,
    *,
    split: Split = "test",
    num: int | None = None,
    features: tuple[str, nn.Module] | None = None,
    num_generated: int | None = None,
    probe_images: int | None = None,
    neighbours: bool = False,
    pictures: bool = False,
    temperature: float | list[float] = 1.0,
    pixel_noise: bool = False,
    more: Sequence[type[Measure]] = (),
    source: str | None = None,
    track: Callable[[Iterable[Any], str], Iterable[Any]] = lambda items, what: items,
) -> Report:
    """Measure a model on images. The encoder runs once per batch, and images are generated once.

    Args:
        model: a VAE or a classifier; it is put into eval mode, and back.
        images: a data set; or batches, uint8 or float32 in [0, 1], ``[B, C, H, W]``, with or without labels ``[B]``.
        num_samples: the largest k of the importance-weighted bound; 1, 10, 100, ... below it are reported too.
        seed: of all noise.
        iw_images: of how many of the images that bound is taken. Default: all.
        split: of the data set: train, val or test.
        num: the first images of the data set. Default: all.
        features: the name of a feature network, and the network, for FID, KID and neighbours. Default: none.
        num_generated: samples for FID and KID. Default: as many as images.
        probe_images: training images of the linear probe. Default: no probe.
        neighbours: look for the training images nearest to samples.
        pictures: whether to generate samples for a picture.
        temperature: factor on the prior's standard deviation, or one per level.
        pixel_noise: draw the pixels of samples.
        more: measures of your own.
        source: where the weights come from, for the record.
        track: wraps long work, of the name given, to show its progress.

    Raises:
        ResvaeError: no images, a number under 1, labels that are not the classifier's, a probe or neighbours of the
            training images themselves.
    """
    whole_from(1, num=num, num_samples=num_samples, iw_images=iw_images, probe_images=probe_images)
    whole_from(2, num_generated=num_generated)
    start = time.perf_counter()
    sets = images if isinstance(images, ImageSets) else None
    device = next(model.parameters()).device
    bound, generated = (num_samples, iw_images), (features, num_generated, probe_images, neighbours, pictures)
    told = "drawn from p(x|z)" if pixel_noise else "the mean of p(x|z)"
    generated += (f"{told} at temperature {temperature}",)
    asked = Asked(model, device, sets, split, num, seed, track, *bound, *generated)
    kinds = (Bounds, *ALWAYS, GeneratedDistances, LinearProbe, NearestImages, *more)  # in the table's order
    measures = [kind(asked) for kind in kinds if kind.field == model.field]
    batches = images if sets is None else list(zip(*(part.split(BATCH) for part in asked.tested()), strict=True))
    total = 0
    with isolated(model, seed):
        for batch in track(batches, "evaluating"):  # pyright: ignore[reportArgumentType]
            x, y = (batch, None) if isinstance(batch, Tensor) else (part.to(device) for part in batch)
            x = model.encoded(x.to(device))
            for measure in measures:
                measure.update(x, y)
            total += len(x)
    if not total:
        raise ResvaeError("images: there are none to evaluate on")
    made, wanted = 0, max(measure.generated for measure in measures)
    vae: Any = model  # nothing else has measures that want samples
    samples = generate(vae, wanted, seed, BATCH, temperature, pixel_noise) if wanted else ()
    for batch in track(samples, "generating"):
        for measure in measures:
            if made < measure.generated:
                measure.sampled(batch[: measure.generated - made])
        made += len(batch)
    found = tuple(measure.finish() for measure in measures)
    about = {
        "model": type(model).__name__,
        "arguments": model.arguments,
        "source": source,  # of the weights: a run, a file or a name
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": sets.name if sets else None,
        "split": split if sets else None,
        "images": total,
        "seed": seed,
        "seconds": time.perf_counter() - start,  # of everything in the report
        **origin(device),
    }
    return Report(about, found)
