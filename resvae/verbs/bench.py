"""``resvae bench``: how fast a configuration trains and samples on this machine, beside what the machine can do."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser

from resvae.benchmark.beside import loaders, of_lightning, pythae
from resvae.benchmark.ceilings import convolution, copy, matrix_product, squares
from resvae.benchmark.operations import by_kind
from resvae.benchmark.report import Report, Row, Section
from resvae.benchmark.steps import Training
from resvae.benchmark.timing import Case, Timed, take_turns
from resvae.devices import chosen
from resvae.errors import ResvaeError, whole_from
from resvae.files import writable
from resvae.progress import progress
from resvae.provenance import origin
from resvae.training.configuration import Configuration, numbers, parse, printed_help

WHAT = "Measure how fast a configuration trains and samples on this machine, beside what the machine can do."
MIB = 2**20
CHANNELS_FIRST = "channels first"  # no field of a configuration
SWITCHES: dict[str, dict[str, Any]] = {
    "bf16 on, compile on": {"model.precision": "bf16", "model.compile": True},
    "bf16 on, compile off": {"model.precision": "bf16", "model.compile": False},
    "bf16 off, compile on": {"model.precision": "fp32", "model.compile": True},
    "bf16 off, compile off": {"model.precision": "fp32", "model.compile": False},
    "bf16 off, compile off, channels-last off": {
        "model.precision": "fp32",
        "model.compile": False,
        CHANNELS_FIRST: True,
    },
}
SHAPES = 10  # of the model's convolutions are shown; all of them count


def main(verb: str, arguments: list[str]) -> None:
    """Parse ``resvae bench``, measure, print the tables and write them."""

    def add(parser: ArgumentParser) -> None:
        parser.add_argument("--seconds", type=float, default=60.0, help="of measuring, for each table (default: 60)")
        parser.add_argument("--num", type=int, default=64, help="images that are sampled at once (default: 64)")
        parser.add_argument("--depths", type=str | None, help="28,70,100: the step of each depth, too")
        parser.add_argument("--batch_sizes", type=str | None, help="16,64,256: the step of each batch size, too")
        parser.add_argument("--memory_budgets", type=str | None, help="500MiB,2GiB: the step of each, and of none, too")
        parser.add_argument("--switches", type=bool, default=False, help="bf16, compile and channels-last on and off")
        parser.add_argument("--loaders", type=bool, default=False, help="our loader beside torchvision's")
        parser.add_argument("--peers", type=bool, default=False, help="pythae's ResNet VAE, where it is installed")
        parser.add_argument("--out", type=str | None, help="a .json; tables (.md) and plots (.png) go beside it")

    if printed_help(verb, WHAT, arguments, add, None):
        return
    configuration, own = parse(arguments, verb, add)
    configuration.take_shape()
    whole_from(1, num=own.num)
    if not own.seconds > 0:
        raise ResvaeError(f"seconds: {own.seconds} is not allowed; more than 0")
    out = None if own.out is None else writable(own.out, ".json")
    depths, batch_sizes = (numbers(name, own[name]) if own[name] else [] for name in ("depths", "batch_sizes"))
    budgets = own.memory_budgets.split(",") if own.memory_budgets else []
    report = bench(
        configuration, own.seconds, own.num, depths, batch_sizes, budgets, own.switches, own.loaders, own.peers
    )
    print(report.markdown(), end="")
    if out is not None:
        print("\n".join(f"wrote {path}" for path in report.write(out)))


def bench(
    configuration: Configuration,
    seconds: float = 60.0,
    num: int = 64,
    depths: Sequence[int] = (),
    batch_sizes: Sequence[int] = (),
    memory_budgets: Sequence[str] = (),
    switches: bool = False,
    loading: bool = False,
    peers: bool = False,
) -> Report:
    """Measure a configuration of a VAE on random images.

    Args:
        configuration: what trains; its data set is not read.
        seconds: of measuring, for each table.
        num: images that are sampled at once.
        depths: in the place of the configuration's own.
        batch_sizes: in the place of the configuration's own.
        memory_budgets: of the activations, beside none.
        switches: whether to measure bf16, compile and channels-last on and off.
        loading: whether to measure our loader and torchvision's.
        peers: whether to measure pythae's ResNet VAE.

    Raises:
        ResvaeError: the configuration trains a classifier; pythae is not installed, or takes other images.
    """
    compared_by: dict[str, dict[str, dict[str, Any]]] = {
        "depth": {str(depth): {"model.vae.init_args.depth": depth} for depth in depths},
        "batch size": {str(size): {"data.batch_size": size} for size in batch_sizes},
        "switches": SWITCHES if switches else {},
    }
    device = chosen()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    training = Training(configuration, device)
    for fields in (fields for variants in compared_by.values() for fields in variants.values()):
        with torch.device("meta"):  # what is refused is refused before anything is measured
            varied(configuration, fields).instantiate()
    budgets = {budget or "none": {"model.memory_budget": budget} for budget in (None, *memory_budgets)}
    bounded = (
        trainings(configuration, budgets.items(), device) if memory_budgets else {}
    )  # a budget too small is refused here
    peer = [pythae(training)] if peers else []
    dtype = torch.bfloat16 if training.bf16 else torch.float32
    named = {"precision": "bf16" if training.bf16 else "fp32", "compiled": training.module.compiled}
    report = Report({"configuration": configuration.values.name, **named, **origin(device)})
    ceiling, sections = ceilings(training, device, dtype, seconds)
    report.sections.extend(sections)
    report.sections.append(whole(training, ceiling, seconds, num))
    report.sections.append(parts(training, seconds))
    report.sections.append(operations(training))
    for name, variants in filter(lambda each: each[1], compared_by.items()):
        made = trainings(configuration, progress(variants.items(), name), device)
        report.sections.append(compared(name, made, ceiling, seconds))
    if bounded:
        report.sections.append(compared("memory budget", bounded, ceiling, seconds))
    if peer:
        both = take_turns([training.case("ours"), *peer], device, seconds)
        ratio = both[0].flops_per_second / both[1].flops_per_second
        note = f"Of networks with equal FLOPs, ours trains on {ratio:.2f} times as many images per second."
        rows = [
            _row("model", each, ceiling, None) | {"MFLOP/image": each.case.flops / 1e6 / each.case.images}
            for each in both
        ]
        report.sections.append(Section("Beside pythae's ResNet VAE, as it ships", rows, note))
    if loading:
        timed = take_turns(loaders(training.module.image_shape, training.batch_size), device, seconds)
        rows: list[Row] = [
            {"loader": each.case.name, "images/s": each.images_per_second, **_spread(each)} for each in timed
        ]
        report.sections.append(Section("Loading, cropping and mirroring", rows, "Milliseconds are of 50 batches."))
    return report


def ceilings(
    training: Training, device: torch.device, dtype: torch.dtype, seconds: float
) -> tuple[float, list[Section]]:
    """FLOP/s of the fastest 3x3 convolution, and the tables of the machine and of the model's own convolutions."""
    best, product, copied = squares(device, dtype), matrix_product(device, dtype), copy(device)
    timed = take_turns([*best, product, copied], device, seconds)
    *convolutions, matrix, memory = timed
    fastest = max(convolutions, key=lambda each: each.flops_per_second)
    machine = [
        {"what": f"convolution, forward and backward; {fastest.case.name}", **_flops(fastest)},
        {"what": matrix.case.name, **_flops(matrix)},
        {"what": f"{memory.case.name}, read and written", "GB/s": memory.flops_per_second / 1e9, **_spread(memory)},
    ]
    counts = training.convolutions()
    own = take_turns([convolution(shape, device, dtype) for shape in counts], device, seconds)
    rows = sorted(zip(own, counts.values(), strict=True), key=lambda row: -row[0].seconds * row[1])
    total = sum(each.seconds * count for each, count in rows)
    flops = sum(each.case.flops * count for each, count in rows)
    listed: list[Row] = [
        {
            "convolution": each.case.name,
            "times": count,
            "ms": 1e3 * each.seconds * count,
            "GFLOP/s": each.flops_per_second / 1e9,
        }
        for each, count in rows[:SHAPES]
    ]
    listed.append(
        {
            "convolution": f"all {len(rows)} kinds",
            "times": sum(counts.values()),
            "ms": 1e3 * total,
            "GFLOP/s": flops / total / 1e9,
        }
    )
    return fastest.flops_per_second, [
        Section("What the machine can do", machine, "GFLOP/s of the first row are the ceiling below."),
        Section("The model's own convolutions, alone", listed),
    ]


def whole(training: Training, ceiling: float, seconds: float, num: int) -> Section:
    """The training step and sampling."""
    step, sample = take_turns([training.case("training step"), training.sampling(num)], training.device, seconds)
    rows = [_row("what", step, ceiling, training.memory())]
    rows.append({"what": sample.case.name, "images/s": sample.images_per_second, **_spread(sample)})
    return Section("The whole", rows, "Memory: the most that activations and gradients take at once.")


def parts(training: Training, seconds: float) -> Section:
    """The step's parts, each by itself."""
    step, *rest = take_turns([training.case("whole step"), *training.parts()], training.device, seconds)
    rows = [
        {"part": each.case.name, "ms": 1e3 * each.seconds, "of the whole step": each.seconds / step.seconds}
        | _spread(each)
        for each in (step, *rest)
    ]
    lightning, bare = of_lightning(training, seconds)
    name = "Lightning and logging"
    rows.append({"part": name, "ms": 1e3 * (lightning - bare), "of the whole step": (lightning - bare) / bare})
    return Section("The parts of a step, each by itself", rows, "The likelihood by itself is not compiled.")


def operations(training: Training) -> Section:
    """Shares of the step's time by kind of operation."""
    shares = by_kind(training.step, training.device)
    return Section("Where a step's time goes", [{"operations": kind, "share": share} for kind, share in shares.items()])


def trainings(
    base: Configuration, variants: Iterable[tuple[str, dict[str, Any]]], device: torch.device
) -> dict[str, Training]:
    """A training for each variant of a configuration."""
    return {
        label: Training(varied(base, fields), device, channels_last=CHANNELS_FIRST not in fields)
        for label, fields in variants
    }


def compared(name: str, made: dict[str, Training], ceiling: float, seconds: float) -> Section:
    """The training step of several, in turns."""
    cases: list[Case] = [each.case(label) for label, each in made.items()]
    timed = take_turns(cases, next(iter(made.values())).device, seconds)
    rows = [_row(name, each, ceiling, made[each.case.name].memory()) for each in timed]
    if name == "depth":
        for row in rows:
            row["ms per layer"] = row["ms"] / row["depth"]
    return Section(f"The training step by {name}", rows)


def varied(base: Configuration, fields: dict[str, Any]) -> Configuration:
    """The configuration with other values of some fields; that of no field does not count."""
    return base.changed({field: value for field, value in fields.items() if field != CHANNELS_FIRST})


def _row(name: str, timed: Timed, ceiling: float, memory: int | None) -> Row:
    label = timed.case.name
    return {
        name: int(label) if label.isdigit() else label,
        "images/s": timed.images_per_second,
        "ms": 1e3 * timed.seconds,
        **_spread(timed),
        "GFLOP/s": timed.flops_per_second / 1e9,
        "fraction of the ceiling": timed.flops_per_second / ceiling,
        **({} if memory is None else {"memory, MiB": memory / MIB}),
    }


def _spread(timed: Timed) -> Row:
    return {"ms, least to most": f"{1e3 * timed.low:.4g} to {1e3 * timed.high:.4g}"}


def _flops(timed: Timed) -> Row:
    return {"GFLOP/s": timed.flops_per_second / 1e9, **_spread(timed)}
