"""Images for runs of any length, which differ from each other."""

from pathlib import Path

import cv2
import numpy as np

HEIGHT_PX, WIDTH_PX = 240, 320


def write_images(source: Path, folder: Path, count: int) -> None:
    """Write ``count`` JPEG files to a new folder: parts of ``source``, which continues cyclically.

    Each has another offset, so that two images have different detections. Raises
    :class:`ValueError` if ``source`` has less than ``count`` pixels.
    """
    image = cv2.imread(str(source))
    height, width = image.shape[:2]
    tiled = np.tile(image, (2, 2, 1))
    offsets = np.random.default_rng(0).choice(height * width, count, replace=False)
    folder.mkdir()
    for number, (y, x) in enumerate(zip(*np.divmod(offsets, width), strict=True)):
        part = tiled[y : y + HEIGHT_PX, x : x + WIDTH_PX]
        cv2.imwrite(str(folder / f"{number:06}.jpg"), part)
