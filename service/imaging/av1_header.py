"""Headers of an AV1 still image (AV1 Bitstream & Decoding Process Specification, section 5).

A decoder allocates memory for the size in these headers, whatever the file states around them, and
decodes every frame of the data: a few bytes suffice for a frame of any size. One key frame of the
stated size is accepted.
"""

from functools import partial
from typing import NamedTuple

from service.imaging.bit_reader import BitReader, FrameCheck
from service.imaging.image_header import HeaderError, UnsupportedHeaderError, too_many_parts

_HEADER_BYTES = 64
"""Bytes of a header that are read; more than the fields before the size can take."""
_SEQUENCE_HEADER, _FRAME_HEADER, _TILE_GROUP, _FRAME = 1, 3, 4, 6
_REPEATED_HEADER, _TILE_LIST = 7, 8
_SELECT = 2
"""Value of the fields that each frame header states."""


class _Sequence(NamedTuple):
    """The fields of a sequence header up to those that a frame header depends on."""

    is_reduced: bool
    width: int
    height: int
    frame_id_bits: int = 0
    screen_content_tools: int = _SELECT
    integer_motion: int = _SELECT


def av1_frame_check(configuration: bytes, size: tuple[int, int]) -> FrameCheck:
    """Return a function that checks that data are one key frame of this width and height.

    ``configuration``: content of the ``av1C`` box, which is not needed. The function takes the data
    and the number of units that they may have, and returns how many they have. It raises
    :class:`HeaderError` and :class:`UnsupportedHeaderError`.
    """
    del configuration
    return partial(_check_frame, size)


def _check_frame(size: tuple[int, int], data: bytes | memoryview, max_units: int) -> int:
    position, frames = 0, 0
    sequence: _Sequence | None = None
    for count in range(max_units):
        if position == len(data):
            if frames != 1:
                raise HeaderError(f"its image data have {frames} frames")
            return count
        kind, start, position = _unit(data, position)
        header = data[start : min(position, start + _HEADER_BYTES)]
        if kind == _SEQUENCE_HEADER:
            if sequence is not None:
                raise HeaderError("its image data have two sequence headers")
            sequence = _read_sequence(BitReader(header))
            if (sequence.width, sequence.height) != size:
                raise HeaderError(
                    f"its image data have {sequence.width} x {sequence.height} pixels, and the "
                    f"file states {size[0]} x {size[1]}"
                )
        elif kind in {_FRAME, _FRAME_HEADER}:
            if sequence is None:
                raise HeaderError("its image data have no sequence header")
            frames += 1
            _check_frame_header(BitReader(header), sequence)
        elif kind in {_REPEATED_HEADER, _TILE_LIST}:
            raise HeaderError(f"its image data have a unit of type {kind}")
    raise too_many_parts(max_units, "units of image data")


def _unit(data: bytes | memoryview, position: int) -> tuple[int, int, int]:
    """Return the type, the start and the end of the content of an open bitstream unit."""
    first = data[position]
    if first & 0x81:
        raise HeaderError("its image data have an invalid unit")
    if first & 0x04:
        raise _layers()
    start = position + 1
    if not first & 0x02:
        return first >> 3, start, len(data)
    size = 0
    for shift in range(0, 56, 7):
        if start >= len(data):
            raise HeaderError("its image data end early")
        byte = data[start]
        start += 1
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    end = start + size
    if end > len(data):
        raise HeaderError("its image data end early")
    return first >> 3, start, end


def _read_sequence(bits: BitReader) -> _Sequence:
    bits.uint(4)  # profile, still image
    is_reduced = bits.flag()
    if is_reduced:
        bits.uint(5)  # level
    else:
        if bits.flag():
            raise UnsupportedHeaderError(
                "The image data have the timing of a video. Save it again with a standard encoder."
            )
        has_delay = bits.flag()
        if bits.uint(5) or bits.uint(12):  # further operating points, or layers of the first
            raise _layers()
        if bits.uint(5) > 7:  # level
            bits.uint(1)
        if has_delay and bits.flag():
            bits.uint(4)
    width_bits, height_bits = bits.uint(4) + 1, bits.uint(4) + 1
    width, height = bits.uint(width_bits) + 1, bits.uint(height_bits) + 1
    if is_reduced:
        return _Sequence(True, width, height)
    frame_id_bits = bits.uint(4) + bits.uint(3) + 3 if bits.flag() else 0
    bits.uint(7)  # superblocks, intra and inter tools
    if has_order := bits.flag():
        bits.uint(2)
    screen_content_tools = _SELECT if bits.flag() else bits.uint(1)
    integer_motion = _SELECT
    if screen_content_tools and not bits.flag():
        integer_motion = bits.uint(1)
    if has_order:
        bits.uint(3)
    return _Sequence(False, width, height, frame_id_bits, screen_content_tools, integer_motion)


def _check_frame_header(bits: BitReader, sequence: _Sequence) -> None:
    if sequence.is_reduced:
        return
    # Show an existing frame: no; type: key frame; shown: yes.
    if bits.uint(4) != 0b0001:
        raise HeaderError("its image data have a frame other than a key frame")
    bits.uint(1)
    has_tools = (
        bits.flag() if sequence.screen_content_tools == _SELECT else sequence.screen_content_tools
    )
    if has_tools and sequence.integer_motion == _SELECT:
        bits.uint(1)
    bits.uint(sequence.frame_id_bits)
    if bits.flag():
        raise UnsupportedHeaderError(
            "The frame has a size of its own. Save the image again with a standard encoder."
        )


def _layers() -> UnsupportedHeaderError:
    return UnsupportedHeaderError(
        "The image has several layers. Save it again with a standard encoder."
    )
