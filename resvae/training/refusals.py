"""What a run refuses before anything is written: fields that do not fit together, in one line each."""

import math
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from resvae.errors import ResvaeError, at_least, one_line
from resvae.training.base import LitModel
from resvae.training.optimizers import refuse_optimizer
from resvae.training.sharding import NAME as SHARDED
from resvae.training.sharding import FullyShardedStrategy
from resvae.training.subsets import UnitSubset


def refuse_trainer(values: Namespace) -> None:
    """Refuse what a trainer would take, and a run can do nothing with."""
    trainer = values.trainer
    if trainer.precision not in (None, 32, "32", "32-true"):
        raise ResvaeError(f"trainer.precision: {trainer.precision} is not allowed; set model.precision")
    at_least(1, save_every_n_steps=values.save_every_n_steps)
    for field in ("fast_dev_run", "barebones"):
        if value := trainer[field]:
            raise ResvaeError(f"trainer.{field}: {value} is not allowed; for a short run set trainer.max_steps")
    for field in ("max_epochs", "max_steps", "limit_train_batches", "limit_val_batches", "val_check_interval"):
        if (value := trainer[field]) is not None and value == 0:
            raise ResvaeError(f"trainer.{field}: {value} is not allowed; a run trains, and validates")
    for field in ("check_val_every_n_epoch", "accumulate_grad_batches", "num_nodes"):
        at_least(1, **{f"trainer.{field}": trainer[field]})
    at_least(0, **{"trainer.gradient_clip_val": trainer.gradient_clip_val})
    if trainer.logger is False:
        raise ResvaeError("trainer.logger: False is not allowed; metrics.csv is part of a run (tracker: none is less)")
    if trainer.enable_checkpointing is False:
        raise ResvaeError("trainer.enable_checkpointing: False is not allowed; checkpoints are part of a run")
    every, epochs = trainer.check_val_every_n_epoch or 1, trainer.max_epochs
    if epochs is not None and 0 < epochs < every:
        raise ResvaeError(f"trainer.check_val_every_n_epoch: {every} is not allowed with {epochs} epochs; as many")
    for unit in ("epochs", "steps"):
        least, most = trainer[f"min_{unit}"], trainer[f"max_{unit}"]
        if least is not None and most is not None and 0 < most < least:
            raise ResvaeError(f"trainer.min_{unit}: {least} is not allowed with max_{unit} {most}; as many at most")
    seed = values.seed_everything
    if not isinstance(seed, bool) and not 0 <= seed < 2**32:
        raise ResvaeError(f"seed_everything: {seed} is not allowed; 0 to {2**32 - 1}, true or false")


def _refuse_batches(values: Namespace, data: Any) -> None:
    """Refuse limits and intervals that leave no batch, or no validation."""
    trainer, size = values.trainer, data.batch_size
    train, val = math.ceil(data.num_train / size), math.ceil(data.num_val / data.eval_batch_size)
    limits = (("limit_train_batches", train), ("limit_val_batches", val), ("overfit_batches", min(train, val)))
    for field, num in limits:
        share = trainer[field]
        if isinstance(share, float) and 0 < share < 1 and int(num * share) < 1:
            raise ResvaeError(f"trainer.{field}: {share} of {num} batches is not allowed; one batch at least")
    limit = trainer.limit_train_batches
    batches = train if limit is None else int(train * limit) if isinstance(limit, float) else min(train, limit)
    interval = trainer.val_check_interval
    if isinstance(interval, int) and interval > batches and trainer.check_val_every_n_epoch is not None:
        raise ResvaeError(
            f"trainer.val_check_interval: {interval} is not allowed with {batches} batches an epoch; as many at most, "
            "or set trainer.check_val_every_n_epoch to null, which counts batches over all epochs"
        )


def refuse(values: Namespace, model: LitModel, data: Any, trainer: pl.Trainer, resumed: dict[str, Any] | None) -> None:
    """Refuse what does not fit together while nothing is written yet."""
    model.refuse_data(data)
    _refuse_batches(values, data)
    strategy, known = trainer.strategy, SingleDeviceStrategy | DDPStrategy | FullyShardedStrategy
    if not isinstance(strategy, known) or isinstance(strategy, DeepSpeedStrategy):
        name = type(strategy).__name__
        raise ResvaeError(f"trainer.strategy: {name} is not allowed; auto, a kind of ddp, or {SHARDED}")
    stopping, modes = values.early_stopping, model.monitored()
    if (mode := modes.get(stopping.monitor)) is None:
        raise ResvaeError(f"early_stopping.monitor: {stopping.monitor} is not logged; one of {', '.join(modes)}")
    if stopping.mode != mode:
        raise ResvaeError(f"early_stopping.mode: {stopping.mode} is not allowed with {stopping.monitor}; {mode}")
    try:
        optimizer = model.make_optimizer()
    except ValueError as error:
        raise ResvaeError(f"model.optimizer: {one_line(error)}") from error
    timed = values.trainer.max_time is not None
    if not timed and trainer.max_epochs == -1 and trainer.max_steps == -1:
        model.schedule.at(math.inf)
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, UnitSubset):
            callback.drawn(model, 0)
    if resumed is not None:
        model.refuse_other(resumed)
        refuse_optimizer(optimizer, resumed)
