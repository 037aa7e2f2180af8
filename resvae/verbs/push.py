"""``resvae push``: a trained model on the Hugging Face Hub, with a card that describes it."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from resvae.errors import ResvaeError
from resvae.files import place
from resvae.models.pretrained import CONFIG, HUB
from resvae.models.pretrained import push as upload
from resvae.verbs.export import export

REPORT = "report.json"
# Of each kind of model: the Hub's name of the task, and the figures of ``report.json`` that its cards show.
TASKS = {
    "VAE": ("unconditional-image-generation", {"bits_per_dim": "bits/dim", "elbo": "ELBO, nats", "psnr": "PSNR, dB"}),
    "Classifier": ("image-classification", {"error": "error", "loss": "cross-entropy, nats"}),
}


def push(
    run: str,
    name: str,
    private: bool | None = None,
    revision: str | None = None,
    half: bool = False,
    num_samples: int = 1,
    iw_images: int | None = None,
    **images: Any,
) -> None:
    """Export a run as ``resvae export`` does, or take a folder that this wrote, and upload it.

    You must be logged in (``hf auth login``, or HF_TOKEN); HF_ENDPOINT names another Hub than the public one.

    Args:
        run: its folder, or an exported one.
        name: user/model; it is made if it is new.
        private: whether only you see it, where it is new; default: as your account has it.
        revision: a branch, which is made; default: main.
        half: export the weights in float16.
        num_samples: the largest k of a VAE's importance-weighted bound.
        iw_images: how many test images that bound is taken of. Default: all.
    """
    user, _, model = name.removeprefix(HUB).partition("/")
    if not user or not model or "/" in model:
        raise ResvaeError(f"name: {name} is not allowed; user/model")
    with tempfile.TemporaryDirectory() as temporary:
        folder = place(run)
        if not (folder / CONFIG).is_file():
            folder = Path(temporary) / model
            export(run, str(folder), format="folder", half=half, num_samples=num_samples, iw_images=iw_images, **images)
        elif any(images.values()):
            raise ResvaeError(f"data: it is not allowed for {run}, which is exported already")
        card = folder / "README.md"
        told = card.read_text() if card.is_file() else f"# {model}\n"
        shared = shutil.copytree(folder, Path(temporary) / "shared")
        (shared / "README.md").write_text(f"---\n{metadata(model, folder / REPORT)}\n---\n\n{told}")
        print(f"wrote {upload(shared, name, private, revision)}; resvae sample {HUB}{user}/{model}")


def metadata(model: str, report: Path) -> str:
    """The card's metadata as YAML: the library, and the results of a report, where there is one."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if report.is_file():
        found = json.loads(report.read_text())
        task, figures = next(each for kind, each in TASKS.items() if found["model"].endswith(kind))
        data = found["data"]
        results = [
            EvalResult(task, data, data, name, found[name], metric_name=words, dataset_split="test")
            for name, words in figures.items()
            if found.get(name) is not None
        ]
    return ModelCardData(
        library_name="resvae", tags=["resvae"], model_name=model if results else None, eval_results=results or None
    ).to_yaml()
