"""What the parser refuses is told like everything else: the field, the value and what is allowed, in plain words."""

import pytest
from helpers_runs import command, refused

from resvae.messages import plain

FIT = {
    "--model.precision fp8": "model.precision: fp8 is not allowed; one of auto, bf16, fp32",
    "--data.batch_size 2.5": "data.batch_size: 2.5 is not allowed; a whole number",
    "--data.flip maybe": "data.flip: maybe is not allowed; true or false",
    "--trainer.max_epochs ten": "trainer.max_epochs: ten is not allowed; a whole number or null",
    "--model.compile perhaps": "model.compile: perhaps is not allowed; true or false or one of auto, reduce-overhead",
    "--model.vae.depth deep": "model.vae.depth: deep is not allowed; a whole number or a list of whole numbers",
    "--model.vae.init_args.block.kind big": "model.vae.block.kind: big is not allowed; one of bottleneck, basic",
    "--model.vae.depht 40": "model.vae.depht: there is no such field; resvae.VAE takes depth, latent_dim, ",
    "--model.vae resvae.Vae": "model.vae: resvae.Vae cannot be imported (module resvae has no attribute Vae)",
    "--model.vae nowhere": "model.vae: nowhere is not a class that can be imported",
    "--model.optimizer torch.optim.Adm": "model.optimizer: torch.optim.Adm cannot be imported (",
    "--model.optimizer torch.optim.AdamW --model.optimizer.lr fast": "optimizer.lr: fast is not allowed; a number",
    "--model.optimizer torch.optim.AdamW --model.optimizer.of 1": "of: there is no such field; torch.optim.AdamW takes",
    "--trainer.nonsense 3": "trainer.nonsense: there is no such option; --help lists them",
    "--data.crop_padding": "data.crop_padding: a value is missing",
    "--data 3": "data: 3 is not allowed; fields with their values, or a file of them",
    "more": "arguments: more is one too many; --help shows what is taken",
}


@pytest.mark.parametrize("options", FIT)
def test_options_of_fit(tmp_path, capsys, options):
    refused(capsys, command(tmp_path, options), f"error: {FIT[options]}" if FIT[options][0] in "md" else FIT[options])
    assert not (tmp_path / "runs").exists()


def test_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["fit", "--config", "nowhere.yaml"], "error: config: ", "nowhere.yaml does not exist")
    refused(capsys, ["fit", "--config", "."], "error: config: ", " is not a file")
    (tmp_path / "wrong.yaml").write_text("data: [1\n model: 2\n")
    refused(capsys, ["fit", "--config", "wrong.yaml"], "error: config: it is not YAML (", "line 2")
    (tmp_path / "group.yaml").write_text("data: {nam: digits}\n")
    refused(capsys, ["fit", "--config", "group.yaml"], "error: data.nam: there is no such field")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("sample digits --num many", "num: many is not allowed; a whole number"),
        ("sample digits --temperature [a]", "temperature: ['a'] is not allowed; a number or a list of numbers"),
        ("sample digits --outt x", "outt: there is no such option; --help lists them"),
        ("decode digits nowhere.npz", "latents: nowhere.npz does not exist"),
    ],
)
def test_other_verbs(capsys, line, told):
    refused(capsys, line.split(), f"error: {told}\n")


def test_what_is_not_known_stays_as_it_is():
    assert plain("the following arguments are required: model") == "the following arguments are required: model"
    assert plain('Parser key "a": Parser key "b": odd') == "a.b: odd"
