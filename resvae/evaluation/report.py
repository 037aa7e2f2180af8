"""One report on one model: what was measured, and the protocol that gave it."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from resvae.data import ImageSets, Split
from resvae.errors import ResvaeError, at_least
from resvae.evaluation.bounds import Bounds
from resvae.evaluation.distances import GeneratedDistances
from resvae.evaluation.measure import ALWAYS, BATCH, Asked, Measure, Picture
from resvae.evaluation.neighbours import NearestImages
from resvae.evaluation.probe import LinearProbe
from resvae.evaluation.samples import Samples, generate
from resvae.isolation import isolated
from resvae.models import ImageModel
from resvae.provenance import origin


@dataclass(frozen=True)
class Report:
    """What was measured, and how. The figures of all measures are attributes, by their names in ``report.json``."""

    model: str
    arguments: dict[str, Any] | None  # the constructor's, where the model knows them
    source: str | None  # of the weights: a run, a file or a name
    parameters: int
    data: str | None
    split: str | None
    images: int
    seed: int
    seconds: float  # of everything in the report
    hardware: str
    torch: str
    resvae: str
    commit: str | None  # of the checkout that the package lies in
    measures: tuple[Measure, ...]

    def __getattr__(self, name: str) -> Any:
        """A figure by its name: ``report.elbo``."""
        for measure in self.__dict__.get("measures", ()):
            if name in (found := measure.fields()):
                return found[name]
        raise AttributeError(f"the report has no {name}")

    def figures(self) -> dict[str, Any]:
        """The fields of all measures by their names."""
        return {name: value for measure in self.measures for name, value in measure.fields().items()}

    def json(self) -> str:
        """All fields, indented."""
        head = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "measures"}
        return json.dumps(head | self.figures(), indent=2, default=asdict)

    def title(self) -> str:
        """The model and the images in a line."""
        images = " ".join(part for part in (f"{self.images:,}", self.data, self.split, "images") if part)
        return f"{self.model}, {self.parameters:,} parameters, {images}, seed {self.seed}"

    def weights(self) -> str:
        """Where the weights come from, in a line."""
        return f"weights: {self.source or 'given in memory'}"

    def rows(self) -> list[tuple[str, str]]:
        """What was measured, and the figure, as a person reads them."""
        return [row for measure in self.measures for row in measure.rows()]

    def headlines(self) -> list[tuple[str, str]]:
        """The few rows that say most."""
        return [row for measure in self.measures for row in measure.rows() if row[0].startswith(measure.headlines())]

    def pictures(self) -> dict[str, Picture]:
        """The pictures of all measures by their titles."""
        return {title: picture for measure in self.measures for title, picture in measure.pictures().items()}

    def table(self) -> str:
        """A Markdown table, one row per figure."""
        rows = [f"| {name} | {figure} |" for name, figure in self.rows()]
        return "\n".join([f"| {self.title()} | |", "|-|-|", *rows])

    def protocol(self) -> str:
        """How the figures were obtained: a Markdown list."""
        arguments = ", ".join(f"{name}={value}" for name, value in (self.arguments or {}).items())
        lines = [line for measure in self.measures for line in measure.protocol()]
        commit = f" at {self.commit}" if self.commit else ""
        end = f"{self.hardware}, torch {self.torch}, resvae {self.resvae}{commit}, {self.seconds:.0f} s"
        return "\n".join(f"- {line}" for line in (self.weights(), f"{self.model}: {arguments}", *lines, end))


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
    more: Sequence[Measure] = (),
    source: str | None = None,
    track: Callable[[Iterable[Any], str], Iterable[Any]] = lambda items, what: items,
) -> Report:
    """Measure a model on images. The encoder runs once per batch, and images are generated once.

    Args:
        model: a VAE or a classifier; it is put into eval mode, and back.
        images: a data set; or batches, uint8 or float32 in [0, 1], ``[B, C, H, W]``, with or without labels ``[B]``.
        num_samples: the largest k of the importance-weighted bound; 1, 10, 100, ... below it are reported too.
        seed: of all noise; the caller's random stream is left alone.
        iw_images: how many of the images, the first, the importance-weighted bound is taken of. Default: all.
        split: of the data set: train, val or test.
        num: how many images of the data set, the first. Default: all.
        features: the name of a feature network, and the network, for FID, KID and neighbours. Default: none.
        num_generated: samples for FID and KID. Default: as many as images.
        probe_images: training images of the linear probe, at most. Default: no probe.
        neighbours: whether to look for the training images nearest to samples.
        pictures: whether to generate samples for a picture.
        more: measures of your own.
        source: where the weights come from, for the record.
        track: wraps long work, of the name given, to show its progress.

    Raises:
        ResvaeError: no images, a number under 1, labels that are not the classifier's, a probe or neighbours of the
            training images themselves.
    """
    at_least(1, num=num)
    start = time.perf_counter()
    sets = images if isinstance(images, ImageSets) else None
    device = next(model.parameters()).device
    asked = Asked(model, device, sets, split, num, seed, track)
    every = (  # in the order of the table and of the page
        Bounds(num_samples, iw_images),
        Samples(pictures),
        *(kind() for kind in ALWAYS),
        GeneratedDistances(features, num_generated),
        LinearProbe(probe_images),
        NearestImages(neighbours, features),
        *more,
    )
    measures = tuple(measure for measure in every if measure.field == model.field)
    for measure in measures:
        measure.begin(asked)
    batches = images if sets is None else list(zip(*(part.split(BATCH) for part in asked.tested()), strict=True))
    total = 0
    with isolated(model, seed):
        for batch in track(batches, "evaluating"):  # pyright: ignore[reportArgumentType]
            x, y = (batch, None) if isinstance(batch, Tensor) else (part.to(device) for part in batch)
            x = model.encoded(x.to(device))
            for measure in measures:
                measure.update(asked, x, y)
            total += len(x)
    if not total:
        raise ResvaeError("images: there are none to evaluate on")
    samples = torch.zeros(0)
    if wanted := max(measure.generated for measure in measures):
        made = track(generate(model, wanted, seed), "generating")  # pyright: ignore[reportArgumentType]
        samples = torch.cat([batch.cpu() for batch in made])
    for measure in measures:
        measure.finish(asked, samples)
    return Report(
        model=type(model).__name__,
        arguments=model.arguments,
        source=source,
        parameters=sum(p.numel() for p in model.parameters()),
        data=sets.name if sets else None,
        split=split if sets else None,
        images=total,
        seed=seed,
        seconds=time.perf_counter() - start,
        measures=measures,
        **origin(device),
    )
