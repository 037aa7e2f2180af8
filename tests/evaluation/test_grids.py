import subprocess
import sys

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from resvae.errors import ResvaeError
from resvae.evaluation import beside, image_grid, save_grid


def flat(num, channels=3, size=48):
    """Image i is of one shade: (i + 1) / 100."""
    return torch.arange(1, num + 1)[:, None, None, None].expand(num, channels, size, size) / 100


def tiles(grid, rows, columns, size=48):
    """Which images lie in the grid, row by row; every tile is of one shade, and its frame white."""
    found = []
    for row in range(rows):
        for column in range(columns):
            top, left = 2 + row * (size + 2), 2 + column * (size + 2)
            tile = grid[:, top : top + size, left : left + size]
            assert (tile == tile[0, 0, 0]).all()
            found.append(round(100 * tile[0, 0, 0].item()) - 1)
    assert (grid[:, :2] == 1).all()
    assert (grid[:, :, -2:] == 1).all()
    return found


@pytest.mark.parametrize(("num", "columns", "expected"), [(6, 3, 3), (9, None, 3), (8, None, 3), (5, 5, 5), (2, 8, 2)])
def test_tiles_lie_row_by_row(num, columns, expected):
    grid = image_grid(flat(num), columns)
    rows = -(-num // expected)
    assert grid.shape == (3, 2 + 50 * rows, 2 + 50 * expected)
    assert tiles(grid, rows, expected)[:num] == list(range(num))


def test_a_grid_of_one_image():
    grid = image_grid(flat(1))
    assert grid.shape[0] == 3
    assert (grid[:, 2:-2, 2:-2] == 0.01).all()


@pytest.mark.parametrize(("size", "tile"), [(8, 48), (10, 40), (28, 28), (32, 32), (64, 64), (1, 48)])
def test_small_images_are_enlarged_by_whole_factors(size, tile):
    grid = image_grid(flat(4, size=size), 2)
    assert grid.shape == (3, 2 + 2 * (tile + 2), 2 + 2 * (tile + 2))
    assert tiles(grid, 2, 2, tile) == [0, 1, 2, 3]


def test_enlarging_repeats_pixels():
    x = torch.rand(2, 3, 8, 8)
    grid = image_grid(x, 2)
    assert torch.equal(grid[:, 2:50:6, 2:50:6], x[0])
    assert torch.equal(grid[:, 7:50:6, 57:102:6], x[1])


def test_any_number_of_channels():
    assert image_grid(flat(4, 1)).shape == image_grid(flat(4, 3)).shape == image_grid(flat(4, 5)).shape
    x = torch.rand(1, 2, 48, 48).expand(4, -1, -1, -1)
    torch.testing.assert_close(image_grid(x)[0, 2:50, 2:50], x[0].mean(0))


def test_originals_lie_over_their_reconstructions():
    originals = flat(6, size=1)
    pairs = beside(originals, originals + 0.5, columns=3)
    shades = (100 * pairs.flatten()[::3]).round().int().tolist()
    assert shades == [1, 2, 3, 51, 52, 53, 4, 5, 6, 54, 55, 56]


def test_beside_fills_the_last_rows():
    originals = flat(11, size=2)
    pairs = beside(originals, originals, columns=4)
    assert pairs.shape == (24, 3, 2, 2)
    assert [i for i, image in enumerate(pairs) if (image == 1).all()] == [19, 23]
    assert beside(originals[:3], originals[:3]).shape == (6, 3, 2, 2)  # fewer than a row


def test_save_grid(tmp_path):
    images = torch.rand(6, 3, 16, 16)
    path = save_grid(images, tmp_path / "grid.png", 3)
    assert path == tmp_path / "grid.png"
    read = pil_to_tensor(Image.open(path)) / 255
    torch.testing.assert_close(read, image_grid(images, 3), atol=0.51 / 255, rtol=0)
    save_grid(images, str(tmp_path / "grid.JPG"))
    assert (tmp_path / "grid.JPG").is_file()


def test_bad_paths_are_refused_before_anything_is_written(tmp_path):
    images = torch.rand(4, 3, 8, 8)
    with pytest.raises(ResvaeError, match=r"none.grid\.png.*none does not exist"):
        save_grid(images, tmp_path / "none" / "grid.png")
    with pytest.raises(ResvaeError, match=r"grid\.txt.*\.png"):
        save_grid(images, tmp_path / "grid.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("resvae.verbs.sample, resvae.verbs.reconstruct, resvae.verbs.interpolate", ["matplotlib"]),
        ("resvae.models, resvae.storage", ["torchvision", "yaml", "matplotlib"]),
    ],
)
def test_what_draws_pictures_imports_no_training_and_no_metrics(modules, absent):
    absent = [*absent, "pytorch_lightning", "lightning_fabric", "torchmetrics", "sklearn"]
    code = f"import sys, {modules}; print([m for m in {absent!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
