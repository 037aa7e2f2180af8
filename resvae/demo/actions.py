"""What the page shows: from a model and values to images, without a page."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Normal

from resvae.data.pictures import decoded
from resvae.errors import ResvaeError
from resvae.isolation import isolated
from resvae.models import HierarchicalVAE, ImageVAE
from resvae.models.levels import mean_of
from resvae.networks.units import Unit, parts, replaced

DRAWS = 16  # of the posterior, whose mean KL is shown


def levels(vae: ImageVAE) -> dict[str, int]:
    """The levels that have latents by their names, coarsest first; a VAE of one latent vector has one."""
    if not isinstance(vae, HierarchicalVAE):
        return {"latents": 0}
    return {"level {}, {}x{}".format(level, *vae.latent_shapes[level][1:]): level for level in vae.stochastic}


def blocks(vae: ImageVAE) -> dict[str, Unit]:
    """The decoder's residual blocks by their names; none in a model of one's own that is built otherwise."""
    try:
        found = parts(vae).get("decoder", [])
    except ResvaeError:
        return {}
    return {f"{unit.name.removeprefix('decoder.')}{' (changes the shape)' * unit.changes}": unit for unit in found}


def read(file: str, vae: ImageVAE) -> Tensor:
    """A picture's file as training would see it: turned, cut and scaled, uint8 ``[1, C, H, W]``, on the model's device.

    Raises ``ResvaeError`` for one that cannot be read or has fewer pixels than the model's images.
    """
    from PIL import Image

    channels, *shape = vae.image_shape
    try:
        with Image.open(file) as picture:
            size = picture.size
        pixels = decoded(Path(file), (shape[0], shape[1])).channels(channels)
    except ResvaeError as error:
        raise ResvaeError(str(error).replace(file, "picture: it")) from error
    except Exception as error:  # decoders of broken files raise anything
        raise ResvaeError("picture: this file is not an image that can be read, or it is damaged") from error
    if min(size) < min(shape):
        raise ResvaeError(f"picture: {size[0]}x{size[1]} pixels are too few; at least {shape[1]}x{shape[0]} are needed")
    return torch.from_numpy(pixels)[None].to(next(vae.parameters()).device)


def draw(vae: ImageVAE, num: int, temperatures: Sequence[float] = (), seed: int = 0) -> Tensor:
    """``num`` new images ``[num, C, H, W]`` in [0, 1], with a temperature for each of ``levels`` (default: 1)."""
    each = dict(zip(levels(vae).values(), temperatures, strict=False))
    num_levels = vae.num_levels if isinstance(vae, HierarchicalVAE) else 1
    with isolated(vae, seed):
        return vae.sample(num, [each.get(level, 1.0) for level in range(num_levels)])


def seen(vae: ImageVAE, x: Tensor) -> Tensor:
    """Reconstructions ``[1 + L, C, H, W]`` of one image, of which none, one, two, ... all L of ``levels`` see it."""
    with isolated(vae, 0):
        encoded = vae.encoded(x)
        if isinstance(vae, HierarchicalVAE):
            return torch.cat([vae.reconstruct(encoded, num) for num in (0, *(level + 1 for level in vae.stochastic))])
        return torch.cat([vae.sample(1, 0.0), vae.reconstruct(encoded)])


def nats(vae: ImageVAE, x: Tensor) -> list[float]:
    """The KL of each of ``levels`` for one image, nats: the mean of several draws from the levels above."""
    with isolated(vae, 0):
        kl = vae.elbo(vae.encoded(x).repeat(DRAWS)).kl.mean(0)
    return [kl[level].item() for level in levels(vae).values()]


def between(vae: ImageVAE, a: Tensor, b: Tensor, part: float) -> Tensor:
    """The image ``[1, C, H, W]`` at a ``part`` in [0, 1] of the line between the latents of two images."""
    with isolated(vae, 0):
        return vae.decode(vae.at_mean(a)[0].lerp(vae.at_mean(b)[0], part)).mean.clamp(0, 1)


def lesioned(vae: ImageVAE, x: Tensor, off: Collection[str] = (), removed: Collection[str] = ()) -> Tensor:
    """Reconstructions ``[B, C, H, W]`` without some of the decoder.

    Args:
        vae: the model.
        x: images.
        off: names of ``levels`` of a hierarchical model; they take their prior's mean and do not see the image.
        removed: names of ``blocks``; they pass on what their connection carries and add nothing.
    """

    def choose(level: int, prior: Normal, posterior: Normal | None) -> Tensor:
        return mean_of(level, prior, prior if level in blind else posterior)

    blind, found = {levels(vae)[name] for name in off}, blocks(vae)
    with isolated(vae, 0), replaced((found[name], found[name].carried) for name in removed):
        if isinstance(vae, HierarchicalVAE):
            return vae.descend(choose, x, fit=False)[0].mean.clamp(0, 1)
        return vae.reconstruct(x)
