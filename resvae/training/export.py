"""``resvae export``: a trained model as a folder to keep or to give away, with a card that says what it is."""

import shutil
from pathlib import Path

import torch

from resvae.data import ImageDataModule
from resvae.errors import ResvaeError
from resvae.evaluation import Report, full_report
from resvae.models import ImageVAE
from resvae.storage import WEIGHTS, load, save, write_atomically
from resvae.training.summary import read_summary

CARD = """\
# {name}

{model}, {parameters:,} parameters, trained on {data}: {epochs} epochs, {updates:,} updates, {seconds:,.0f} s on
{hardware} (torch {torch}{commit}). Weights: {dtype}, {megabytes:.1f} MB. Configuration: `config.yaml`.

    resvae sample {name} --num 64
    resvae evaluate {name} --num_samples {k} --iw_images {iw_images}

{table}

{protocol}
"""


def export(
    run: Path,
    data: ImageDataModule,
    out: Path,
    *,
    half: bool = False,
    num_samples: int = 1,
    iw_images: int | None = None,
) -> Report:
    """Write a run's best model to ``out``: config.json, model.safetensors, config.yaml, report.json and README.md.

    The scores on the test images are those of the weights as they are written.

    Args:
        run: its folder.
        data: with the test images.
        out: the new folder; its name is the model's.
        half: keep the weights in float16. They are loaded as float32 all the same.
        num_samples, iw_images: as in ``evaluate``.

    Raises:
        ResvaeError: not a run's folder; a model that is no VAE; the folder is there already, or cannot be written.
    """
    if not (run / "config.yaml").is_file() or not (summary := read_summary(run)):
        raise ResvaeError(f"model: {run} is not the folder of a run that has ended an epoch")
    if out.exists():
        raise ResvaeError(f"out: {out} is there already; choose another")
    vae = load(run)
    if not isinstance(vae, ImageVAE):
        raise ResvaeError(f"model: {run} holds a {type(vae).__name__}, not a VAE")
    dtype = torch.float16 if half else torch.float32
    save(vae, out, dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = load(out).to(device)
    report, _ = full_report(vae, data, source=out.name, num_samples=num_samples, iw_images=iw_images)
    card = CARD.format(
        name=out.name,
        model=report.model,
        parameters=report.parameters,
        data=data.name,
        epochs=summary["epochs"],
        updates=summary["steps"],
        seconds=summary["seconds"],
        hardware=summary["hardware"],
        torch=summary["torch"],
        commit=f", commit {summary['commit']}" if summary["commit"] else "",
        dtype=str(dtype).removeprefix("torch."),
        megabytes=(out / WEIGHTS).stat().st_size / 1e6,
        k=report.num_samples,
        iw_images=report.iw_images,
        table=report.table(),
        protocol=report.protocol(),
    )
    shutil.copy(run / "config.yaml", out / "config.yaml")
    write_atomically(out / "report.json", lambda path: path.write_text(report.json() + "\n"))
    write_atomically(out / "README.md", lambda path: path.write_text(card))
    return report
