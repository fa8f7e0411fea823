"""Header of a HEIF file: AVIF and HEIC (ISO/IEC 23008-12).

A file is a tree of boxes. Its primary item is one coded image or a grid of them; other items
(thumbnails, alpha, depth and gain maps, metadata) are not needed. What the primary item depends on
is checked and written to a new file, whose decoder sees nothing else: each coded image is one frame
of the stated size (:mod:`service.imaging.av1_header`, :mod:`service.imaging.hevc_header`), no
data are used twice, and the rotation is left to the service.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from service.imaging.av1_header import av1_frame_check
from service.imaging.bit_reader import FrameCheck
from service.imaging.hevc_header import hevc_frame_check
from service.imaging.image_header import (
    MAX_PARTS,
    HeaderError,
    ImageHeader,
    UnsupportedHeaderError,
    too_many_parts,
)

MAX_TILES = 256
"""Images of a grid; a 48-megapixel photo of a phone has 192."""
MAX_PROPERTY_BYTES = 1 << 12
"""Bytes of a property that is needed."""

_SEQUENCE_BRANDS = frozenset({b"avis", b"msf1", b"hevc", b"hevx"})
_IMAGE_BRANDS = frozenset({b"avif", b"mif1", b"heic", b"heix"})
# EXIF orientation by the rotation, in quarter turns counterclockwise, and by the flip after
# it: none, 0 (top and bottom change places) or 1 (left and right).
_ORIENTATIONS: Mapping[tuple[int, int | None], int] = {
    **{(0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6},
    **{(0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7},
    **{(0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5},
}
_Extent = tuple[int, int]
"""Start and end in the file."""
_Size = tuple[int, int]


class _Codec(NamedTuple):
    """The codec of coded images, by the type of their items.

    ``configuration``: type of the property for its decoder. ``frame_check`` takes that property and
    the size of an image, and returns a function that checks the data of one.
    """

    format: Literal["AVIF", "HEIC"]
    brand: bytes
    configuration: bytes
    frame_check: Callable[[bytes, _Size], FrameCheck]


_CODECS: Mapping[bytes, _Codec] = {
    b"av01": _Codec("AVIF", b"avif", b"av1C", av1_frame_check),
    b"hvc1": _Codec("HEIC", b"heic", b"hvcC", hevc_frame_check),
}
_GRID = b"grid"
_SIZE, _CROP, _COLOR, _ROTATION, _FLIP = b"ispe", b"clap", b"colr", b"irot", b"imir"
_READ_PROPERTIES = frozenset({_SIZE, _CROP, _COLOR, _ROTATION, _FLIP, b"av1C", b"hvcC"})
_MAX_PADDING_PX = 64
"""Encoders pad images at the right and bottom to whole coding blocks, and crop the padding."""
# Properties that do not change the pixels. Color profiles are not applied either, as by OpenCV.
_IGNORED_PROPERTIES = frozenset({b"pixi", b"pasp", b"clli", b"mdcv", b"cclv"})
_ENCODED_COLORS = b"nclx"


@dataclass
class _Item:
    """An item: its type, its data, its properties by type, and the items that it is made of."""

    type: bytes
    extents: list[_Extent] = field(default_factory=list)
    properties: dict[bytes, bytes] = field(default_factory=dict)
    parts: list[int] = field(default_factory=list)
    is_premultiplied: bool = False
    unknown_property: bytes | None = None
    """A property that must not be ignored."""


class _Box:
    """Reads a part of the file; all boxes of a file share the number of steps that are left."""

    def __init__(self, body: bytes, position: int, end: int, steps: list[int]) -> None:
        self._body, self.position, self.end, self._steps = body, position, end, steps

    def step(self) -> None:
        """Count an entry of a list."""
        self._steps[0] -= 1
        if self._steps[0] < 0:
            raise too_many_parts(2 * MAX_PARTS, "entries in the boxes of a HEIF file")

    def data(self, size: int) -> bytes:
        """Read bytes."""
        start, self.position = self.position, self.position + size
        if self.position > self.end:
            raise HeaderError("a box ends early")
        return self._body[start : self.position]

    def start_of_content(self) -> bytes:
        """Read up to the length that a property may have, and one byte more."""
        return self.data(min(self.end - self.position, MAX_PROPERTY_BYTES + 1))

    def uint(self, size: int) -> int:
        """Read a number of ``size`` bytes."""
        return int.from_bytes(self.data(size), "big")

    def boxes(self) -> Iterator[tuple[bytes, "_Box"]]:
        """Yield the types and contents of the boxes up to the end."""
        while self.position < self.end:
            self.step()
            start = self.position
            size, kind = self.uint(4), self.data(4)
            if size == 1:
                size = self.uint(8)
            end = self.end if size == 0 else start + size
            if not self.position <= end <= self.end:
                raise HeaderError("a box extends beyond its end")
            yield kind, _Box(self._body, self.position, end, self._steps)
            self.position = end


def is_heif(body: bytes) -> bool:
    """Return whether the file begins as an AVIF or a HEIC does."""
    return body[4:8] == b"ftyp" and body[8:12] in _IMAGE_BRANDS | _SEQUENCE_BRANDS


def read_heif_header(body: bytes) -> ImageHeader:
    """Read the size and the orientation of the primary image, and write a file of it alone.

    Raises :class:`HeaderError` and :class:`UnsupportedHeaderError`.
    """
    if body[8:12] in _SEQUENCE_BRANDS:
        raise UnsupportedHeaderError(
            "The file is an image sequence. Send each frame as an image of its own."
        )
    primary, items = _read_meta(body)
    images = [primary]
    if primary.type == _GRID:
        images = [_item(items, number) for number in primary.parts]
        _check_grid(body, primary, images)
    codec = _codec_of(images)
    for item in (primary, *images):
        _check_properties(item)
    extents = [extent for image in images for extent in image.extents]
    if sum(end - start for start, end in extents) > len(body):
        raise HeaderError("its images use the same data")
    data = [_data_of(body, image) for image in images]
    configuration = _property(images[0], codec.configuration)
    size, left = _size_of(images[0]), MAX_PARTS
    check_frame = codec.frame_check(configuration, size)
    for image, content in zip(images, data, strict=True):
        if _property(image, codec.configuration) != configuration or _size_of(image) != size:
            raise HeaderError("the images of its grid differ in size or configuration")
        left -= check_frame(content, left)
    width, height = _cropped_size(primary)
    start = _start_of_file(codec, primary, images, [len(content) for content in data])
    return ImageHeader(codec.format, width, height, _orientation(primary), (start, *data))


def _data_of(body: bytes, item: _Item) -> bytes | memoryview:
    """Return the data of an item, without a copy if they are in one piece."""
    if len(item.extents) == 1:
        start, end = item.extents[0]
        return memoryview(body)[start:end]
    return b"".join(body[start:end] for start, end in item.extents)


def _codec_of(images: Sequence[_Item]) -> _Codec:
    types = {image.type for image in images}
    codec = _CODECS.get(images[0].type)
    if codec is None or len(types) > 1:
        names = ", ".join(sorted(kind.decode("latin-1") for kind in types))
        raise UnsupportedHeaderError(
            f"The image is coded as {names!r:.40}; AV1 and HEVC, and grids of such images, are "
            "accepted. Save it as JPEG or PNG."
        )
    return codec


def _check_properties(item: _Item) -> None:
    if item.is_premultiplied:
        raise UnsupportedHeaderError(
            "The colors of the image are multiplied by its alpha. Save it without transparency."
        )
    if item.unknown_property is not None:
        raise UnsupportedHeaderError(
            f"The image has the property {item.unknown_property.decode('latin-1')!r}, which is not "
            "supported. Save it as JPEG or PNG."
        )


def _item(items: Mapping[int, _Item], number: int) -> _Item:
    if number not in items:
        raise HeaderError(f"it has no item {number}")
    return items[number]


def _property(item: _Item, kind: bytes) -> bytes:
    content = item.properties.get(kind, b"")
    if not 4 <= len(content) <= MAX_PROPERTY_BYTES:
        raise HeaderError(f"an image has no valid property {kind.decode()}")
    return content


def _size_of(item: _Item) -> _Size:
    """Return the width and height in an ``ispe`` property."""
    content = _property(item, _SIZE)
    if len(content) != 12:
        raise HeaderError("an image has no valid property ispe")
    width, height = struct.unpack_from(">II", content, 4)
    return width, height


def _cropped_size(item: _Item) -> _Size:
    """Return the width and height without padding, which is at the right and the bottom."""
    size = _size_of(item)
    if _CROP not in item.properties:
        return size
    if len(item.properties[_CROP]) != 32:
        raise HeaderError("an image has no valid property clap")
    values = struct.unpack(">IIIIiIiI", item.properties[_CROP])
    cropped = []
    for whole, (side, divisor, offset, offset_divisor) in zip(
        size, (values[:2] + values[4:6], values[2:4] + values[6:]), strict=True
    ):
        # The offset is that of the center of the part from the center of the image.
        is_at_start = (whole * divisor - side) * offset_divisor == -2 * offset * divisor
        if not divisor or side % divisor or not is_at_start:
            raise _clipped()
        cropped.append(side // divisor)
        if not 0 <= whole - cropped[-1] < _MAX_PADDING_PX:
            raise _clipped()
    return cropped[0], cropped[1]


def _clipped() -> UnsupportedHeaderError:
    return UnsupportedHeaderError(
        "The file shows a part of its image. Save that part as JPEG or PNG."
    )


def _orientation(item: _Item) -> int:
    rotation, flip = item.properties.get(_ROTATION), item.properties.get(_FLIP)
    if b"" in {rotation, flip}:
        raise HeaderError("its rotation or flip is empty")
    return _ORIENTATIONS[rotation[0] & 3 if rotation else 0, flip[0] & 1 if flip else None]


def _check_grid(body: bytes, grid: _Item, images: Sequence[_Item]) -> None:
    """Check the number and the sizes of the images of a grid."""
    content = b"".join(body[start : min(end, start + 12)] for start, end in grid.extents[:1])
    is_long = len(content) >= 12 and content[1] & 1
    if len(content) < 8 or content[0] or not images:
        raise HeaderError("its grid has no valid header")
    rows, columns = content[2] + 1, content[3] + 1
    output = struct.unpack_from(">II" if is_long else ">HH", content, 4)
    if rows * columns > MAX_TILES:
        raise UnsupportedHeaderError(
            f"The image is a grid of {rows * columns} images; at most {MAX_TILES} are accepted. "
            "Save it again with a standard encoder."
        )
    if len(images) != rows * columns or output != _size_of(grid):
        raise HeaderError("its grid differs from the images that it is made of")
    for tile, count, whole in zip(_size_of(images[0]), (columns, rows), output, strict=True):
        if not (count - 1) * tile < whole <= count * tile:
            raise HeaderError("the images of its grid do not have the size of the grid")


def _read_meta(body: bytes) -> tuple[_Item, dict[int, _Item]]:
    """Return the primary item, and all items by their numbers."""
    steps = [2 * MAX_PARTS]
    top = _Box(body, 0, len(body), steps)
    meta = next((box for kind, box in top.boxes() if kind == b"meta"), None)
    if meta is None:
        raise HeaderError("it has no meta box")
    meta.uint(4)
    boxes = dict(meta.boxes())
    missing = {b"pitm", b"iinf", b"iloc", b"iprp"} - boxes.keys()
    if missing:
        raise HeaderError(f"it has no box {min(missing).decode()}")
    items = dict(_read_items(boxes[b"iinf"]))
    idat = boxes.get(b"idat")
    _read_locations(boxes[b"iloc"], items, len(body), idat)
    _read_properties(boxes[b"iprp"], items)
    if b"iref" in boxes:
        _read_references(boxes[b"iref"], items)
    version = boxes[b"pitm"].uint(4) >> 24
    return _item(items, boxes[b"pitm"].uint(4 if version else 2)), items


def _read_items(box: _Box) -> Iterator[tuple[int, _Item]]:
    version = box.uint(4) >> 24
    box.uint(4 if version else 2)
    for kind, entry in box.boxes():
        version = entry.uint(4) >> 24 if kind == b"infe" else 0
        if version in {2, 3}:  # 0 and 1 have no item types, which images need
            number, is_protected = entry.uint(2 if version == 2 else 4), entry.uint(2)
            if not is_protected:
                yield number, _Item(entry.data(4))


def _read_locations(
    box: _Box, items: Mapping[int, _Item], file_bytes: int, idat: _Box | None
) -> None:
    """Add the extents of the items: parts of the file, or of the ``idat`` box."""
    version = box.uint(4) >> 24
    sizes = box.uint(2)
    offset_size, length_size, base_size, index_size = (
        sizes >> shift & 15 for shift in (12, 8, 4, 0)
    )
    if version not in {0, 1, 2}:
        raise HeaderError(f"its iloc box has the version {version}")
    for _ in range(box.uint(4 if version == 2 else 2)):
        box.step()
        number = box.uint(4 if version == 2 else 2)
        method = box.uint(2) & 15 if version else 0
        is_elsewhere = box.uint(2) != 0
        base = box.uint(base_size)
        extents: list[_Extent] = []
        for _ in range(box.uint(2)):
            box.step()
            box.uint(index_size if version else 0)
            start = base + box.uint(offset_size)
            length = box.uint(length_size)
            extents.append((start, start + length))
        if is_elsewhere or method > 1 or (method == 1 and idat is None):
            continue
        if method == 1 and idat is not None:
            shift = idat.position
            extents = [(start + shift, end + shift) for start, end in extents]
        limit = idat.end if method == 1 and idat is not None else file_bytes
        # A length of zero means the rest of the file, which no image needs.
        if number in items and all(start < end <= limit for start, end in extents):
            items[number].extents = extents


def _read_properties(box: _Box, items: Mapping[int, _Item]) -> None:
    """Add the properties of the items."""
    properties: list[tuple[bytes, bytes]] = []
    for kind, content in box.boxes():
        if kind == b"ipco":
            properties += ((name, one.start_of_content()) for name, one in content.boxes())
        elif kind == b"ipma":
            _read_associations(content, properties, items)


def _read_associations(
    box: _Box, properties: Sequence[tuple[bytes, bytes]], items: Mapping[int, _Item]
) -> None:
    head = box.uint(4)
    index_bytes = 2 if head & 1 else 1
    essential = 1 << 8 * index_bytes - 1
    for _ in range(box.uint(4)):
        box.step()
        number = box.uint(4 if head >> 24 else 2)
        for _ in range(box.uint(1)):
            box.step()
            value = box.uint(index_bytes)
            index = value & essential - 1
            if 0 < index <= len(properties) and number in items:
                _add_property(items[number], *properties[index - 1], bool(value & essential))


def _add_property(item: _Item, kind: bytes, content: bytes, is_essential: bool) -> None:
    if kind in _READ_PROPERTIES:
        if kind != _COLOR or content.startswith(_ENCODED_COLORS):
            item.properties.setdefault(kind, content)
    elif is_essential and kind not in _IGNORED_PROPERTIES:
        item.unknown_property = kind


def _read_references(box: _Box, items: Mapping[int, _Item]) -> None:
    """Add the items that each item is made of."""
    id_bytes = 4 if box.uint(4) >> 24 else 2
    for kind, reference in box.boxes():
        number = reference.uint(id_bytes)
        targets = []
        for _ in range(reference.uint(2)):
            reference.step()
            targets.append(reference.uint(id_bytes))
        if number not in items:
            continue
        if kind == b"dimg":
            items[number].parts = targets
        elif kind == b"prem":
            items[number].is_premultiplied = True


def _start_of_file(
    codec: _Codec, primary: _Item, images: Sequence[_Item], data_bytes: Sequence[int]
) -> bytes:
    """Return a file up to the data of the coded images, which follow it.

    The items are the coded image, with the number 1, or the grid, and then its images.
    """
    grid = b""
    if primary.type == _GRID:
        sides, tile_sides = _size_of(primary), _size_of(images[0])
        columns, rows = (-(-side // tile) for side, tile in zip(sides, tile_sides, strict=True))
        grid = bytes((0, 1, rows - 1, columns - 1)) + struct.pack(">II", *sides)
    size, configuration = images[0].properties[_SIZE], images[0].properties[codec.configuration]
    colors = primary.properties.get(_COLOR) or images[0].properties.get(_COLOR)
    # Properties 1 to 4; every item has the color property.
    properties = [
        _box(_SIZE, size),
        _box(codec.configuration, configuration),
        _box(_SIZE, primary.properties[_SIZE]),
        *([_box(_COLOR, colors)] if colors else []),
    ]
    of_image = bytes((1, 0x82, *([4] if colors else [])))
    of_grid = bytes((3, *([4] if colors else [])))
    types = [*([_GRID] if grid else []), *(image.type for image in images)]
    lengths = [*([len(grid)] if grid else []), *data_bytes]
    associations = b"".join(
        struct.pack(">HB", number, len(listed)) + listed
        for number, listed in enumerate(
            [*([of_grid] if grid else []), *([of_image] * len(images))], 1
        )
    )
    entries = b"".join(
        _box(b"infe", struct.pack(">IHH", 2 << 24, number, 0) + kind + b"\0")
        for number, kind in enumerate(types, 1)
    )
    references = b""
    if grid:
        numbers = range(2, len(types) + 1)
        dimg = struct.pack(f">HH{len(numbers)}H", 1, len(numbers), *numbers)
        references = _box(b"iref", bytes(4) + _box(b"dimg", dimg))
    type_box = _box(b"ftyp", codec.brand + bytes(4) + b"mif1miaf" + codec.brand)

    def before_data(data_start: int) -> bytes:
        locations = struct.pack(">IBBH", 0, 0x44, 0, len(types))
        position = data_start
        for number, length in enumerate(lengths, 1):
            locations += struct.pack(">HHHII", number, 0, 1, position, length)
            position += length
        meta = (
            bytes(4)
            + _box(b"hdlr", bytes(8) + b"pict" + bytes(13))
            + _box(b"pitm", struct.pack(">IH", 0, 1))
            + _box(b"iloc", locations)
            + _box(b"iinf", struct.pack(">IH", 0, len(types)) + entries)
            + references
            + _box(
                b"iprp",
                _box(b"ipco", b"".join(properties))
                + _box(b"ipma", struct.pack(">II", 0, len(types)) + associations),
            )
        )
        data_box = struct.pack(">I", 8 + sum(lengths)) + b"mdat"
        return type_box + _box(b"meta", meta) + data_box

    return before_data(len(before_data(0))) + grid


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content
