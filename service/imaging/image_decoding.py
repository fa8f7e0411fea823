"""Decoding of untrusted image files to upright RGB pixels.

Every size is checked before memory is allocated for it. Conversions are those of ``cv2.imread``
where it has them: EXIF orientation is applied, alpha is dropped, gray and palette images become
RGB, CMYK is converted, 16-bit gray images keep their high byte. Animated PNG and WebP files are
rejected, since none of their frames is *the* image.
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
"""A smaller image contains nothing that a detector with output stride 4 could detect."""
MAX_SIDE_PX = 16_384
"""``cv2.warpAffine`` addresses source pixels with 16-bit signed integers; half their range."""
MAX_SCANNED_PIXELS = 600_000_000
"""Limit on scans times pixels of a progressive JPEG. A file can repeat scans at almost no cost in
bytes, but decoding each one takes a pass over the whole image. Encoders write about ten scans."""

# Pillow warns of unusual files with texts from the file, which Python remembers and prints:
# clients could fill the log and the memory. Files that matter are rejected by errors.
warnings.filterwarnings("ignore", module=r"PIL\.")

_JPEG_FORMATS = frozenset({"JPEG", "MPO"})
_ORIENTATION_TAG = 0x0112
_MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
# Raised by Pillow's decoders on damaged files, besides OSError.
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error)

_PixelTransform = Callable[[NDArray[np.uint8]], Any]
# From stored to upright pixels, by EXIF orientation; 1 is upright.
_TO_UPRIGHT: Mapping[int, _PixelTransform] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
# Orientations whose upright left (top) edge is the right or the bottom edge of the stored image.
_LEFT_IS_STORED_LAST, _TOP_IS_STORED_LAST = frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8})
_SIDES_SWAPPED = frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class Reduction:
    """Relation of an image decoded at reduced size to the full-size image, both upright."""

    full_width_px: int
    full_height_px: int
    to_full: AffineTransform
    """From the center of a reduced pixel to the center of the block that it is the mean of."""


@dataclass(frozen=True)
class DecodedImage:
    """Upright image: ``pixels`` uint8 RGB (height, width, 3), at full size or reduced."""

    pixels: NDArray[np.uint8]
    reduction: Reduction | None = None


class OpenedImage:
    """Image whose header was read and whose size was accepted."""

    def __init__(self, image: Image.Image, body: bytes, max_pixels: int) -> None:
        self._image = image
        self._body = body
        self._max_pixels = max_pixels
        self._is_jpeg = image.format in _JPEG_FORMATS
        if not self._is_jpeg:
            # Before reading EXIF, which also loads a PNG and would hide its errors.
            _load_complete(image, body)
        self._orientation = _exif_orientation(image)
        sides = (image.width, image.height)
        self.width_px, self.height_px = (
            sides[::-1] if self._orientation in _SIDES_SWAPPED else sides
        )
        """Size of the full-size upright image."""

    @property
    def orientation_applied(self) -> bool:
        """True if the EXIF orientation rotates or flips the stored image."""
        return self._orientation != 1

    def decode(self, reduction: int = 1) -> DecodedImage:
        """Decode the pixels; call this once.

        A JPEG is decoded at 1/``reduction`` (1, 2, 4 or 8) of its sides, other formats at full
        size. Raises :class:`BadImageError` and :class:`UnsupportedImageError`.
        """
        with _service_errors(self._body, self._max_pixels):
            if not self._is_jpeg:
                return DecodedImage(self._to_upright(_to_rgb(self._image)))
            pixels = self._to_upright(self._decode_jpeg(reduction))
            return DecodedImage(pixels, self._reduction(reduction) if reduction > 1 else None)

    def _decode_jpeg(self, reduction: int) -> NDArray[np.uint8]:
        image = self._image
        size = (reduced_side(image.width, reduction), reduced_side(image.height, reduction))
        # Pillow decodes CMYK, and files that libjpeg warns of: it decides which are damaged.
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

    def _to_upright(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        transform = _TO_UPRIGHT.get(self._orientation)
        return stored if transform is None else np.asarray(transform(stored), dtype=np.uint8)

    def _reduction(self, reduction: int) -> Reduction:
        """Describe the reduced image.

        A reduced pixel is the mean of a block of pixels. Blocks start at the stored left and top
        edges, and the last ones extend beyond the image: with some orientations these are at the
        upright left or top.
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
    """Read the header of one encoded image; for formats other than JPEG, also its pixels.

    Raises :class:`EmptyBodyError`, :class:`UnsupportedImageError`, :class:`ImageSizeError` and
    :class:`BadImageError`.
    """
    if not body:
        raise EmptyBodyError(
            "The image is empty (0 bytes). Send the bytes of one JPEG, PNG, WebP or BMP file."
        )
    with _service_errors(body, max_pixels):
        image = Image.open(io.BytesIO(body), formats=FORMATS)
        check_size(image.width, image.height, max_pixels)
        _check_frames_and_scans(image, body)
        return OpenedImage(image, body, max_pixels)


@contextmanager
def _service_errors(body: bytes, max_pixels: int) -> Iterator[None]:
    """Convert Pillow's exceptions to errors that tell the client what to do."""
    try:
        yield
    except UnidentifiedImageError:
        raise UnsupportedImageError(
            f"The {len(body)} bytes received, which start with {body[:12]!r}, are not an image "
            "in a supported format. Send one JPEG, PNG, WebP or BMP file."
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
        raise ImageSizeError(
            f"{received}; each side must have at least {MIN_SIDE_PX}. Send a larger image."
        )
    if max(width_px, height_px) > MAX_SIDE_PX:
        raise ImageSizeError(
            f"{received}; a side may have at most {MAX_SIDE_PX}. Resize or crop the image."
        )
    if width_px * height_px > max_pixels:
        raise ImageSizeError(
            f"{received}, {width_px * height_px} in total; at most {max_pixels} are accepted. "
            "Resize the image before sending it."
        )


def _check_frames_and_scans(image: Image.Image, body: bytes) -> None:
    # A JPEG with several images (MPO, from phones and stereo cameras) has one main image.
    if image.format in {"PNG", "WEBP"} and getattr(image, "is_animated", False):
        raise UnsupportedImageError(
            f"The {image.format} is animated ({getattr(image, 'n_frames', 2)} frames). "
            "Send each frame as an image of its own."
        )
    if image.format in _JPEG_FORMATS:
        max_scans = MAX_SCANNED_PIXELS // (image.width * image.height)
        if count_scans(body) > max_scans:
            raise UnsupportedImageError(
                f"The JPEG has more than the {max_scans} scans that are accepted at its size of "
                f"{image.width} x {image.height} pixels. Save it again with a standard encoder."
            )


def _load_complete(image: Image.Image, body: bytes) -> None:
    """Decode the pixels; unlike Pillow, raise if the data of a PNG end before its last row."""
    image.load()
    if image.format == "PNG" and not has_all_rows(image, body):
        raise ValueError("its compressed data end before the last row")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return uint8 RGB (height, width, 3) in stored orientation."""
    image.load()
    if image.mode in _MODES_16_BIT:
        image = Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise UnsupportedImageError(
            f"The image has 32-bit samples (mode {image.mode}); at most 16 bits are accepted. "
            "Convert it to 8 bits per channel."
        )
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if there is no valid one."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block does not affect the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1
