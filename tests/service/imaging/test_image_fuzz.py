"""Damaged files are decoded or rejected with one of the service's errors."""

from collections import Counter
from itertools import islice

import numpy as np

from benchmarks.mutants import mutants, originals
from service.errors import ServiceError
from service.imaging.image_decoding import open_image

LIMIT = 1_000_000
MUTANTS = 6_000
REDUCTIONS = (1, 2, 4, 8)


def test_all_original_files_are_decoded() -> None:
    for body in originals():
        image = open_image(body, LIMIT)
        assert {image.width_px, image.height_px} == {50, 67}
        assert image.decode().pixels.shape == (image.height_px, image.width_px, 3)


def test_damaged_files_raise_only_service_errors() -> None:
    outcomes: Counter[str] = Counter()
    statuses = set()
    for index, body in enumerate(islice(mutants(7, originals()), MUTANTS)):
        reduction = REDUCTIONS[index % 4]
        try:
            image = open_image(body, LIMIT)
            decoded = image.decode(reduction)
        except ServiceError as error:
            outcomes[error.code] += 1
            statuses.add(error.status)
            continue
        outcomes["decoded"] += 1
        size = (image.height_px, image.width_px)
        assert image.height_px * image.width_px <= LIMIT
        if decoded.reduction is not None:
            size = tuple(-(-side // reduction) for side in size)
        assert decoded.pixels.shape == (*size, 3)
        assert decoded.pixels.dtype == np.uint8
    assert statuses <= set(range(400, 500))
    # Mutants that all fail at the header, or that all decode, would test nothing.
    expected = ("decoded", "bad_image", "unsupported_image", "image_size")
    assert min(outcomes[name] for name in expected) > MUTANTS / 50, outcomes
