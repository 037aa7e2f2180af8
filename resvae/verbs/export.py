"""``resvae export``: a trained model as a folder to keep or to share, with a card, or as graphs for other programs."""

import shlex
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from resvae.devices import chosen
from resvae.errors import ResvaeError
from resvae.evaluation import evaluate
from resvae.files import place, writable
from resvae.runs.data import data_of
from resvae.runs.folder import read_summary
from resvae.storage import WEIGHTS, load, save
from resvae.verbs.graphs import check_format, write_graphs

CARD = """\
# {report.source}

{report.model}, {report.parameters:,} parameters, trained on {report.data}: {summary[epochs]} epochs, \
{summary[steps]:,} updates, {summary[seconds]:,.0f} s on
{summary[hardware]} (torch {summary[torch]}{commit}). Weights: {dtype}, {megabytes:.1f} MB. \
Configuration: `config.yaml`.

{uses}

{table}

{protocol}
"""
USES = {  # by the kind of model
    "vae": """\
    resvae sample {1} --num 64
    resvae evaluate {1} --num_samples {0.num_samples} --iw_images {0.iw_images}""",
    "classifier": "    resvae evaluate MODEL --features {1}",
}


def export(
    run: str,
    out: str,
    format: str = "folder",
    half: bool = False,
    num_samples: int = 1,
    iw_images: int | None = None,
    **images: Any,
) -> None:
    """Write a run's best model as a folder to share: weights, configuration, scores on the test images, a card.

    The model is a VAE or a classifier; the scores are those of the weights as they are written. With --format onnx or
    pt2 the folder holds what programs without this package run: encoder and decoder, or classifier, for any batch, and
    config.json with the shapes. Each file is read back and compared with torch on random inputs; a difference of more
    than 0.001 of the largest number is refused.

    Args:
        run: its folder; for onnx and pt2 any MODEL.
        out: the new folder; its name is the model's.
        format: folder, onnx (after pip install '.[onnx]') or pt2 (torch.export.load reads it); the options below are
            for folder alone.
        half: keep the weights in float16; they are loaded as float32 all the same.
        num_samples: the largest k of a VAE's importance-weighted bound.
        iw_images: how many test images that bound is taken of. Default: all.

    Raises:
        ResvaeError: not a run's folder; the folder is there already, or cannot be written; see ``write_graphs``.
    """
    source, folder = place(run), writable(out)
    if folder.exists():
        raise ResvaeError(f"out: {folder} is there already; choose another")
    if format != "folder":
        check_format(format)
        scores = {
            "half": half or None,
            "num_samples": None if num_samples == 1 else num_samples,
            "iw_images": iw_images,
        }
        for field, value in (scores | images).items():
            if value is not None:
                raise ResvaeError(f"{field}: {value} is not allowed with --format {format}; only with folder")
        print("\n".join([*write_graphs(load(run), folder, format), f"wrote {out}"]))
        return
    if not (source / "config.yaml").is_file() or not (summary := read_summary(source)):
        raise ResvaeError(f"model: {run} is not the folder of a run that has ended an epoch")
    model = load(run)
    data = data_of(run, image_shape=model.image_shape, **images)
    dtype = torch.float16 if half else torch.float32
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        written = save(model, Path(temporary) / folder.name, dtype)  # its own only when all of it is there
        model = load(written).to(chosen())
        report = evaluate(model, data, num_samples, iw_images=iw_images, source=folder.name)
        card = CARD.format(
            report=report,
            uses=USES[model.field].format(report, shlex.quote(folder.name)),
            summary=defaultdict(lambda: "unknown", summary),
            commit=f", commit {summary['commit']}" if summary.get("commit") else "",
            dtype=str(dtype).removeprefix("torch."),
            megabytes=(written / WEIGHTS).stat().st_size / 1e6,
            table=report.table(),
            protocol=report.protocol(),
        )
        shutil.copy(source / "config.yaml", written)
        (written / "report.json").write_text(report.json() + "\n")
        (written / "README.md").write_text(card)
        written.rename(folder)
    print(f"{report.table()}\nwrote {out}")
