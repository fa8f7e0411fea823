"""Orientation from an EXIF block, without reading its other fields."""

import struct

_ORIENTATION_TAG, _SHORT = 0x0112, 3
_MAX_FIELDS = 512
"""Fields of the first directory that are searched; cameras write about twenty."""


def orientation_from_exif(block: bytes) -> int:
    r"""Return the orientation, 1 to 8; 1 (upright) if there is no valid one.

    ``block``: a TIFF file, with or without ``Exif\0\0`` before it. A damaged block does not
    affect the pixels, so it raises no error.
    """
    tiff = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for index in range(min(count, _MAX_FIELDS)):
            tag, kind, _, value = struct.unpack_from(
                order + "HHIH", tiff, directory + 2 + 12 * index
            )
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
