"""Training that begins with the weights of another model."""

from torch import Tensor

from resvae.errors import ResvaeError
from resvae.models import ImageModel
from resvae.storage import load

SHOWN = 3  # tensors that a message names


def start_from(model: ImageModel, source: str, partial: bool) -> str:
    """Give a model the weights of the MODEL ``source``; what was taken, as a sentence.

    Args:
        model: its tensors are replaced.
        source: what ``load`` takes; of another class, too: an encoder is an encoder.
        partial: whether to take only the tensors whose names and shapes are those of the model.

    Raises:
        ResvaeError: some do not fit, and ``partial`` is false; none fits.
    """
    own, given = model.state_dict(), load(source).state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    others = [name for name in dict.fromkeys([*own, *given]) if name not in fitting]
    if not fitting or (others and not partial):
        told = "; ".join(f"{name} {_shape(given, name)}, here {_shape(own, name)}" for name in others[:SHOWN])
        hint = "" if not fitting else "; init_partial true takes those that fit"
        raise ResvaeError(
            f"init_from: {len(others)} tensors of {source} do not fit this model: {told}"
            f"{', ...' if len(others) > SHOWN else ''}{hint}"
        )
    model.load_state_dict(own | fitting)
    return f"weights: {len(fitting)} of {len(own)} tensors are from {source}"


def _shape(state: dict[str, Tensor], name: str) -> str:
    return "x".join(map(str, state[name].shape)) if name in state else "missing"
