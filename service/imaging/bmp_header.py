"""Header of a BMP file."""

import struct

from service.imaging.image_header import HeaderError, ImageHeader, UnsupportedHeaderError

_UNCOMPRESSED, _BITFIELDS = 0, 3
_CORE_HEADER_BYTES = 12
_INFO_HEADER_BYTES = frozenset({40, 52, 56, 64, 108, 124})
_MASKS = {
    16: {(0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F)},
    32: {(0xFF0000, 0xFF00, 0xFF)},
}


def read_bmp_header(body: bytes) -> ImageHeader:
    """Read the size; only uncompressed files are accepted.

    Raises :class:`HeaderError` and :class:`UnsupportedHeaderError`.
    """
    try:
        (header_bytes,) = struct.unpack_from("<I", body, 14)
        if header_bytes == _CORE_HEADER_BYTES:
            width, height, _, bits = struct.unpack_from("<HHHH", body, 18)
            compression, colors = _UNCOMPRESSED, 0
        elif header_bytes in _INFO_HEADER_BYTES:
            width, height, _, bits, compression = struct.unpack_from("<iiHHI", body, 18)
            (colors,) = struct.unpack_from("<I", body, 46)
        else:
            raise UnsupportedHeaderError(
                f"The BMP has a header of {header_bytes} bytes, which is of no known version. "
                "Send it as PNG."
            )
        masks = struct.unpack_from("<III", body, 54) if compression == _BITFIELDS else None
    except struct.error:
        raise HeaderError("its header is incomplete") from None
    if compression not in {_UNCOMPRESSED, _BITFIELDS}:
        raise UnsupportedHeaderError(
            f"The BMP is compressed (type {compression}); only uncompressed BMPs are accepted. "
            "Send it as PNG."
        )
    if bits not in {1, 4, 8, 16, 24, 32} or (masks and masks not in _MASKS.get(bits, ())):
        raise UnsupportedHeaderError(
            f"The BMP has {bits} bits per pixel in an unusual layout; 1, 4, 8, 16, 24 and 32 bits "
            "in the order blue, green, red are accepted. Send it as PNG."
        )
    if bits <= 8 and colors > 1 << bits:
        raise HeaderError(f"its palette has {colors} colors, more than {bits} bits can address")
    return ImageHeader("BMP", width, abs(height), 1, (body,))
