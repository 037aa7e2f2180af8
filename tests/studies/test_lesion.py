from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
import torch
from helpers_runs import perturbed, refused, rows
from PIL import Image
from scipy.stats import kendalltau
from torch import nn

from resvae import VAE, HierarchicalVAE, ResNetClassifier, save
from resvae.errors import ResvaeError
from resvae.networks import BlockConfig
from resvae.networks.units import replaced
from resvae.studies.lesion import chance, descend, figure, lesion, lesions, parts, rearranged, tau

RESIDUAL = BlockConfig(order="full_pre", norm="batch", activation="relu", shortcut="zero_pad")
PLAIN = BlockConfig(order="full_pre", norm="batch", activation="relu", shortcut="zero_pad", merge="none")


def classifier(block: BlockConfig = RESIDUAL, depth: int = 20) -> ResNetClassifier:
    torch.manual_seed(0)
    model = ResNetClassifier(depth=depth, image_shape=(1, 8, 8), block=block)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(images(20))  # statistics under which not all images look alike
    return model.eval()


def hierarchical() -> HierarchicalVAE:
    torch.manual_seed(0)
    return perturbed(HierarchicalVAE((2, 1), (1, 2), 2, (1, 8, 8), (4, 8), (1, 2)))


def images(num: int, channels: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (num, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_every_block_is_deleted_alone_and_k_of_them_at_random():
    blocks = parts(classifier())["encoder"]
    deleted = {k: orders for move, k, orders in lesions(blocks, 3, 0) if move == "deleted"}
    assert deleted[0] == [tuple(range(9))]
    assert [order.index(-1) for order in deleted[1]] == list(range(9))
    for k, orders in deleted.items():
        assert len(orders) == len(set(orders)) <= (9 if k == 1 else 3)
        for order in orders:
            assert order.count(-1) == k
            assert all(i in (-1, place) for place, i in enumerate(order))
    more = {k: orders for move, k, orders in lesions(blocks, 5, 0) if move == "deleted"}
    assert more[4][:3] == deleted[4]
    assert deleted[4] != {k: orders for move, k, orders in lesions(blocks, 3, 1) if move == "deleted"}[4]
    assert max(k for _, k, _ in lesions(3 * blocks, 1)) == 20


def test_only_interchangeable_blocks_are_exchanged_and_none_twice():
    found = parts(VAE((4, 4), 2, (1, 8, 8), (4, 8), (1, 2), RESIDUAL))
    for part, free in (("encoder", {1, 2, 3, 5, 6, 7}), ("decoder", {0, 1, 2, 3, 5, 6, 7})):
        exchanged = {k: orders for move, k, orders in lesions(found[part], 20, 0) if move == "exchanged"}
        assert max(exchanged) == sum(len(free & stage) // 2 for stage in ({0, 1, 2, 3}, {4, 5, 6, 7}))
        for k, orders in exchanged.items():
            for order in orders:
                moved = {place for place, i in enumerate(order) if i != place}
                assert len(moved) == 2 * k
                assert moved <= free
                assert all(order[order[place]] == place and order[place] // 4 == place // 4 for place in moved)
        assert {place for order in exchanged[1] for place, i in enumerate(order) if i != place} == free


def test_blocks_of_one_width_in_two_stages_are_not_exchanged():
    blocks = parts(VAE((2, 2), 2, (1, 8, 8), (4, 4), (1, 2), RESIDUAL))["decoder"]
    exchanged = {order for move, _, orders in lesions(blocks, 9, 0) if move == "exchanged" for order in orders}
    assert exchanged == {(0, 1, 2, 3), (1, 0, 2, 3)}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 3, 2, 1, 4), (1, 0, 3, 2), (4, 0, 2, 1, 3)])
def test_tau_is_kendalls(order: tuple[int, ...]):
    assert tau(order) == pytest.approx(kendalltau(range(len(order)), order).statistic)
    assert tau((0,)) == 1


@pytest.mark.parametrize("block", [RESIDUAL, PLAIN], ids=["residual", "plain"])
def test_rearranged_is_a_network_that_was_built_that_way(block: BlockConfig):
    model, x = classifier(block), images(3)
    whole, found = model(x), parts(model)["encoder"]
    with replaced(rearranged(found, (0, 2, 1, 3, -1, 5, 6, 8, 7))):
        lesioned = model(x)
    torch.testing.assert_close(model(x), whole, rtol=0, atol=0)
    first, second, third = model.encoder.stages
    for i, stage, blocks in ((0, first, (0, 2, 1)), (1, second, (0, None, 2)), (2, third, (0, 2, 1))):
        built = [nn.Identity() if j is None else stage[j] for j in blocks]  # pyright: ignore
        model.encoder.stages[i] = nn.Sequential(*built)
    torch.testing.assert_close(lesioned, model(x))
    assert (lesioned - whole).abs().max() > 1e-3


def test_a_figure_is_of_all_images_and_leaves_no_trace():
    model, x = classifier(), images(260)  # more than one batch
    seen = model(x).argmax(1)
    state = torch.get_rng_state()
    assert figure(model.train(), x, seen) == 0
    seen[:2] += 1
    assert figure(model, x, seen) == pytest.approx(2 / 260)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("likelihood", "unit"), [("discretized_logistic", "bits/dim"), ("bernoulli", "-ELBO, nats")])
def test_a_vae_is_measured_in_its_unit_with_the_same_noise(likelihood: str, unit: str):
    vae, x = VAE((1, 1), 2, (1, 8, 8), (4, 4), (1, 2), likelihood=likelihood), images(4)
    assert chance(vae) == (unit, 8.0 if unit == "bits/dim" else None)
    torch.manual_seed(3)
    terms = vae.elbo(x)
    expected = terms.bits_per_dim if terms.discrete else -terms.elbo
    assert figure(vae, x, x[:, 0, 0, 0], seed=3) == pytest.approx(expected.mean().item(), rel=1e-5)
    assert figure(vae, x, x[:, 0, 0, 0], seed=4) != pytest.approx(expected.mean().item(), rel=1e-5)


def test_a_descent_is_the_elbos():
    vae, x = hierarchical(), images(260)
    whole = descend(vae, x)
    assert sum(whole) == pytest.approx(figure(vae, x, x[:, 0, 0, 0]), rel=1e-5)
    vae.stochastic_depth = 2
    assert len(descend(vae, x)) == 3
    assert sum(descend(vae, x)) == pytest.approx(figure(vae, x, x[:, 0, 0, 0]), rel=1e-5)


@pytest.mark.parametrize("mean", [False, True])
def test_a_level_without_its_image_costs_nothing_and_harms_those_below_alone(mean: bool):
    vae, x = hierarchical(), images(5)
    whole = descend(vae, x)
    for level in range(3):
        lesioned = descend(vae, x, level, mean)
        assert lesioned[1 + level] == 0
        assert lesioned[1 : 1 + level] == pytest.approx(whole[1 : 1 + level])
        assert lesioned[0] != pytest.approx(whole[0])
        if level < 2:
            assert lesioned[2 + level :] != pytest.approx(whole[2 + level :])
    assert descend(vae, x, 0, mean) != descend(vae, x, 0, not mean)


@pytest.mark.parametrize("mean", [False, True])
def test_of_a_level_that_nothing_reads_only_the_kl_goes_for_the_noise_is_the_same(mean: bool):
    vae, x = hierarchical(), images(5)
    level = next(module for module in vae.modules() if hasattr(module, "posterior_net"))
    with torch.no_grad():
        for p in level.project.parameters():  # pyright: ignore
            p.zero_()
    (distortion, kl, *others), (less, none, *same) = descend(vae, x), descend(vae, x, 0, mean)
    assert (less, same) == (pytest.approx(distortion), pytest.approx(others))
    assert kl > 0 == none


def test_the_tables_show_what_a_block_is_worth_and_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, out = classifier(), tmp_path / "out"
    idle = [unit for unit in parts(model)["encoder"] if not unit.changes][1:]
    with torch.no_grad():
        for unit in idle:  # adds nothing
            unit.block.branch[-1].weight.zero_()  # pyright: ignore
    save(model, tmp_path / "model")
    save(classifier(PLAIN), tmp_path / "twin")
    options: dict[str, Any] = {"num": 40, "draws": 2, "data": "digits", "out": str(out)}
    lesion(str(tmp_path / "model"), str(tmp_path / "twin"), **options)
    found = rows(out / "blocks.csv")
    assert [row["name"] for row in found if row["shape"] == "changes"] == ["encoder.stages.1.0", "encoder.stages.2.0"]
    assert [row["difference"] for row in found if row["name"] in {unit.name for unit in idle}] == ["0.0"] * 6
    assert any(float(row["twin difference"]) != 0 for row in found)
    whole, alone, *_, none = rows(out / "deleted.csv")
    assert (whole["networks"], alone["networks"], none["networks"]) == ("1", "9", "1")
    assert float(alone["error"]) == pytest.approx(sum(float(row["error"]) for row in found) / 9)
    spread = stdev(float(row["twin error"]) for row in found)
    assert float(alone["twin ±"]) == pytest.approx(spread)
    exchanged = rows(out / "exchanged.csv")
    assert {row["difference"] for row in exchanged} == {"0.0"}
    assert [float(row["Kendall's tau"]) for row in exchanged] == pytest.approx([1, 17 / 18, 16 / 18, 15 / 18])
    with Image.open(out / "lesion.png") as picture:
        assert picture.width > 1000
    text = capsys.readouterr().out
    assert "first 40 test images of digits" in text
    assert "Reported (Veit 2016" in text
    assert f"wrote {out / 'lesion.png'}" in text

    before = (out / "study.json").stat().st_mtime_ns
    lesion(str(tmp_path / "model"), **options | {"draws": 1})
    assert "twin error" not in rows(out / "blocks.csv")[0]
    assert (out / "study.json").stat().st_mtime_ns == before  # nothing was measured again
    lesion(str(tmp_path / "model"), **options | {"draws": 3})
    assert (out / "study.json").stat().st_mtime_ns != before


def test_levels_have_a_table_of_their_own(tmp_path: Path):
    save(hierarchical(), tmp_path / "model")
    options = {"num": 20, "draws": 1, "data": "digits", "out": str(tmp_path / "out")}
    lesion(str(tmp_path / "model"), **options)  # pyright: ignore
    none, *levels = rows(tmp_path / "out/levels.csv")
    assert [row["level"] for row in levels] == ["0: 2x4x4", "1: 2x8x8", "2: 2x8x8"]
    assert float(none["KL"]) == pytest.approx(sum(float(row["KL"]) for row in levels))
    assert float(none["distortion"]) + float(none["KL"]) == pytest.approx(float(none["bits/dim"]))
    for row in levels:
        assert float(row["difference"]) == pytest.approx(float(row["bits/dim"]) - float(none["bits/dim"]))
    assert {row["part"] for row in rows(tmp_path / "out/blocks.csv")} == {"encoder", "decoder"}


def test_a_lesion_that_no_number_holds_does_not_stop_the_study(tmp_path: Path):
    vae = VAE((1, 1), 2, (1, 8, 8), (4, 4), (1, 2), likelihood="bernoulli")
    with torch.no_grad():
        vae.head.weight.fill_(1e38)
    save(vae, tmp_path / "model")
    lesion(str(tmp_path / "model"), num=5, draws=2, data="digits", out=str(tmp_path / "out"))
    assert {row["-ELBO, nats"] for row in rows(tmp_path / "out/blocks.csv")} & {"inf", "nan"}


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save(classifier(depth=14), tmp_path / "shallow")
    save(VAE((1, 1), 2, (1, 8, 8), (4, 4), (1, 2)), tmp_path / "vae")
    np.savez(tmp_path / "plain.npz", images=np.zeros((20, 8, 8), np.uint8))
    command = f"study lesion {save(classifier(), tmp_path / 'model')} --out {tmp_path}/out"
    for more, message in (
        ("digits --draws 0", "draws: 0 is not allowed; at least 1"),
        (f"digits --twin {tmp_path}/shallow", "twin: a ResNetClassifier of 6 blocks is not allowed; a ResNet"),
        (f"digits --twin {tmp_path}/vae", "twin: a VAE of 4 blocks is not allowed; a ResNetClassifier of 9"),
        (f"npz --path {tmp_path}/plain.npz", "data: the images of npz are not labelled"),
    ):
        refused(capsys, f"{command} --data {more}".split(), message)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ResvaeError, match="a Linear has no residual block"):
        parts(nn.Linear(1, 1))
