"""Decoding of HEIC files with libheif; needs the extra ``heic``."""

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from service.imaging.image_header import UnsupportedHeaderError
from service.imaging.pillow_decoding import rgb_pixels

IS_HEIC_SUPPORTED = find_spec("pi_heif") is not None
"""Whether the library is installed."""


def check_heic_support() -> None:
    """Raise :class:`UnsupportedHeaderError` without the library."""
    if not IS_HEIC_SUPPORTED:
        raise UnsupportedHeaderError(
            "The image is a HEIC, which this service does not decode. Send it as JPEG, or install "
            "the service with the extra 'heic'."
        )


def decode_heic(data: bytes) -> NDArray[np.uint8]:
    """Decode to uint8 RGB (height, width, 3) in stored orientation.

    Raises ``ValueError``, and ``EOFError`` and ``SyntaxError`` of pi-heif, on damaged files.
    """
    import pi_heif

    # Images are decoded in parallel by a thread pool.
    pi_heif.options.DECODE_THREADS = 1
    try:
        image = pi_heif.open_heif(data)[0]
        image.load()
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    # A copy: the pixels belong to the image, which ends here.
    return np.array(image) if image.mode == "RGB" else rgb_pixels(image.to_pillow())
