"""The networks of a model as graphs, which run without this package: ONNX files, or programs of ``torch.export``.

::

    x [N C H W] in [0, 1] -> encoder -> mean, stddev [N D]
    z [N D] -> decoder -> mean [N C H W] in [0, 1]            x -> classifier -> logits [N num_classes]

Latents of all levels stand side by side, the coarsest first; a level's mean and stddev are given the means above it.
"""

import json
import logging
import math
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from resvae.errors import ResvaeError, one_line
from resvae.models import ImageModel, ImageVAE
from resvae.storage import CONFIG, describe

TOLERANCE = 1e-3  # a quarter of a grey level; rounding stays far below
TRACED, CHECKED = 7, (1, 5)  # images per batch: what holds for batches of 7 alone is found out
Compute = Callable[[Tensor], Sequence[Tensor]]


class Encoder(nn.Module):
    """Images ``x [N, C, H, W]`` to the posterior's mean and standard deviation, each ``[N, D]``."""

    def __init__(self, vae: ImageVAE):
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The means are what ``decode`` takes."""
        means, stddevs = zip(*self.vae.latents(x), strict=True)
        return torch.cat([mean.flatten(1) for mean in means], 1), torch.cat([s.flatten(1) for s in stddevs], 1)


class Decoder(nn.Module):
    """Latents ``z [N, D]`` to the mean of p(x|z), ``[N, C, H, W]`` in [0, 1]."""

    def __init__(self, vae: ImageVAE):
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        """The same images as ``sample`` makes of them."""
        return self.vae.decode(z).mean.clamp(0, 1).float()


@dataclass(frozen=True)
class Part:
    """A network that becomes a file: the names of what goes in and comes out, and what makes a batch of its input."""

    name: str
    network: nn.Module
    input: str
    outputs: tuple[str, ...]
    batch: Callable[[int], Tensor]


def parts(model: ImageModel) -> list[Part]:
    """Encoder and decoder of a VAE; any other model as a whole."""

    def images(num: int) -> Tensor:
        return torch.rand(num, *model.image_shape)

    if not isinstance(model, ImageVAE):
        return [Part(model.field, model, "x", ("logits",), images)]
    return [
        Part("encoder", Encoder(model), "x", ("mean", "stddev"), images),
        Part("decoder", Decoder(model), "z", ("mean",), model.sample_prior),
    ]


def check_format(format: str) -> None:
    """Raise ``ResvaeError`` for an unknown format, and where a package that it needs is missing."""
    if format not in WRITERS:
        raise ResvaeError(f"format: {format} is not allowed; one of folder, {', '.join(WRITERS)}")
    for package in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        try:
            import_module(package)
        except ImportError as error:
            raise ResvaeError(f"format: onnx needs the package {package}: pip install '.[onnx]'") from error


def write_graphs(model: ImageModel, out: Path, format: str) -> list[str]:
    """Write a model's parts and ``config.json`` into the new folder ``out``, all of them or nothing.

    Each file is read back and compared with torch on random inputs: no number may be further from torch's than
    ``TOLERANCE`` times the largest, or than ``TOLERANCE`` where that is below 1. Returns a sentence on each.

    Args:
        model: on the CPU, in eval mode.
        out: what is written; its parent exists.
        format: ``onnx`` or ``pt2``.

    Raises:
        ResvaeError: a package is missing, the model has no such graph, or a file's results are too far from torch's.
    """
    check_format(format)
    files, told = {}, []
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary, _undisturbed():
        folder = Path(temporary) / out.name  # its own only when all of it is there
        folder.mkdir()
        for part in parts(model):
            path = folder / f"{part.name}.{format}"
            try:
                files[path.name], difference = _compare(part, WRITERS[format](part, _program(part), path))
            except OSError:
                raise
            except Exception as error:  # torch, ONNX and likelihoods of one's own each have kinds of their own
                kind, reason = type(model).__name__, textwrap.shorten(one_line(error), 200)
                raise ResvaeError(f"format: the {part.name} of this {kind} cannot be {format}: {reason}") from error
            told.append(f"{path.name}: {difference}")
        description = describe(model) | {"format": format, "files": files}
        if isinstance(model, ImageVAE):
            levels = model.latents(torch.zeros(1, *model.image_shape))
            description["latents"] = [list(mean.shape[1:]) for mean, _ in levels]
        (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n")
        folder.rename(out)
    return told


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No checks of values, which have no graph; no gradients; no words of the exporters; the same random inputs."""
    checks, level = Distribution._validate_args, logging.root.manager.disable
    Distribution.set_default_validate_args(False)
    logging.disable(logging.ERROR)
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(action="ignore"),
            redirect_stderr(StringIO()),
        ):
            torch.manual_seed(0)
            yield
    finally:
        Distribution.set_default_validate_args(checks)
        logging.disable(level)


def _program(part: Part) -> ExportedProgram:
    """The part's graph for any batch, without the weights of the other parts, and without places on this machine."""
    program = torch.export.export(part.network, (part.batch(TRACED),), dynamic_shapes=({0: Dim("N")},))
    kept = program.graph_signature.input_specs
    for spec, node in zip(list(kept), program.graph.find_nodes(op="placeholder"), strict=True):
        if spec.target in program.state_dict and not node.users:
            kept.remove(spec)
            program.graph.erase_node(node)
            del program.state_dict[spec.target]
    for graph in (each.graph for each in program.graph_module.modules() if isinstance(each, GraphModule)):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)
    program.graph_module.recompile()
    return program


def _write_onnx(part: Part, program: ExportedProgram, path: Path) -> Compute:
    import onnxruntime

    names = {"input_names": [part.input], "output_names": part.outputs, "dynamic_shapes": ({0: "N"},)}
    torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False, **names)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(each) for each in session.run(None, {part.input: x.numpy()})]


def _write_pt2(part: Part, program: ExportedProgram, path: Path) -> Compute:
    program.example_inputs = None  # they would be in the file
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda x: _several(module(x))


WRITERS: dict[str, Callable[[Part, ExportedProgram, Path], Compute]] = {"onnx": _write_onnx, "pt2": _write_pt2}


def _compare(part: Part, computed: Compute) -> tuple[dict[str, list[str | int]], str]:
    """The shapes of what goes in and comes out, and how far that is from torch's results, in words."""
    shapes: dict[str, list[str | int]] = {}
    furthest = (0.0, 0.0)
    for num in CHECKED:
        x = part.batch(num)
        shapes[part.input] = ["N", *x.shape[1:]]
        for name, wanted, found in zip(part.outputs, _several(part.network(x)), computed(x), strict=True):
            shapes[name] = ["N", *wanted.shape[1:]]
            largest = wanted.abs().max().item()
            difference = (found - wanted).abs().max().item() if found.shape == wanted.shape else math.nan
            allowed = TOLERANCE * max(1, largest)
            if not difference <= allowed:
                raise ResvaeError(f"its {name} differs from torch's by {difference:.2g}; {allowed:.2g} is allowed")
            furthest = max(furthest, (difference, largest))
    return shapes, "on random inputs at most {:.2g} away from torch's results, which go up to {:.2g}".format(*furthest)


def _several(result: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [result] if isinstance(result, Tensor) else result
