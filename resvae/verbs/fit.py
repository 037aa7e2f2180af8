"""``resvae fit``: train a run."""

import os
from threading import Thread

from resvae.environment import ENDS_WITH_PARENT

HELP = """\
usage: resvae fit --config FILE [options]

Train a model. Every field can stand in the file; the environment (RESVAE_FIT__DATA__SEED=1) wins over the file,
and an option wins over both. The run is written to <runs>/<name>/, whose config.yaml repeats it.

what to train
  --model.vae CLASS                 resvae.VAE (default), resvae.HierarchicalVAE, resvae.ReferenceVAE, your own
  --model.vae.depth 40              and all other arguments of the class: resvae fit --model.vae.help resvae.VAE
  --model.classifier.depth 20       a classifier in the place of a VAE
  --model.optimizer CLASS           default: AdamW; then --model.optimizer.lr 0.001
  --model.schedule.kind cosine      or constant, steps, plateau
  --model.precision auto            or bf16, fp32; auto: bf16 where the hardware computes in it
  --model.compile true              let torch.compile build the training graph
on which images
  --data.name cifar10               or cifar100, svhn, mnist, fashion_mnist, digits, folder, npz, imagenet
  --data.path FILE                  of a folder or an .npz
  --data.batch_size 128             images per update
  --data.validation 0.1             number or share of the training images to set apart
  --data.flip true                  mirror at random
for how long
  --trainer.max_epochs 1000         --trainer.max_steps 5000, --trainer.max_time '{"minutes": 20}'
  --early_stopping.patience 50      epochs without progress
  --trainer.devices auto            processors to train on
where it goes, and how it resumes
  --name run --runs runs            the run's folder is <runs>/<name>
  --tracker auto                    wandb, tensorboard or none beside metrics.csv
  --seed_everything 0               of all noise
  --ckpt_path last                  resume a run that was stopped

more: resvae fit --help GROUP, where GROUP is run, model, data, trainer, early_stopping, images or all
"""


def main(verb: str, arguments: list[str]) -> None:
    """Train as the arguments say, or print the help that they ask for."""
    if os.environ.get(ENDS_WITH_PARENT):
        Thread(target=_end_with_parent, daemon=True).start()
    asked = next((i for i, argument in enumerate(arguments) if argument in ("-h", "--help")), None)
    if asked is not None:
        print(HELP if asked + 1 == len(arguments) else _options(arguments[asked + 1], arguments[:asked]), end="")
        return
    from resvae.training.configuration import parse
    from resvae.training.fit import fit

    fit(parse(arguments)[0])


def _options(group: str, arguments: list[str]) -> str:
    """The part of the parser's own help about one group of options."""
    from resvae.errors import ResvaeError
    from resvae.training.configuration import field_of, run_parser

    groups: dict[str, list[str]] = {}
    name = "run"
    for line in run_parser(field_of(arguments)).format_help().partition("\n\n")[2].splitlines():
        if line.startswith("  -"):
            dots = line.split()[-1 if line.startswith("  -c") else 0].removeprefix("--").split(".")
            name = dots[0] if len(dots) > 1 else "run"
        if line.startswith("  "):
            groups.setdefault(name, []).append(line)
    if group != "all" and group not in groups:
        raise ResvaeError(f"help: {group} is not known; one of {', '.join(groups)}, all")
    return "".join(f"{line}\n" for name, lines in groups.items() for line in lines if group in ("all", name))


def _end_with_parent() -> None:
    """Stop this process when the one that started it ends, and with it the pipe that is this one's input."""
    while os.read(0, 1):  # not by way of sys.stdin, whose lock Python wants at its end
        pass
    os._exit(1)
