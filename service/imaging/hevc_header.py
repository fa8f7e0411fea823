"""Headers of an HEVC still image (ITU-T H.265, section 7.3).

As with AV1, memory and time follow from the headers of the codec and not from the file around them.
One intra frame of the stated size is accepted, whose parameter sets are in the
``hvcC`` box.
"""

from functools import partial

from service.imaging.bit_reader import BitReader, FrameCheck
from service.imaging.image_header import HeaderError, UnsupportedHeaderError, too_many_parts

_PARAMETERS_START = 22
"""Bytes of the ``hvcC`` box before its lists of parameter sets."""
_INTRA_FRAMES = range(16, 22)
_VIDEO_SET, _SEQUENCE_SET, _FRAME_SET = 32, 33, 34
_IGNORED = frozenset({35, 36, 37, 38, 39, 40})
"""Delimiters, filler data and supplemental information."""
_MAX_PARAMETER_SETS = 16
_HEADER_BYTES = 128
_MAX_BLOCK_PX = 64
"""Coded sizes are multiples of the smallest coding block; the rest of the last one is cropped."""
_CHROMA_UNITS = {0: (1, 1), 1: (2, 2), 2: (2, 1), 3: (1, 1)}


def hevc_frame_check(configuration: bytes, size: tuple[int, int]) -> FrameCheck:
    """Return a function that checks that data are one intra frame of this width and height.

    ``configuration``: content of the ``hvcC`` box. The function takes the data and the number of
    units that they may have, and returns how many they have. Both raise :class:`HeaderError` and
    :class:`UnsupportedHeaderError`.
    """
    return partial(_check_frame, _check_configuration(configuration, size))


def _check_frame(length_bytes: int, data: bytes | memoryview, max_units: int) -> int:
    position = frames = 0
    for count in range(max_units):
        if position == len(data):
            if frames != 1:
                raise HeaderError(f"its image data have {frames} frames")
            return count
        start = position + length_bytes
        position = start + int.from_bytes(data[position:start], "big")
        if position > len(data) or position - start < 3:
            raise HeaderError("its image data have a unit of a wrong length")
        kind = _unit_type(data, start)
        if kind in _INTRA_FRAMES:
            is_first = data[start + 2] >= 0x80
            if is_first != (frames == 0):
                raise HeaderError("its image data have several frames, or no start of one")
            frames += is_first
        elif kind not in _IGNORED:
            raise HeaderError(f"its image data have a unit of type {kind}")
    raise too_many_parts(max_units, "units of image data")


def _unit_type(data: bytes | memoryview, start: int) -> int:
    """Return the type of a network abstraction layer unit."""
    if data[start] & 0x81 or data[start + 1] >= 8:
        raise UnsupportedHeaderError(
            "The image has several layers. Save it again with a standard encoder."
        )
    return data[start] >> 1


def _check_configuration(configuration: bytes, size: tuple[int, int]) -> int:
    """Check the parameter sets; return the number of bytes of the lengths in the image data."""
    if len(configuration) <= _PARAMETERS_START:
        raise HeaderError("its hvcC box is incomplete")
    position = _PARAMETERS_START + 1
    sequences = sets = 0
    try:
        for _ in range(configuration[_PARAMETERS_START]):
            kind = configuration[position] & 0x3F
            count = int.from_bytes(configuration[position + 1 : position + 3], "big")
            position += 3
            sets += count
            if sets > _MAX_PARAMETER_SETS:
                raise too_many_parts(_MAX_PARAMETER_SETS, "parameter sets of the HEIC")
            for _ in range(count):
                length = int.from_bytes(configuration[position : position + 2], "big")
                position += 2
                unit = configuration[position : position + length]
                position += length
                if len(unit) != length or length < 3 or _unit_type(unit, 0) != kind:
                    raise HeaderError("its hvcC box has an invalid parameter set")
                if kind == _SEQUENCE_SET:
                    sequences += 1
                    _check_sequence(unit, size)
                elif kind not in {_VIDEO_SET, _FRAME_SET, *_IGNORED}:
                    raise HeaderError(f"its hvcC box has a unit of type {kind}")
    except IndexError:
        raise HeaderError("its hvcC box is incomplete") from None
    if sequences != 1:
        raise HeaderError(f"its hvcC box has {sequences} sequence parameter sets")
    return (configuration[_PARAMETERS_START - 1] & 3) + 1


def _check_sequence(unit: bytes, size: tuple[int, int]) -> None:
    """Check the frame size in a sequence parameter set."""
    # Without the bytes that keep the codes of the start of a unit from appearing.
    bits = BitReader(unit[2:_HEADER_BYTES].replace(b"\0\0\3", b"\0\0"))
    bits.uint(4)
    further_layers = bits.uint(3)
    bits.uint(1 + 96)
    if further_layers:
        present = [(bits.flag(), bits.flag()) for _ in range(8)][:further_layers]
        for has_profile, has_level in present:
            bits.uint(88 * has_profile + 8 * has_level)
    bits.exponential_golomb()
    chroma = bits.exponential_golomb()
    if chroma not in _CHROMA_UNITS:
        raise HeaderError("its sequence parameter set has an invalid chroma format")
    if chroma == 3:
        bits.uint(1)
    coded = bits.exponential_golomb(), bits.exponential_golomb()
    left = right = top = bottom = 0
    if bits.flag():
        left, right = bits.exponential_golomb(), bits.exponential_golomb()
        top, bottom = bits.exponential_golomb(), bits.exponential_golomb()
    unit_x, unit_y = _CHROMA_UNITS[chroma]
    cropped = coded[0] - unit_x * (left + right), coded[1] - unit_y * (top + bottom)
    if cropped != size or any(
        whole - part >= _MAX_BLOCK_PX for whole, part in zip(coded, size, strict=True)
    ):
        raise HeaderError(
            f"its image data have {cropped[0]} x {cropped[1]} of {coded[0]} x {coded[1]} pixels, "
            f"and the file states {size[0]} x {size[1]}"
        )
