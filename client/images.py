"""Images that the client accepts, and their encoding."""

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from client.errors import ImageInputError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

# Not `|`: the types in quotes are not imported at run time.
ImageInput = Union[bytes, str, os.PathLike[str], "PIL.Image.Image", "NDArray[np.uint8]"]
"""An encoded image (bytes), the path of one, a PIL image, or uint8 pixels: RGB of shape (height,
width, 3), or grey of shape (height, width)."""

_UNCHANGED_MODES = ("L", "RGB", "I;16")


def encode_image(image: ImageInput) -> bytes:
    """Return the bytes to send.

    Encoded images and files are sent as they are. PIL images and arrays are encoded as PNG, which
    is lossless, with the fastest compression; the EXIF orientation of a PIL image is applied, so
    that the detections refer to the upright image. Raises :class:`ImageInputError`.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return _read(Path(image))
    # An object of these types exists only if its module has been imported.
    pil, numpy = sys.modules.get("PIL.Image"), sys.modules.get("numpy")
    if pil is not None and isinstance(image, pil.Image):
        return _encode_pil(image)
    if numpy is not None and isinstance(image, numpy.ndarray):
        return _encode_array(image)
    raise ImageInputError(
        f"image: received {type(image).__name__}. Give the encoded image as bytes, a path, a PIL "
        "image or a NumPy array."
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageInputError(f"{path} cannot be read: {error.strerror}") from error


def _encode_pil(image: "PIL.Image.Image") -> bytes:
    from PIL import ImageOps

    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in _UNCHANGED_MODES:
            upright = upright.convert("RGB")
        buffer = io.BytesIO()
        upright.save(buffer, "PNG", compress_level=1)
    except (OSError, ValueError) as error:
        raise ImageInputError(f"the PIL image cannot be encoded as PNG: {error}") from error
    return buffer.getvalue()


def _encode_array(pixels: "NDArray[Any]") -> bytes:
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != "uint8" or not is_image or not pixels.size:
        raise ImageInputError(
            f"image: received an array of {pixels.dtype} with the shape {pixels.shape}. Give uint8 "
            "pixels: RGB of the shape (height, width, 3), or grey of the shape (height, width)."
        )
    try:
        from PIL import Image
    except ImportError:
        raise ImageInputError(
            "Arrays are encoded with Pillow, which is not installed. Install it, or give the "
            "encoded image as bytes."
        ) from None
    return _encode_pil(Image.fromarray(pixels))
