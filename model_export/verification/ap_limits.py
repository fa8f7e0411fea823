"""How much average precision (AP) an int8 file may lose against the fp32 file."""

from collections.abc import Mapping

from model_export.errors import QuantizationError
from model_package import AveragePrecision

MAX_AP_LOSS = 0.010
"""Largest accepted loss of AP from fp32 to int8, about the step between two trainings."""
MAX_CLASS_AP_LOSS = 0.020
"""Largest accepted loss of a class, which has fewer objects and therefore varies more."""
MIN_CLASS_OBJECTS = 50
"""Labelled objects of a class from which its AP is limited: with fewer, single objects decide."""

AveragePrecisions = Mapping[str, Mapping[str, float]]
"""By metric, for ``all`` classes and by class."""


def compare_average_precisions(
    fp32: AveragePrecisions, int8: AveragePrecisions, images: int, objects: Mapping[str, int]
) -> tuple[AveragePrecision, ...]:
    """Return the APs of both files on the same ``images`` by metric.

    ``objects``: labelled objects by class. Raises :class:`QuantizationError` if an AP is more than
    :data:`MAX_AP_LOSS` lower in int8, or that of a class with :data:`MIN_CLASS_OBJECTS` or more
    objects by more than :data:`MAX_CLASS_AP_LOSS`.
    """
    limits = {
        "all": MAX_AP_LOSS,
        **{name: MAX_CLASS_AP_LOSS for name, n in objects.items() if n >= MIN_CLASS_OBJECTS},
    }
    failed = [
        f"{metric} of {name} {ap:.4f} in fp32 and {int8[metric][name]:.4f} in int8"
        for metric, aps in fp32.items()
        for name, ap in aps.items()
        if name in limits and not ap - int8[metric][name] <= limits[name]
    ]
    if failed:
        raise QuantizationError(
            f"int8 loses too much AP: {'; '.join(failed)}. At most {MAX_AP_LOSS} is accepted for "
            f"all classes, and {MAX_CLASS_AP_LOSS} for one with {MIN_CLASS_OBJECTS} or more "
            "objects."
        )
    return tuple(
        AveragePrecision.model_validate(
            {
                "metric": metric,
                "images": images,
                "objects": objects,
                "fp32": aps,
                "int8": int8[metric],
            }
        )
        for metric, aps in fp32.items()
    )


def classes_without_limit(average_precision: AveragePrecision) -> list[str]:
    """Return the classes whose AP was not limited when the file was made."""
    objects = average_precision.objects
    return [name for name, count in objects.items() if count < MIN_CLASS_OBJECTS]
