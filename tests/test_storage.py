import json
import os
import pickle

import pytest
import torch
from torch import nn

from resvae.errors import ResvaeError
from resvae.models import VAE, ReferenceVAE, ResNetClassifier, reference
from resvae.networks import BlockConfig
from resvae.runs.folder import best_checkpoint
from resvae.storage import describe, load, read_checkpoint, save
from resvae.training.checkpoints import AtomicCheckpointIO


def small(seed=0, **arguments):
    torch.manual_seed(seed)
    shape = {"depth": (1, 1), "latent_dim": 4, "image_shape": (3, 8, 8), "widths": (8, 16), "strides": (1, 2)}
    return VAE(**shape | arguments)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def write_checkpoint(path, vae, description=None):
    """What ``LitVAE`` saves, as far as ``load`` reads it."""
    state = {f"vae.{k}": v for k, v in vae.state_dict().items()} | {"other.weight": torch.zeros(2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"resvae": description or describe(vae), "state_dict": state, "epoch": 3}, path)
    return path


def refused(source, *said):
    with pytest.raises(ResvaeError) as caught:
        load(source)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message
    return message


class Code:
    """Makes the file ``marker`` when unpickled by anything that runs code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


# Folders


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"likelihood": "gaussian"},
        {"depth": 40, "widths": (4, 4, 8, 8), "strides": (1, 2, 2, 1), "likelihood": "bernoulli"},
        {"block": BlockConfig(kind="basic", norm="batch", merge="highway", upsample="nearest", residual_scale=0.5)},
    ],
)
def test_save_and_load(arguments, tmp_path):
    vae = small(**arguments)
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    vae.elbo(x)  # running statistics of their own
    save(small(1), tmp_path / "a" / "model")  # what is there is replaced
    vae = vae.to(memory_format=torch.channels_last)
    assert save(vae, tmp_path / "a" / "model") == tmp_path / "a" / "model"
    twin = load(tmp_path / "a" / "model")
    assert type(twin) is VAE
    assert not twin.training
    assert same(vae, twin)
    assert twin.arguments == vae.arguments
    assert torch.equal(vae.eval().reconstruct(x), twin.to(memory_format=torch.channels_last).reconstruct(x))
    assert sorted(p.name for p in (tmp_path / "a" / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_the_other_models_are_saved_too(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "WIDTHS", (4, 4, 8, 8))
    vae = ReferenceVAE(28, latent_dim=3, intermediate_dim=16, compat=True)
    twin = load(save(vae, tmp_path / "reference"))
    assert twin.compat
    assert same(vae, twin)
    classifier = ResNetClassifier(depth=14, num_classes=4, image_shape=(1, 8, 8))
    assert same(classifier, load(save(classifier, tmp_path / "classifier")))


def test_the_folder_is_plain_json_and_safetensors(tmp_path):
    vae = small()
    save(vae, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"] == "VAE"
    assert config["arguments"]["widths"] == [8, 16]
    assert config["arguments"]["block"]["kind"] == "bottleneck"
    assert (tmp_path / "config.json").stat().st_mode & 0o777 == 0o644  # to be shared


def test_what_json_or_a_folder_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ResvaeError, match="JSON"):
        save(small(block=BlockConfig(merge=torch.add)), tmp_path / "a")
    with pytest.raises(ResvaeError, match="Linear"):
        save(nn.Linear(2, 2), tmp_path / "a")
    with pytest.raises(ResvaeError, match="encoder"):
        save(ResNetClassifier(encoder=small().encoder), tmp_path / "a")
    assert not (tmp_path / "a").exists()


# Checkpoints and run folders


def truncated(data, kept):
    return data[: int(kept * len(data)) if isinstance(kept, float) else kept]


@pytest.mark.parametrize("kept", [0, 1, 3, 100, 0.5, 0.99])
def test_truncated_checkpoint(kept, tmp_path):
    path = write_checkpoint(tmp_path / "some.ckpt", small())
    assert same(load(path), small())
    path.write_bytes(truncated(path.read_bytes(), kept))
    assert "code" not in refused(path, "some.ckpt", "damaged")


FOREIGN = [
    b"hello, no checkpoint\n",
    b"garbage",
    b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    b"PK\x03\x04 no zip",
    b".",
    b"R",
]


@pytest.mark.parametrize("content", FOREIGN)
def test_files_that_are_no_checkpoints(content, tmp_path):
    (tmp_path / "some.ckpt").write_bytes(content)
    assert "code" not in refused(tmp_path / "some.ckpt", "some.ckpt", "damaged")


def test_load_a_run_takes_the_best_else_the_last(tmp_path):
    write_checkpoint(tmp_path / "checkpoints" / "last.ckpt", small(1))
    assert same(load(tmp_path), small(1))
    write_checkpoint(tmp_path / "checkpoints" / "best.ckpt", small(2))
    assert same(load(tmp_path), small(2))
    assert best_checkpoint(tmp_path).name == "best.ckpt"


def test_nothing_there(tmp_path):
    assert refused(tmp_path / "none", "none", "shipped")
    assert refused(tmp_path / "none.ckpt", "none.ckpt")
    assert refused(tmp_path, str(tmp_path), "best.ckpt")
    with pytest.raises(ResvaeError, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")


@pytest.mark.parametrize("style", ["zip", "legacy", "pickle", "nested", "protocol 4"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(style, tmp_path):
    path, marker = tmp_path / "evil.ckpt", tmp_path / "ran"
    match style:
        case "zip":
            torch.save({"resvae": Code(marker), "state_dict": {}}, path)
        case "legacy":
            torch.save({"state_dict": Code(marker)}, path, _use_new_zipfile_serialization=False)
        case "pickle":
            path.write_bytes(pickle.dumps(Code(marker), protocol=2))
        case "protocol 4":
            path.write_bytes(pickle.dumps(Code(marker), protocol=4))
        case "nested":
            description = describe(small())
            torch.save({"resvae": description, "state_dict": {"vae.head.weight": [Code(marker)]}}, path)
    assert refused(path, "evil.ckpt", "refused" if style != "protocol 4" else "")
    with pytest.raises(ResvaeError, match=r"evil\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)  # whatever it is asked for
    assert not marker.exists()
    pickle.loads(pickle.dumps(Code(marker)))  # the bait is sound
    assert marker.exists()


def test_foreign_checkpoints(tmp_path):
    path = tmp_path / "foreign.ckpt"
    for content in ({"state_dict": {"a": torch.zeros(2)}, "epoch": 1}, {"resvae": describe(small())}):
        torch.save(content, path)
        assert refused(path, "foreign.ckpt", "not written by resvae")
    torch.save([torch.zeros(2)], path)
    assert refused(path, "foreign.ckpt", "list")
    unknown = ({"model": "GAN", "arguments": {}}, "VAE", {"model": ["VAE"], "arguments": {}}, {"model": "VAE"})
    for description in unknown:
        write_checkpoint(path, small(), description)
        assert refused(path, "foreign.ckpt", "VAE, ReferenceVAE")
    write_checkpoint(path, small(), {"model": "VAE", "arguments": {"height": 3}})
    assert refused(path, "foreign.ckpt", "height")
    write_checkpoint(path, small(), {"model": "VAE", "arguments": {"depth": 29}})
    assert refused(path, "29")


def test_weights_of_another_model(tmp_path):
    path = write_checkpoint(tmp_path / "other.ckpt", small(), describe(small(latent_dim=8)))
    assert refused(path, "other.ckpt", "do not fit", "VAE")
    (tmp_path / "a").mkdir()
    save(small(), tmp_path / "a")
    save(small(likelihood="bernoulli"), tmp_path / "b")
    (tmp_path / "b" / "config.json").replace(tmp_path / "a" / "config.json")
    assert refused(tmp_path / "a", "do not fit")


# Damaged folders


BAD_JSON = [b"no JSON", b"", b'{"model": "VAE", "argum', b"\xff\xfe\x00"]
NO_MODEL = [b"[1, 2]", b"null", b'{"model": "GAN", "arguments": {}}', b'{"model": "VAE"}']


@pytest.mark.parametrize(
    ("content", "said"), [*((bad, "not JSON") for bad in BAD_JSON), *((bad, "not known") for bad in NO_MODEL)]
)
def test_config_that_is_not_json_or_names_no_model(content, said, tmp_path):
    save(small(), tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    assert refused(tmp_path, "config.json", said)


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99, None])
def test_truncated_or_missing_weights(kept, tmp_path):
    path = save(small(), tmp_path) / "model.safetensors"
    assert refused(path, "give its folder")
    data = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(truncated(data, kept))
    assert refused(tmp_path, "model.safetensors", "lacks" if kept is None else "damaged")
