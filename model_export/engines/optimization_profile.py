"""Optimization profile: the input shapes that an engine accepts and the shape it is tuned for."""

from typing import NamedTuple

from model_package import BatchProfile, InputSpec

Shape = tuple[int, int, int, int]


class OptimizationProfile(NamedTuple):
    """Minimum, optimum and maximum shape of the input: (N, height, width, 3), uint8."""

    min: Shape
    opt: Shape
    max: Shape


def make_optimization_profile(spec: InputSpec, batch: BatchProfile) -> OptimizationProfile:
    """Cover every batch size of ``batch`` and every image size that ``spec`` allows.

    The optimum is the default size of ``spec``.
    """
    default = (spec.height_px, spec.width_px)
    smallest = largest = default
    if spec.free_size is not None:
        multiple_px, reduction_px = spec.free_size.multiple_px, spec.free_size.reduction_px
        smallest = (multiple_px - reduction_px,) * 2
        steps = (spec.free_size.max_side_px + reduction_px) // multiple_px
        largest = (steps * multiple_px - reduction_px,) * 2
    return OptimizationProfile(
        min=(batch.min, *smallest, 3), opt=(batch.opt, *default, 3), max=(batch.max, *largest, 3)
    )
