"""Upper bounds of the cost of decoding, from the header and the length of the file.

The constants are measured on the worst content of each format, with a margin;
``python -m benchmarks.decoding_cost`` compares them with measurements.
"""

from typing import NamedTuple

from service.imaging.image_header import ImageHeader
from service.imaging.types import DecodingCost

_FIXED_BYTES, _FIXED_S = 4 << 20, 0.002


class _Rates(NamedTuple):
    """Memory, the output and its rotated copy included, and CPU time."""

    bytes_per_pixel: float
    ns_per_pixel: float
    ns_per_file_byte: float


_RATES = {
    # Both decoders: simplejpeg and, where it warns, Pillow.
    "JPEG": _Rates(9, 50, 100),
    "PNG": _Rates(8, 60, 40),
    "WEBP": _Rates(11, 80, 150),
    "BMP": _Rates(8, 50, 4),
    "GIF": _Rates(8, 40, 20),
    "TIFF": _Rates(12, 60, 20),
    # For 12 bits without chroma subsampling; those of 8 bits take half of the memory.
    "AVIF": _Rates(24, 120, 120),
    "HEIC": _Rates(24, 160, 120),
}
_NS_PER_SCANNED_PIXEL = 4
"""CPU time per pixel of each scan of a multi-scan JPEG; a scan that visits all coefficients has one
component, by the definition of progressive JPEGs."""

# A lossless WebP can have a set of five Huffman tables per 4 x 4 pixels, of 20 bits at least.
_MAX_TABLE_SETS, _TABLE_SETS_PER_FILE_BYTE = 1 << 16, 8 / 20
_TABLE_SET_BYTES, _TABLE_SET_NS = 6_500, 25_000


def decoding_cost(header: ImageHeader, file_bytes: int) -> DecodingCost:
    """Return the cost of decoding at full size, including the rotation to upright."""
    rates = _RATES[header.format]
    pixels = header.width_px * header.height_px
    cpu_ns = rates.ns_per_pixel * pixels + rates.ns_per_file_byte * file_bytes
    if header.coefficient_bytes:
        cpu_ns += _NS_PER_SCANNED_PIXEL * header.scans * pixels
    memory = rates.bytes_per_pixel * pixels + header.coefficient_bytes + header.buffer_bytes
    if header.is_lossless_webp:
        sets = min(_MAX_TABLE_SETS, pixels / 16, file_bytes * _TABLE_SETS_PER_FILE_BYTE)
        memory += _TABLE_SET_BYTES * sets
        cpu_ns += _TABLE_SET_NS * sets
    # Metadata are removed from a copy, which Pillow copies again.
    return DecodingCost(
        int(memory) + 2 * file_bytes + _FIXED_BYTES, _FIXED_S + cpu_ns / 1_000_000_000
    )
