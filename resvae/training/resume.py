"""What a resumed run takes over from the configuration that it is given now, and what it refuses to change."""

from resvae.errors import ResvaeError
from resvae.training.configuration import ELSEWHERE, Configuration, leaves

# Fields that stay what they were when the run began, each with the reason. All others are taken over.
FIXED = {
    **dict.fromkeys(
        ("data.name", "data.image_size", "data.validation", "data.protocol", "data.seed", "data.limit"),
        "it would validate on images that it has trained on",
    ),
    **dict.fromkeys(("early_stopping.monitor", "early_stopping.mode"), "its best is the best of these"),
    "seed_everything": "its noise goes on",
}
Missing = object()


def changes(now: Configuration, before: Configuration, within_epoch: bool) -> list[str]:
    """The fields that a resume changes, as ``field value (before: value)``.

    Args:
        now: the configuration that is given.
        before: that of the run so far.
        within_epoch: whether the run stopped in the middle of an epoch.

    Raises:
        ResvaeError: a field that cannot change.
    """
    here, there = (dict(leaves(each.values.as_dict())) for each in (now, before))
    changed = {}
    for field in here | there:
        new, old = here.get(field, Missing), there.get(field, Missing)
        if new != old and field not in ELSEWHERE:
            changed[field] = (new, old)
    for field, (new, old) in changed.items():
        reason = FIXED.get(field)
        if field == "model.schedule.kind" and "plateau" in (new, old):
            reason = "a plateau's state is no other schedule's"
        if field == "model.ema_decay" and 0 in (new, old):
            reason = "it has no average to go on with" if old == 0 else "its average would be lost"
        if field == "data.batch_size" and within_epoch:
            reason = "it goes on within an epoch of such batches"
        if reason:
            raise ResvaeError(
                f"{field}: {new} is not allowed; this run has {old}, and {reason}. "
                "Start another run from its checkpoint: --ckpt_path FILE --name NEW"
            )
    return [
        f"{field} {'not set' if new is Missing else new} (before: {'not set' if old is Missing else old})"
        for field, (new, old) in changed.items()
    ]
