"""Upper bounds of the cost of decoding, from the header and the length of the file.

The constants are measured on the worst content of each format, with a margin of two for CPU time
and a quarter for memory; ``python -m benchmarks.decoding_cost`` compares them with measurements.
"""

from typing import NamedTuple

from service.imaging.image_header import ImageHeader
from service.imaging.types import DecodingCost

_FIXED_BYTES, _FIXED_S = 4 << 20, 0.005
_RGB_BYTES_PER_PIXEL = 3


class _Rates(NamedTuple):
    """Memory beside the output, and CPU time."""

    bytes_per_pixel: float
    ns_per_pixel: float
    ns_per_byte: float


_RATES = {
    "JPEG": _Rates(4, 60, 60),
    "PNG": _Rates(5, 60, 40),
    "WEBP": _Rates(8, 120, 150),
    "BMP": _Rates(1, 20, 4),
}
_COEFFICIENT_NS_PER_SCAN = 4
"""CPU time per pixel, component and scan of a multi-scan JPEG, both decoders together."""


def decoding_cost(header: ImageHeader, file_bytes: int) -> DecodingCost:
    """Return the cost of decoding at full size, including the rotation to upright."""
    rates = _RATES[header.format]
    pixels = header.width_px * header.height_px
    cpu_ns = rates.ns_per_pixel * pixels + rates.ns_per_byte * file_bytes
    if header.coefficient_bytes:
        cpu_ns += _COEFFICIENT_NS_PER_SCAN * header.scans * pixels * header.channels
    memory = (rates.bytes_per_pixel + _RGB_BYTES_PER_PIXEL) * pixels + header.coefficient_bytes
    # Metadata are removed from a copy, which Pillow copies again.
    return DecodingCost(
        int(memory) + 2 * file_bytes + _FIXED_BYTES, _FIXED_S + cpu_ns / 1_000_000_000
    )
