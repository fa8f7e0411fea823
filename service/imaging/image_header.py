"""Headers of encoded images: size, orientation and everything that the cost depends on.

The readers never decode. They take microseconds for ordinary files, up to 2 ms for the longest
accepted lists of chunks, and up to 1 ms per MiB to count the scans of a multi-scan JPEG. Loops in
Python are bounded, whatever the file contains. Libraries are given :attr:`ImageHeader.data`, from
which metadata are removed: they parse neither compressed text nor color profiles nor long lists of
chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MAX_PARTS = 4096
"""Chunks of a PNG or WebP, blocks of a GIF, and units of the data of an AVIF or HEIC."""


class HeaderError(ValueError):
    """The header is damaged or cut off."""


class UnsupportedHeaderError(ValueError):
    """The file is of a kind that is not accepted; the message says which kinds are."""


@dataclass(frozen=True)
class ImageHeader:
    """Header of one encoded image; sizes in pixels, as stored.

    ``coefficient_bytes``: memory for the coefficients of a multi-scan JPEG, else 0.
    ``buffer_bytes``: memory for the largest strip or tile of a TIFF, else 0. ``scans``: passes over
    the image that a JPEG decoder makes. ``channels``: JPEG components.
    """

    format: Literal["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIC"]
    width_px: int
    height_px: int
    orientation: int
    parts: tuple[bytes | memoryview, ...]
    channels: int = 3
    scans: int = 1
    coefficient_bytes: int = 0
    buffer_bytes: int = 0
    is_lossless_webp: bool = False

    @property
    def data(self) -> bytes:
        """The file without metadata; a copy, unless nothing was removed."""
        first = self.parts[0]
        return first if len(self.parts) == 1 and isinstance(first, bytes) else b"".join(self.parts)


HeaderReader = Callable[[bytes], ImageHeader]


def too_many_parts(limit: int, name: str) -> UnsupportedHeaderError:
    """Return the error for a file of more than ``limit`` segments or chunks."""
    return UnsupportedHeaderError(
        f"The image has more than the {limit} {name} that are accepted. "
        "Save it again with a standard encoder."
    )
