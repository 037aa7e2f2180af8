"""``resvae study lesion``: blocks deleted and exchanged in a trained network, levels of latents from their prior."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from resvae.devices import double
from resvae.errors import ResvaeError, whole_from
from resvae.files import write_figure
from resvae.isolation import isolated
from resvae.models import HierarchicalVAE, ImageModel
from resvae.networks.units import Forward, Unit, parts, replaced, units
from resvae.progress import progress
from resvae.storage import load_as
from resvae.studies.record import Record, Row, fingerprint, subject

BATCH, MOST = 250, 20  # images at once; blocks deleted or pairs exchanged
REPORTED = "Reported (Veit 2016: pre-activation R110, 54 blocks, CIFAR-10):"
NOTES = {
    "blocks": f"{REPORTED} almost no change, except at down-sampling blocks; in a plain network, chance.",
    "deleted": f"±: standard deviation of the networks. {REPORTED} error rises smoothly, to 0.2 with 10 deleted.",
    "exchanged": f"±: standard deviation of the networks. {REPORTED} error rises smoothly as Kendall's tau falls.",
    "levels": "One level draws from its prior, at no KL: difference is to the bound of that posterior, in which other "
    "levels may cost more. Distortion: -log p(x|z), with that draw and with the prior's mean, both in its unit.",
}
UNITS = {"bits_per_dim": "bits/dim", "loss": "-ELBO, nats"}  # of the deciding figure, in tables
PANELS = {"blocks": "deleted block", "deleted": "blocks deleted", "exchanged": "Kendall's tau"}  # and the x-axis
Order = tuple[int, ...]  # which block computes at each place of a part; -1: none


def rearranged(blocks: Sequence[Unit], order: Order) -> list[tuple[Unit, Forward]]:
    """For ``replaced``: each place has the block of this number, or what its connection carries where it is -1."""
    return [(u, u.carried if i < 0 else blocks[i].block.forward) for u, i in zip(blocks, order, strict=True)]


def tau(order: Order) -> float:
    """Kendall's rank correlation of an order with the trained one: 1 where nothing is exchanged."""
    return 1 - 2 * sum(a > b for a, b in combinations(order, 2)) / max(math.comb(len(order), 2), 1)


def lesions(blocks: Sequence[Unit], draws: int, seed: int | str = 0) -> Iterator[tuple[str, int, list[Order]]]:
    """``deleted`` or ``exchanged``, k and the orders: each block deleted alone, and ``draws`` at random for other k.

    k is the number of blocks, or of pairs, from 0 to 20 or as many as there are. An order that is drawn twice counts
    once; more draws begin with the same ones. Pairs are of one stage and width, and no block is in two. Blocks that
    change the shape stay where they are. So does one that, unlike its neighbours, begins before the split, as after
    the stem.
    """
    places, alike = range(len(blocks)), dict[tuple[str, int, int], list[int]]()
    for place, unit in enumerate(blocks):
        if not unit.changes:
            alike.setdefault((unit.stage, unit.block.channels, len(unit.block.before)), []).append(place)
    for k in range(min(len(places), MOST) + 1):
        drawn = [Random(f"{seed} {k} {draw}").sample(places, k) for draw in range(draws)]
        chosen = [[place] for place in places] if k == 1 else drawn
        yield "deleted", k, list(dict.fromkeys(tuple(-1 if i in gone else i for i in places) for gone in chosen))
    for k in range(min(sum(len(group) // 2 for group in alike.values()), MOST) + 1):
        orders: dict[Order, None] = {}
        for draw in range(draws):
            rng, order = Random(f"{seed} {k} {draw}"), list(places)
            mixed = [rng.sample(group, len(group)) for group in alike.values()]
            for a, b in rng.sample([pair for one in mixed for pair in zip(one[::2], one[1::2], strict=False)], k):
                order[a], order[b] = b, a
            orders[tuple(order)] = None
        yield "exchanged", k, list(orders)


def chance(model: ImageModel) -> tuple[str, float | None]:
    """What ``figure`` is, as tables name it; and what equal probabilities give, if known."""
    return UNITS.get(model.deciding, model.deciding), model.chance


def figure(model: ImageModel, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """The mean of the model's deciding figure.

    Images are ``[N, C, H, W]``, labels ``[N]``, on the model's device. Posterior noise begins at ``seed`` each time.
    """
    total = 0.0
    with isolated(model, seed):
        for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            total += double(model.figures(images, labels)[model.deciding]).sum().item()
    return total / len(x)


def descend(vae: HierarchicalVAE, x: Tensor, level: int = -1, mean: bool = False, seed: int = 0) -> list[float]:
    """-log p(x|z) of uint8 images, then each level's KL, in the unit of ``figure``; ``level`` draws from its prior.

    The level's KL is then 0, and the sum is the bound of that posterior; with the prior's ``mean`` it is no bound.
    The noise is always the same.
    """

    def choose(number: int, prior: Normal, posterior: Normal | None) -> Tensor:
        z = (prior if number == level else posterior or prior).rsample()  # for the mean too: the same noise below
        return prior.mean if number == level and mean else z

    total, per = torch.zeros(()), math.prod(vae.image_shape) * math.log(2) if vae.likelihood.discrete else 1
    with isolated(vae, seed):
        for images in x.split(BATCH):
            p, visits = vae.descend(choose, images)
            kls = [kl_divergence(v.posterior, v.prior).flatten(1).sum(1) for v in visits if v.posterior]
            total = total + double(torch.stack([-p.log_prob(images / 255), *kls])).sum(1).cpu()
    total[1:] *= torch.tensor([number != level for number in vae.stochastic])
    return (total / (len(x) * per)).tolist()


def lesion(
    model: str,
    twin: str | None = None,
    num: int = 2000,
    draws: int = 10,
    seed: int = 0,
    out: str = "runs/study_lesion",
    **images: Any,
) -> None:
    """Delete and exchange blocks of a trained classifier or VAE, and let levels of latents draw from their prior.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        twin: another model with blocks in the same places, for instance a plain one, for the same tables and plots.
        num: how many images, the first.
        draws: how many random choices of k blocks, and of k pairs.
        seed: of the draws and of the posterior noise, which is the same for all figures.
        out: the folder of tables and plot; a study that was stopped resumes there, also with more draws or a twin.
    """
    whole_from(1, draws=draws)
    main = subject(model, num, **images)
    models: dict[str, Any] = {"": main.model} | ({"twin ": load_as(twin, ImageModel, "twin")} if twin else {})
    kinds = [(f"a {type(m).__name__} of {len(units(m))} blocks", m.image_shape, chance(m)) for m in models.values()]
    places = [([(u.name, u.changes) for u in units(m)], getattr(m, "stochastic", ())) for m in models.values()]
    if (kinds[0], places[0]) != (kinds[-1], places[-1]):
        raise ResvaeError(f"twin: {kinds[-1][0]} is not allowed; {kinds[0][0]} in the same places, and alike otherwise")
    unit = chance(main.model)[0]
    weights = {title: fingerprint(each) for title, each in models.items()}
    record, blocks = Record(out, main.settings | {"seed": seed}), parts(main.model)

    def cells(part: str, orders: Sequence[Order]) -> Row:
        row: Row = {}
        for title, each in models.items():
            values, measure = [], partial(figure, each, main.x, main.y, seed)
            for order in (tuple(range(len(blocks[part]))), *orders):
                with replaced(rearranged(parts(each)[part], order)):
                    values.append(record.measure(f"{weights[title]} {part} {order}", measure))
            row |= {f"{title}{unit}": fmean(values[1:]), f"{title}difference": fmean(values[1:]) - values[0]}
            row |= {f"{title}±": torch.tensor(values[1:], dtype=torch.double).std().item()} if len(orders) > 1 else {}
        return row

    planned = [(part, *one) for part in blocks for one in lesions(blocks[part], draws, f"{seed} {part}")]
    tables: dict[str, list[Row]] = {"blocks": [], "deleted": [], "exchanged": []}
    for part, name, k, orders in progress(planned, "lesions"):
        row: Row = {"part": part, f"{'blocks' if name == 'deleted' else 'pairs'} {name}": k, "networks": len(orders)}
        row |= {"Kendall's tau": fmean(map(tau, orders))} if name == "exchanged" else {}
        tables[name].append(row | cells(part, orders))
        for i, block in enumerate(blocks[part]) if (name, k) == ("deleted", 1) else ():
            row = {"part": part, "deleted block": i, "name": block.name, "shape": ("stays", "changes")[block.changes]}
            tables["blocks"].append(row | cells(part, [orders[i]]))
    for i, level in enumerate((-1, *main.model.stochastic) if isinstance(main.model, HierarchicalVAE) else ()):
        row = {"level": f"{level}: {'x'.join(map(str, main.model.latent_shapes[level]))}" if i else "none"}
        for t, vae in models.items():
            whole, drawn, flat = (
                record.measure(f"{weights[t]} level {of} {mean}", partial(descend, vae, main.x, of, mean, seed))
                for of, mean in ((-1, False), (level, False), (level, i > 0))
            )
            row |= {f"{t}KL": whole[i] if i else sum(whole[1:]), f"{t}distortion": drawn[0]}
            row |= {f"{t}distortion, mean": flat[0], f"{t}{unit}": sum(drawn)}
            row[f"{t}difference"] = sum(drawn) - sum(whole)
        tables.setdefault("levels", []).append(row)
    told = f"{main.told} Seed {seed}." + (f" Twin: {twin} (weights {weights['twin ']})." if twin else "")
    for name, rows in tables.items():
        print(record.write(name, rows, f"{told} {NOTES[name]}"))
    _plot(tables, list(models), *chance(main.model), record.folder / "lesion.png")
    print("\n".join(f"wrote {record.folder / name}" for name in (*(f"{name}.md" for name in tables), "lesion.png")))


def _plot(tables: dict[str, list[Any]], titles: list[str], unit: str, level: float | None, path: Path) -> None:
    from matplotlib.figure import Figure

    found = list(dict.fromkeys(row["part"] for row in tables["blocks"]))
    layout: Any = [[part + name for name in PANELS] for part in found] + [["levels"] * 3] * ("levels" in tables)
    page = Figure(figsize=(13, 3.6 * len(layout) + 0.4), layout="constrained")
    axes = page.subplot_mosaic(layout)
    for part, (name, column), (n, title) in product(found, PANELS.items(), enumerate(titles)):
        panel, rows, color = axes[part + name], [row for row in tables[name] if row["part"] == part], f"C{n}"
        x, y, spread = ([row.get(key, math.nan) for row in rows] for key in (column, title + unit, f"{title}±"))
        style = "o" if name == "exchanged" else "o-"
        panel.errorbar(x, y, spread, fmt=style, ms=4, capsize=3, color=color, label=title.strip() or "model")
        changes = [i for i, row in enumerate(rows) if row.get("shape") == "changes"]
        panel.plot(x, y, "D", color=color, mfc="white", ms=8, markevery=changes, label="_" * n + "changes the shape")
        panel.axhline(tables["deleted"][0][title + unit], color=color, ls="--", lw=1, label="_" * n + "whole network")
        panel.axhline(level or math.nan, color="grey", ls=":", label="chance" if level and n == 0 else "_")  # _: hidden
        panel.locator_params(axis="x", integer=name != "exchanged")
        panel.xaxis.set_inverted(name == "exchanged")
        panel.set(xlabel=column, ylabel=unit, title=f"{part}: {name}" + " (no two blocks are alike)" * (len(rows) == 1))
    page.legend(*axes[found[0] + "blocks"].get_legend_handles_labels(), loc="outside upper center", ncols=7)
    for j, column in enumerate(("KL", "distortion", "distortion, mean", "difference") if "levels" in tables else ()):
        (whole, *levels), panel = tables["levels"], axes["levels"]
        heights = [row[column] - whole[column] * column.startswith("distortion") for row in levels]
        panel.bar([i + 0.2 * j for i in range(len(levels))], heights, 0.2, label=column)
        panel.set_xticks([i + 0.3 for i in range(len(levels))], [row["level"] for row in levels])
        panel.set(ylabel=unit, title="KL of each level, and what is added when it draws from its prior")
        panel.legend()
    write_figure(path, page)
