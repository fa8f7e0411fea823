"""The shapes that an engine must take, and which one it is tuned for."""

from typing import NamedTuple

from model_package import BatchProfile, InputSpec

Shape = tuple[int, int, int, int]


class Profile(NamedTuple):
    """Smallest, best and largest shape of the input (N, height, width, 3), uint8."""

    min: Shape
    opt: Shape
    max: Shape


def make_profile(spec: InputSpec, batch: BatchProfile) -> Profile:
    """Every batch size of ``batch`` in every size that ``spec`` allows; best is its own size."""
    usual = (spec.height_px, spec.width_px)
    smallest = largest = usual
    if spec.free_size is not None:
        unit, less_px = spec.free_size.multiple_px, 1 - spec.free_size.extra_px
        smallest = (unit - less_px,) * 2
        largest = ((spec.free_size.max_side_px + less_px) // unit * unit - less_px,) * 2
    return Profile((batch.min, *smallest, 3), (batch.opt, *usual, 3), (batch.max, *largest, 3))
