"""Small hierarchical models, and what their tests share."""

from typing import Any

import torch

from resvae.models import HierarchicalVAE
from resvae.models.hierarchical import Level

TINY: dict[str, Any] = {"depth": (1, 1), "levels": (2, 1), "latent_channels": 2, "image_shape": (3, 8, 8)}
TINY |= {"widths": (8, 16), "strides": (1, 2)}
FOUR: dict[str, Any] = {"latent_channels": 2, "image_shape": (3, 8, 8), "widths": (4, 4, 8, 8)}


def drawn(vae, size=0.5):
    """With weights drawn anew, of one scale: priors that differ from N(0, 1), and posteriors from them."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in vae.parameters():
            fan_in = p[0].numel() if p.ndim == 4 else 10
            p.copy_(size * fan_in**-0.5 * torch.randn(p.shape, generator=generator))
    return vae.eval()


def fresh(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return HierarchicalVAE(**TINY | arguments)


def tiny(**arguments):
    return drawn(fresh(**arguments))


def images(num, shape=(3, 8, 8), seed=1):
    return torch.randint(0, 256, (num, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def seeded(seed, function, *args, **kwargs):
    torch.manual_seed(seed)
    return function(*args, **kwargs)


def sampled(level, prior, posterior):
    return posterior.rsample()


def means(level, prior, posterior):
    return (prior if posterior is None else posterior).mean


def levels_of(vae: Any) -> list[Any]:
    return [module for stage in vae.stages for module in stage if isinstance(module, Level)]


def assert_zero_mean(values, error_below):
    """Of draws along the first dimension, within 5 standard errors, which are small enough to tell."""
    values = values.double()
    error = values.std(0) / len(values) ** 0.5
    assert (values.mean(0).abs() < 5 * error).all()
    assert (error < error_below).all()


def same_visits(a, b):
    pairs = [(v.z, w.z) for v, w in zip(a, b, strict=True)]
    for part in ("prior", "posterior"):
        for v, w in zip(a, b, strict=True):
            p, q = getattr(v, part), getattr(w, part)
            pairs += [(p.mean, q.mean), (p.stddev, q.stddev)]
    return all(torch.equal(x, y) for x, y in pairs)
