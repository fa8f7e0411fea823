"""States of networks, as tests make them."""

from torch import Tensor

State = dict[str, Tensor]


def without_counters(state: State) -> State:
    """What reading a checkpoint keeps of it."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
