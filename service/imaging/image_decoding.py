"""Decoding of untrusted image files to upright RGB pixels.

Opening reads only the header (:mod:`service.imaging.image_header`) and states what decoding may
cost. Conversions are those of ``cv2.imread``: EXIF orientation is applied, alpha is dropped, gray
and palette images become RGB, CMYK is converted, 16-bit samples keep their high byte. Animated PNG
and WebP files and image sequences are rejected, since none of their frames is *the* image; of a GIF
and a TIFF the first image is decoded.
"""

import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from service.errors import BadImageError, EmptyBodyError, ImageSizeError, UnsupportedImageError
from service.imaging.bmp_header import read_bmp_header
from service.imaging.decoding_cost import decoding_cost
from service.imaging.geometry import AffineTransform
from service.imaging.gif_header import read_gif_header
from service.imaging.heic import IS_HEIC_SUPPORTED, check_heic_support, decode_heic
from service.imaging.heif_header import is_heif, read_heif_header
from service.imaging.image_header import HeaderReader, ImageHeader, UnsupportedHeaderError
from service.imaging.jpeg import decode_jpeg, reduced_side
from service.imaging.jpeg_header import read_jpeg_header, scan_limit
from service.imaging.pillow_decoding import decode_avif, open_with_pillow, rgb_pixels
from service.imaging.png_header import SIGNATURE, read_png_header
from service.imaging.tiff_header import SIGNATURES, read_tiff_header
from service.imaging.types import DecodingCost
from service.imaging.webp_header import read_webp_header

_FORMATS = ("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF", "AVIF", *(["HEIC"] * IS_HEIC_SUPPORTED))
ACCEPTED_FORMATS = f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
"""The formats of images that are accepted, for messages."""

MIN_SIDE_PX = 16
"""A smaller image contains nothing that a detector with output stride 4 could detect."""
MAX_SIDE_PX = 16_384
"""``cv2.warpAffine`` addresses source pixels with 16-bit signed integers; half their range."""

# Pillow and OpenCV report unusual files in texts from the file: clients could fill the log and the
# memory. Files that matter are rejected by errors.
warnings.filterwarnings("ignore", module=r"PIL\.")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_OPENCV_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# Raised on damaged files by Pillow's decoder and by the header readers, besides OSError.
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

    def __init__(self, header: ImageHeader, body: bytes) -> None:
        self._header = header
        self._body = body
        sides = (header.width_px, header.height_px)
        self.width_px, self.height_px = (
            sides[::-1] if header.orientation in _SIDES_SWAPPED else sides
        )
        """Size of the full-size upright image."""
        self.cost: DecodingCost = decoding_cost(header, len(body))

    @property
    def orientation_applied(self) -> bool:
        """True if the EXIF orientation rotates or flips the stored image."""
        return self._header.orientation != 1

    def decode(self, reduction: int = 1) -> DecodedImage:
        """Decode the pixels.

        A JPEG is decoded at 1/``reduction`` (1, 2, 4 or 8) of its sides, other formats at full
        size. Raises :class:`BadImageError`.
        """
        with _service_errors(self._body):
            if self._header.format != "JPEG":
                return DecodedImage(self._to_upright(_decode(self._header)))
            pixels = self._to_upright(decode_jpeg(self._header, reduction))
            return DecodedImage(pixels, self._reduction(reduction) if reduction > 1 else None)

    def _to_upright(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        transform = _TO_UPRIGHT.get(self._header.orientation)
        return stored if transform is None else np.asarray(transform(stored), dtype=np.uint8)

    def _reduction(self, reduction: int) -> Reduction:
        """Describe the reduced image.

        A reduced pixel is the mean of a block of pixels. Blocks start at the stored left and top
        edges, and the last ones extend beyond the image: with some orientations these are at the
        upright left or top.
        """
        x = y = (reduction - 1) / 2
        if self._header.orientation in _LEFT_IS_STORED_LAST:
            x -= reduced_side(self.width_px, reduction) * reduction - self.width_px
        if self._header.orientation in _TOP_IS_STORED_LAST:
            y -= reduced_side(self.height_px, reduction) * reduction - self.height_px
        return Reduction(self.width_px, self.height_px, AffineTransform(reduction, x, y))


class ArrayImage:
    """An image that is decoded already, with the interface of :class:`OpenedImage`.

    ``pixels``: uint8 RGB (height, width, 3). Raises :class:`UnsupportedImageError` and
    :class:`ImageSizeError`.
    """

    orientation_applied = False
    cost = DecodingCost(0, 0)

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
    """Read the header of one encoded image.

    Raises :class:`EmptyBodyError`, :class:`UnsupportedImageError`, :class:`ImageSizeError` and
    :class:`BadImageError`.
    """
    if not body:
        raise EmptyBodyError(
            f"The image is empty (0 bytes). Send the bytes of one {ACCEPTED_FORMATS} file."
        )
    read_header = _header_reader(body)
    if read_header is None:
        raise UnsupportedImageError(
            f"The {len(body)} bytes received, which start with {body[:12]!r}, are not an image "
            f"in a supported format. Send one {ACCEPTED_FORMATS} file."
        )
    with _service_errors(body):
        header = read_header(body)
        if header.format == "HEIC":
            check_heic_support()
    check_size(header.width_px, header.height_px, max_pixels)
    _check_scans(header)
    return OpenedImage(header, body)


def is_image(body: bytes) -> bool:
    """Return whether the bytes begin as an image in a supported format does."""
    return _header_reader(body) is not None


def _header_reader(body: bytes) -> HeaderReader | None:
    if body.startswith(b"\xff\xd8\xff"):
        return read_jpeg_header
    if body.startswith(SIGNATURE):
        return read_png_header
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return read_webp_header
    if body.startswith((b"GIF87a", b"GIF89a")):
        return read_gif_header
    if body[:4] in SIGNATURES:
        return read_tiff_header
    if is_heif(body):
        return read_heif_header
    return read_bmp_header if body.startswith(b"BM") else None


@contextmanager
def _service_errors(body: bytes) -> Iterator[None]:
    """Convert exceptions of readers and decoders to errors that tell the client what to do."""
    try:
        yield
    except UnsupportedHeaderError as error:
        raise UnsupportedImageError(str(error)) from None
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


def _check_scans(header: ImageHeader) -> None:
    limit = scan_limit(header.width_px * header.height_px)
    if header.scans > limit:
        raise UnsupportedImageError(
            f"The JPEG has more than the {limit} scans that are accepted at its size of "
            f"{header.width_px} x {header.height_px} pixels. Save it again with a standard encoder."
        )


def _decode(header: ImageHeader) -> NDArray[np.uint8]:
    """Decode a file other than a JPEG to uint8 RGB (height, width, 3) in stored orientation."""
    if header.format in {"PNG", "WEBP", "BMP"}:
        return _decode_with_opencv(header)
    size = header.width_px, header.height_px
    if header.format in {"GIF", "TIFF"}:
        return rgb_pixels(open_with_pillow(header.data, header.format, size))
    pixels = decode_heic(header.data) if header.format == "HEIC" else decode_avif(header.data)
    # The rest is padding.
    pixels = pixels[: size[1], : size[0]]
    if pixels.shape != (*size[::-1], 3):
        raise ValueError(f"its decoder reads a size of {pixels.shape[1::-1]} pixels")
    return pixels


def _decode_with_opencv(header: ImageHeader) -> NDArray[np.uint8]:
    """Decode a PNG, WebP or BMP to uint8 RGB (height, width, 3) in stored orientation."""
    try:
        pixels = cv2.imdecode(np.frombuffer(header.data, np.uint8), _OPENCV_FLAGS)
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot decode it ({error.code})") from None
    if pixels is None:
        raise ValueError("its pixel data are incomplete or invalid")
    if pixels.shape != (header.height_px, header.width_px, 3):
        raise ValueError(f"its decoder reads a size of {pixels.shape[1::-1]} pixels")
    return np.asarray(pixels, dtype=np.uint8)
