from types import SimpleNamespace

import pytest
import torch

from resvae.evaluation.neighbours import NearestImages, nearest


def images(num, seed=0, size=4):
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 7, 40, 100])
def test_the_nearest_are_those_of_a_full_search(chunk):
    bank, queries = images(40), images(9, 1)
    distances, index = nearest(queries, bank, 5, chunk=chunk)
    full = (queries[:, None].double() - bank[None].double()).div(255).square().sum((2, 3, 4)).sqrt()
    expected, order = full.sort(1)
    torch.testing.assert_close(distances, expected[:, :5])
    assert torch.equal(index, order[:, :5])
    assert nearest(queries, bank[:3], 7, chunk=chunk)[0].shape == (9, 3)  # fewer than the neighbours


def test_a_training_image_is_its_own_neighbour():
    bank = images(60, size=32)  # large enough for float32 to round the squares
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    distances, index = nearest(bank[order], bank, 1, chunk=16)
    assert torch.equal(distances, torch.zeros(60, 1, dtype=torch.float64))
    assert torch.equal(index[:, 0], order)


def test_neighbours_in_features():
    bank, queries = images(30), images(6, 1)

    def brightness(x):
        return x.float().mean((1, 2, 3))[:, None]

    distances, index = nearest(queries, bank, 1, brightness, chunk=8)
    full = (brightness(queries) - brightness(bank).T).abs()
    torch.testing.assert_close(distances[:, 0], full.min(1).values.double(), atol=1e-4, rtol=0)
    assert torch.equal(index[:, 0], full.argmin(1))


def measured(samples, test, train):
    asked = {"neighbours": True, "features": None, "device": "cpu", "tested": lambda: [test], "train": lambda: [train]}
    measure = NearestImages(SimpleNamespace(**asked))
    for batch in samples[:1000].split(7):
        measure.sampled(batch)
    found = measure.finish()
    return found.figures["neighbours"][0], *found.pictures.values()


def test_copies_lie_under_the_control():
    train = images(50, size=48)
    result, picture = measured(train[:20], images(20, 2, 48), train)
    assert result.samples_median == 0 < result.test_median
    assert (result.space, result.train_images, result.samples, result.test_images) == ("pixels", 50, 20, 20)
    for i in (0, 1):  # the sample, then its nearest: itself
        assert torch.equal(picture[:, 52:100, 50 * i + 2 : 50 * i + 50], train[1] / 255)
    fresh, _ = measured(images(20, 3), images(20, 2), images(50))
    assert fresh.samples_median == pytest.approx(fresh.test_median, rel=0.2)
