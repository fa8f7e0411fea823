"""Bytes of a stranger to upright RGB pixels, with every size checked before memory is spent.

Rules, as ``cv2.imread`` has them where it has any: EXIF orientation is applied; alpha is dropped;
grey and palette images become RGB; CMYK is converted; 16-bit greys keep their high byte.
Moving images (animated PNG or WebP) are refused, since no one frame is what was meant.
"""

import io
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from service.errors import BadImageError, EmptyBodyError, ImageSizeError, UnsupportedImageError
from service.imaging.geometry import AffineTransform
from service.imaging.jpeg import count_scans, decode_strictly, reduced_side
from service.imaging.png import has_all_rows

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MIN_SIDE_PX = 16
"""Below this an image shows nothing that a detector of stride 4 could find."""
MAX_SIDE_PX = 16_384
"""The warp addresses source pixels with 16-bit signed integers; this stays clear of its end."""
MAX_SCANNED_PIXELS = 600_000_000
"""A progressive JPEG may repeat scans at almost no cost in bytes, and each one costs a pass over
the whole image: this bounds scans times pixels. Encoders write about ten scans."""

# Pillow warns of every oddity in a file with a text of its own, which Python would remember and
# print: strangers could fill the log and the memory. What matters is refused here.
warnings.filterwarnings("ignore", module=r"PIL\.")

_JPEG_FORMATS = frozenset({"JPEG", "MPO"})
_ORIENTATION_TAG = 0x0112
_MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
# What Pillow's decoders raise on damaged files, besides OSError.
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error)

_Turn = Callable[[NDArray[np.uint8]], Any]
# EXIF orientation to what makes the stored pixels upright.
_TURNS: Mapping[int, _Turn] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
# Orientations whose upright left (upper) edge is a right or lower edge of the stored image.
_LEFT_IS_STORED_LAST, _TOP_IS_STORED_LAST = frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8})
_SIDES_SWAPPED = frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class Reduction:
    """How an image that was decoded at a fraction of its size lies in the full-size one."""

    full_width_px: int
    full_height_px: int
    to_full: AffineTransform
    """Reduced to full size, centers of pixels to the centers of what they are the mean of."""


@dataclass(frozen=True)
class DecodedImage:
    """``pixels``: uint8 RGB (height, width, 3) of the upright image; full size or reduced."""

    pixels: NDArray[np.uint8]
    reduction: Reduction | None = None


class OpenedImage:
    """An image whose header was read and whose size is acceptable."""

    def __init__(self, image: Image.Image, body: bytes, max_pixels: int) -> None:
        self._image = image
        self._body = body
        self._max_pixels = max_pixels
        self._is_jpeg = image.format in _JPEG_FORMATS
        if not self._is_jpeg:
            # Before EXIF: reading that loads a PNG too, and would swallow what is wrong with it.
            _load_all(image, body)
        self._orientation = _orientation_of(image)
        sides = (image.width, image.height)
        self.width_px, self.height_px = sides[::-1] if self._is_turned else sides
        """Sides of the full-size upright image."""

    @property
    def orientation_applied(self) -> bool:
        """Whether EXIF asks for a turn or a flipped image."""
        return self._orientation != 1

    @property
    def _is_turned(self) -> bool:
        return self._orientation in _SIDES_SWAPPED

    def decode(self, reduction: int = 1) -> DecodedImage:
        """Decode the pixels, once; a JPEG at 1/``reduction`` (1, 2, 4 or 8) of its sides.

        Other formats cannot be reduced and come in full size. Raises :class:`BadImageError` and
        :class:`UnsupportedImageError`.
        """
        with _refusals(self._body, self._max_pixels):
            if not self._is_jpeg:
                return DecodedImage(self._upright(_to_rgb(self._image)))
            pixels = self._upright(self._decode_jpeg(reduction))
            return DecodedImage(pixels, self._describe(reduction) if reduction > 1 else None)

    def _decode_jpeg(self, reduction: int) -> NDArray[np.uint8]:
        image = self._image
        size = (reduced_side(image.width, reduction), reduced_side(image.height, reduction))
        # Pillow takes over with CMYK, and decides about whatever libjpeg warned of.
        if image.mode in {"RGB", "L"}:
            pixels = decode_strictly(self._body, size, reduction)
            if pixels is not None:
                return pixels
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        pixels = _to_rgb(image)
        if pixels.shape[1::-1] != size:
            raise ValueError(f"{pixels.shape[1::-1]} pixels were decoded instead of {size}")
        return pixels

    def _upright(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        turn = _TURNS.get(self._orientation)
        return stored if turn is None else np.asarray(turn(stored), dtype=np.uint8)

    def _describe(self, reduction: int) -> Reduction:
        """A reduced pixel is the mean of a block; blocks begin at the stored left and top.

        The last ones reach beyond the image, which a turn may bring to the upright left or top.
        """
        x = y = (reduction - 1) / 2
        if self._orientation in _LEFT_IS_STORED_LAST:
            x -= reduced_side(self.width_px, reduction) * reduction - self.width_px
        if self._orientation in _TOP_IS_STORED_LAST:
            y -= reduced_side(self.height_px, reduction) * reduction - self.height_px
        return Reduction(self.width_px, self.height_px, AffineTransform(reduction, x, y))


class ArrayImage:
    """An image that is decoded already, with the interface of :class:`OpenedImage`.

    ``pixels``: uint8 RGB (height, width, 3). Raises :class:`UnsupportedImageError` and
    :class:`ImageSizeError`.
    """

    orientation_applied = False

    def __init__(self, pixels: NDArray[np.uint8], max_pixels: int) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise UnsupportedImageError(
                f"The array is {pixels.dtype} of shape {pixels.shape}. Pass uint8 RGB of shape "
                "(height, width, 3)."
            )
        self.height_px, self.width_px, _ = pixels.shape
        check_size(self.width_px, self.height_px, max_pixels)
        self._pixels = pixels

    def decode(self, reduction: int = 1) -> DecodedImage:
        """Return the pixels in full size, whatever ``reduction``."""
        del reduction
        return DecodedImage(self._pixels)


def open_image(body: bytes, max_pixels: int) -> OpenedImage:
    """Read the header of one image, and for other formats than JPEG its pixels.

    Raises :class:`EmptyBodyError`, :class:`UnsupportedImageError`, :class:`ImageSizeError` and
    :class:`BadImageError`.
    """
    if not body:
        raise EmptyBodyError(
            "The image is empty (0 bytes). Send the bytes of one JPEG, PNG, WebP or BMP file."
        )
    with _refusals(body, max_pixels):
        image = Image.open(io.BytesIO(body), formats=FORMATS)
        check_size(image.width, image.height, max_pixels)
        _check_kind(image, body)
        return OpenedImage(image, body, max_pixels)


@contextmanager
def _refusals(body: bytes, max_pixels: int) -> Iterator[None]:
    """Turn what Pillow raises into what the sender can act on."""
    try:
        yield
    except UnidentifiedImageError:
        raise UnsupportedImageError(
            f"The {len(body)} bytes received, which start with {body[:12]!r}, are not an image "
            "in a format that this service decodes. Send one JPEG, PNG, WebP or BMP file."
        ) from None
    except Image.DecompressionBombError as error:
        raise ImageSizeError(
            f"The image is too large: {error} At most {max_pixels} pixels are accepted."
        ) from None
    except _DECODING_ERRORS as error:
        raise BadImageError(
            f"The image of {len(body)} bytes is damaged or cut off: {error}. "
            "Check that the whole file was sent."
        ) from None


def check_size(width_px: int, height_px: int, max_pixels: int) -> None:
    """Raise :class:`ImageSizeError` unless both sides and the number of pixels are in range."""
    received = f"The image is {width_px} x {height_px} pixels"
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise ImageSizeError(f"{received}; each side must have at least {MIN_SIDE_PX}.")
    if max(width_px, height_px) > MAX_SIDE_PX:
        raise ImageSizeError(
            f"{received}; a side may have at most {MAX_SIDE_PX}. Scale or cut the image."
        )
    if width_px * height_px > max_pixels:
        raise ImageSizeError(
            f"{received}, {width_px * height_px} in all; at most {max_pixels} are accepted. "
            "Scale the image down before sending it."
        )


def _check_kind(image: Image.Image, body: bytes) -> None:
    # A JPEG with several images (MPO, from phones and stereo cameras) has one main image.
    if image.format in {"PNG", "WEBP"} and getattr(image, "is_animated", False):
        raise UnsupportedImageError(
            f"The {image.format} is animated ({getattr(image, 'n_frames', 2)} frames). "
            "Send each frame that you want evaluated as an image of its own."
        )
    if image.format in _JPEG_FORMATS:
        most = MAX_SCANNED_PIXELS // (image.width * image.height)
        if count_scans(body) > most:
            raise UnsupportedImageError(
                f"The JPEG has more than the {most} scans that are accepted at its size of "
                f"{image.width} x {image.height} pixels. Save it again with an ordinary encoder."
            )


def _load_all(image: Image.Image, body: bytes) -> None:
    """Decode; unlike Pillow, do not take a PNG for whole whose data end before its last row."""
    image.load()
    if image.format == "PNG" and not has_all_rows(image, body):
        raise ValueError("its compressed data end before the last row")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    image.load()
    if image.mode in _MODES_16_BIT:
        image = Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise UnsupportedImageError(
            f"The image has 32-bit samples (mode {image.mode}), at most 16 bits are accepted. "
            "Convert it to 8 bits per channel."
        )
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 (upright) when there is none that can be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block must not cost an image that decodes
        return 1
    return orientation if orientation in range(1, 9) else 1
