"""Helpers for the state dicts of tests."""

from torch import Tensor

State = dict[str, Tensor]


def without_counters(state: State) -> State:
    """Remove the ``num_batches_tracked`` buffers, as ``read_state`` does."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
