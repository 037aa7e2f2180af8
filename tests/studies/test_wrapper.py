import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers_runs import read, rows
from torch import nn

from resvae.data import Images
from resvae.errors import ResvaeError
from resvae.networks import Highway
from resvae.studies import wrapper as study
from resvae.studies.wrapper import EXAMPLES, Rows, convolutions, train, wrapper


def example(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_networks_are_those_described():
    plain = convolutions("none")
    assert (
        count(plain) == count(convolutions("sum")) == (9 + 1) * 64 + (9 * 64 + 1) * 8 + 5 * (9 * 8 + 1) * 8 + 129 * 10
    )
    assert count(convolutions("highway")) - count(plain) == 5 * 9 * 8
    lstm = 2 * 4 * 16 * (32 + 16 + 2)  # directions, gates, and inputs, state and two biases each
    assert count(Rows("none")) == count(Rows("sum")) == 9 * 32 + 6 * lstm + 33 * 10
    assert count(Rows("highway")) - count(Rows("none")) == 6 * 33 * 32


@pytest.mark.parametrize("make", EXAMPLES.values())
def test_a_wrapped_layer_of_nothing_passes_its_input_and_the_twins_does_not(make):
    x = example(3, 1, 8, 8).abs()
    for merge, same in (("sum", True), ("none", False)):
        torch.manual_seed(0)
        model, shallow = make(merge, 3).eval(), make(merge, 0).eval()
        for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.LSTM)):
            if isinstance(layer, nn.LSTM) or layer.in_channels == layer.out_channels:
                for weight in layer.parameters():
                    nn.init.zeros_(weight)
        kept = {name: value for name, value in model.state_dict().items() if name in shallow.state_dict()}
        if make is convolutions:  # the last layer's name tells its place
            kept |= {f"7.{name}": model.state_dict()[f"13.{name}"] for name in ("weight", "bias")}
        shallow.load_state_dict(kept)
        assert torch.allclose(model(x), shallow(x), atol=1e-6) is same


def test_rows_are_the_sequence_and_gates_mix_channels():
    model = Rows("highway", 1)
    assert isinstance(model.layers[0].merge, Highway)
    x = example(2, 1, 8, 8)
    seen = []
    model.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(x)
    torch.testing.assert_close(seen[0][:, 3], model.embed(x[:, 0, 3]))
    assert model.layers[0].merge.gate.dim == -1


def test_training_learns_and_counts_errors(monkeypatch):
    class Logits(nn.Linear):
        modes: ClassVar[list[bool]] = []

        def forward(self, input):
            self.modes.append(self.training)
            return super().forward(input.flatten(1))

    monkeypatch.setattr(study, "LEARNING_RATE", 0.03)
    y = torch.arange(128) % 2
    x = example(128, 1, 8, 8) + 3 * y[:, None, None, None]
    model = Logits(64, 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    torch.manual_seed(0)
    result = train(model, Images(x, y), Images(x[:100], 1 - y[:100]), 10)
    assert model.modes == 20 * [True] + [False]  # two minibatches an epoch
    assert len(result.losses) == 10
    assert math.log(10) * 0.6 < result.losses[0] < math.log(10)  # the untrained network's, and that after one step
    assert result.losses[-1] < 0.4
    assert result.test_error > 0.95  # of labels exchanged
    assert result.parameters == 650
    assert train(model, Images(x, y), Images(x, y), 1).test_error < 0.05
    assert model.modes[21:] == [True, True, False]


def test_the_study_writes_its_table_and_goes_on(tmp_path: Path, monkeypatch, capsys):
    def linear(merge):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    monkeypatch.setattr(study, "EXAMPLES", {"one": linear, "two": linear})
    wrapper(merges=("none", "sum"), seeds=2, epochs=1, out=str(tmp_path))
    printed = capsys.readouterr().out
    for name in ("wrapper.md", "wrapper.csv", "wrapper.png"):
        assert f"wrote {tmp_path / name}" in printed
        assert (tmp_path / name).stat().st_size > 0
    assert "No figures are published" in printed

    before, record = rows(tmp_path / "wrapper.csv"), read(tmp_path / "study.json")["rows"]
    names = [(row["example"], row["merge"]) for row in before]
    assert names == [("one", "none"), ("one", "sum"), ("two", "none"), ("two", "sum")]
    assert before[0]["training loss"] == before[1]["training loss"] == before[2]["training loss"]  # the same seeds
    assert float(before[0]["training loss ±"]) > 0
    wrapper(merges=("none", "sum", "half"), seeds=2, epochs=1, out=str(tmp_path))
    again = read(tmp_path / "study.json")["rows"]
    assert len(again) == len(record) + 4
    assert {name: again[name] for name in record} == record  # with their seconds: the new merge alone was trained
    assert [row for row in rows(tmp_path / "wrapper.csv") if row["merge"] != "half"] == before
    with pytest.raises(ResvaeError, match="epochs 1, not 2"):
        wrapper(epochs=2, out=str(tmp_path))


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"epochs": 0}, {"merges": ()}])
def test_nothing_is_refused(wrong, tmp_path: Path):
    with pytest.raises(ResvaeError, match=f"{next(iter(wrong))}: 0 is not allowed; at least 1"):
        wrapper(**wrong, out=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
