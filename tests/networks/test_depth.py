import pytest
import torch
from torch import nn

from resvae.errors import ResvaeError
from resvae.networks import BlockConfig, ResNetDecoder, ResNetEncoder
from resvae.networks.depth import cifar_blocks, imagenet_blocks, latent_levels, vae_blocks


def test_published_depths_have_their_published_blocks():
    article = {28: (1, 1, 1, 1), 40: (1, 2, 2, 1), 70: (2, 3, 4, 2), 100: (3, 4, 6, 3)}
    published = article | {202: (3, 4, 23, 3), 304: (3, 8, 36, 3)}
    assert {depth: vae_blocks(depth) for depth in published} == published


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
@pytest.mark.parametrize("num_stages", [1, 3, 4, 5])
def test_every_number_of_blocks_from_the_least_is_shared_out_whole(kind, num_stages):
    for num in range(num_stages, 200):
        blocks = vae_blocks(2 * {"bottleneck": 3, "basic": 2}[kind] * num + 4, num_stages, kind)
        assert (sum(blocks), len(blocks)) == (num, num_stages)
        assert min(blocks) >= 1


def test_four_stages_keep_he_s_proportions_within_one_block():
    for num in set(range(6, 300)) - {33, 50}:
        blocks = vae_blocks(6 * num + 4)
        assert all(abs(b - num * p / 16) < 1 for b, p in zip(blocks, (3, 4, 6, 3), strict=True)), blocks


def test_other_numbers_of_stages_are_equal_with_the_extra_blocks_late():
    assert vae_blocks(6 * 11 + 4, num_stages=3) == (3, 4, 4)
    assert vae_blocks(4 * 5 + 4, num_stages=2, kind="basic") == (2, 3)


@pytest.mark.parametrize(("kind", "depth"), [*(("bottleneck", n) for n in (28, 70, 1000)), ("basic", 40)])
def test_depth_counts_the_weighted_layers_of_the_main_path(kind, depth):
    blocks, config = vae_blocks(depth, kind=kind), BlockConfig(kind=kind)
    with torch.device("meta"):
        networks = ResNetEncoder(blocks=blocks, config=config), ResNetDecoder(8, blocks=blocks[::-1], config=config)
    modules = [item for network in networks for item in network.named_modules() if "shortcut" not in item[0]]
    weighted = [name for name, part in modules if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    assert len(weighted) + 1 == depth  # and the latent head


REFUSED = [
    (vae_blocks, {29: "28 and 34", 33: "28 and 34", 999: "994 and 1000", 27: "28 and 34 .*basic", -5: "28 and 34"}),
    (cifar_blocks, {21: "20 and 26", 0: "8 and 11", 10**12: "999999999998 and 1000000000001"}),
    (imagenet_blocks, {49: "34 and 50"}),
]


@pytest.mark.parametrize(("blocks", "refused"), REFUSED)
def test_a_depth_that_no_blocks_give_is_refused_with_the_two_nearest(blocks, refused):
    for depth, said in refused.items():
        with pytest.raises(ResvaeError, match=f"depth: {depth} .*{said}"):
            blocks(depth)
    with pytest.raises(ResvaeError, match="20 and 24"):
        vae_blocks(21, kind="basic")


@pytest.mark.parametrize("blocks", [(1, 0, 1, 1), (1, 1, 1), (1, 1.5, 1, 1), (), "28", 28.0, None])
def test_only_positive_blocks_one_per_stage_are_accepted(blocks):
    with pytest.raises(ResvaeError, match=r"depth: .* is not allowed"):
        vae_blocks(blocks)


def test_blocks_are_accepted_wherever_a_depth_is():
    assert vae_blocks([1, 5, 1, 2]) == (1, 5, 1, 2)
    assert cifar_blocks((2, 2, 2)) == ("basic", (2, 2, 2))
    assert imagenet_blocks((2, 2, 2, 2)) == ("bottleneck", (2, 2, 2, 2))


def test_an_unknown_kind_or_no_stage_is_refused():
    with pytest.raises(ResvaeError, match="kind: 'wide'"):
        vae_blocks(28, kind="wide")
    with pytest.raises(ResvaeError, match="num_stages: 0"):
        vae_blocks(28, num_stages=0)


def test_cifar_depths():
    basic, bottleneck = {8: 1, 20: 3, 110: 18, 1202: 200}, {11: 1, 29: 3, 164: 18, 1001: 111}
    for kind, depths in (("basic", basic), ("bottleneck", bottleneck)):
        assert {depth: cifar_blocks(depth) for depth in depths} == {d: (kind, (n, n, n)) for d, n in depths.items()}


def test_imagenet_depths():
    # He 2015, table 1: two convolutions per basic block, three per bottleneck, the stem and the classifier
    for depth in (18, 34, 50, 101, 152):
        kind, blocks = imagenet_blocks(depth)
        assert {"basic": 2, "bottleneck": 3}[kind] * sum(blocks) + 2 == depth


@pytest.mark.parametrize("num_stages", [1, 3, 4, 5])
def test_every_number_of_levels_is_shared_out_evenly_from_the_coarsest_stage_on(num_stages):
    for num in range(1, 40):
        levels = latent_levels(num, num_stages)
        assert (sum(levels), len(levels)) == (num, num_stages)
        assert max(levels) - min(levels) <= 1
        assert levels == tuple(sorted(levels, reverse=num < num_stages))


def test_levels_of_four_stages_coarsest_first():
    given = [latent_levels(num) for num in (1, 3, 4, 6, 8)]
    assert given == [(1, 0, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1), (1, 1, 2, 2), (2, 2, 2, 2)]
    assert latent_levels([0, 5, 0, 1]) == (0, 5, 0, 1)


def test_other_levels_are_refused():
    for levels in (0, -1, (1, 1, 1), (0, 0, 0, 0), (1, -1, 1, 1), (1, 1.5, 1, 1), (), "1111", 4.0, None):
        with pytest.raises(ResvaeError, match=r"^levels: .* is not allowed; ") as caught:
            latent_levels(levels)
        assert f"levels: {levels!r} " in str(caught.value)
        assert "\n" not in str(caught.value)
