"""Bytes of a stranger to upright RGB pixels, with every size checked before memory is spent.

Rules, as ``cv2.imread`` has them where it has any: EXIF orientation is applied; alpha is dropped;
grey and palette pictures become RGB; CMYK is converted; 16-bit greys keep their high byte.
Moving pictures (animated PNG or WebP) are refused, since no one frame is what was meant.
"""

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from service.errors import BadImageError, EmptyBodyError, ImageSizeError, UnsupportedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MIN_SIDE_PX = 16
"""Below this a picture shows nothing that a detector of stride 4 could find."""
MAX_SIDE_PX = 16_384
"""The warp addresses source pixels with 16-bit signed integers; this stays clear of its end."""
MAX_SCANNED_PIXELS = 600_000_000
"""A progressive JPEG may repeat scans at almost no cost in bytes, and each one costs a pass over
the whole picture: this bounds scans times pixels. Encoders write about ten scans."""

_ORIENTATION_TAG = 0x0112
_MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# In scan data 0xff is followed by 0 (stuffing), a restart marker or itself (fill).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# What Pillow's decoders raise on damaged files, besides OSError.
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error)


@dataclass(frozen=True)
class DecodedImage:
    """``pixels``: uint8 RGB (height, width, 3) of the upright picture."""

    pixels: NDArray[np.uint8]
    orientation_applied: bool


def decode_image(body: bytes, max_pixels: int) -> DecodedImage:
    """Decode one picture.

    Raises :class:`EmptyBodyError`, :class:`UnsupportedImageError`, :class:`ImageSizeError` and
    :class:`BadImageError`.
    """
    if not body:
        raise EmptyBodyError(
            "The image is empty (0 bytes). Send the bytes of one JPEG, PNG, WebP or BMP file."
        )
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            _check_size(image.width, image.height, max_pixels)
            _check_kind(image, body)
            return _to_rgb(image)
    except UnidentifiedImageError:
        raise UnsupportedImageError(
            f"The {len(body)} bytes received, which start with {body[:12]!r}, are not a picture "
            "in a format that this service decodes. Send one JPEG, PNG, WebP or BMP file."
        ) from None
    except Image.DecompressionBombError as error:
        raise ImageSizeError(
            f"The picture is too large: {error} At most {max_pixels} pixels are accepted."
        ) from None
    except _DECODING_ERRORS as error:
        raise BadImageError(
            f"The picture of {len(body)} bytes is damaged or cut off: {error}. "
            "Check that the whole file was sent."
        ) from None


def _check_size(width_px: int, height_px: int, max_pixels: int) -> None:
    received = f"The picture is {width_px} x {height_px} pixels"
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise ImageSizeError(f"{received}; each side must have at least {MIN_SIDE_PX}.")
    if max(width_px, height_px) > MAX_SIDE_PX:
        raise ImageSizeError(
            f"{received}; a side may have at most {MAX_SIDE_PX}. Scale or cut the picture."
        )
    if width_px * height_px > max_pixels:
        raise ImageSizeError(
            f"{received}, {width_px * height_px} in all; at most {max_pixels} are accepted. "
            "Scale the picture down before sending it."
        )


def _check_kind(image: Image.Image, body: bytes) -> None:
    # A JPEG with several pictures (MPO, from phones and stereo cameras) has one main picture.
    if image.format in {"PNG", "WEBP"} and getattr(image, "is_animated", False):
        raise UnsupportedImageError(
            f"The {image.format} is animated ({getattr(image, 'n_frames', 2)} frames). "
            "Send each frame that you want judged as a picture of its own."
        )
    if image.format in {"JPEG", "MPO"}:
        most = MAX_SCANNED_PIXELS // (image.width * image.height)
        if _count_scans(body) > most:
            raise UnsupportedImageError(
                f"The JPEG has more than the {most} scans that are accepted at its size of "
                f"{image.width} x {image.height} pixels. Save it again with an ordinary encoder."
            )


def _count_scans(body: bytes) -> int:
    """Scans of the first picture in a JPEG file; what is appended to it does not count."""
    scans, position = 0, 2
    while marker := _NEXT_MARKER.search(body, position):
        kind, position = body[marker.end() - 1], marker.end()
        if kind == _END_OF_IMAGE:
            break
        scans += kind == _START_OF_SCAN
        position += int.from_bytes(body[position : position + 2], "big")
    return scans


def _to_rgb(image: Image.Image) -> DecodedImage:
    # Before EXIF: reading that loads a PNG's pixels too, and would swallow what is wrong with them.
    image.load()
    orientation = _orientation_of(image)
    if image.mode in _MODES_16_BIT:
        high_byte = (np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)
        upright: Image.Image = Image.fromarray(high_byte)
    elif image.mode in {"I", "F"}:
        raise UnsupportedImageError(
            f"The picture has 32-bit samples (mode {image.mode}), at most 16 bits are accepted. "
            "Convert it to 8 bits per channel."
        )
    else:
        upright = image
    # Colours first: a turn of palette or 1-bit pictures is slower and no different.
    if upright.mode != "RGB":
        upright = upright.convert("RGB")
    if orientation != 1:
        upright.getexif()[_ORIENTATION_TAG] = orientation
        upright = ImageOps.exif_transpose(upright)
    return DecodedImage(np.asarray(upright), orientation_applied=orientation != 1)


def _orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 (upright) when there is none that can be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block must not cost a picture that decodes
        return 1
    return orientation if orientation in range(1, 9) else 1
