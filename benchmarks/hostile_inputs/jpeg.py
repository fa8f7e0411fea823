"""JPEG files, segment by segment (ITU-T T.81, annex B)."""

import io
import struct
from dataclasses import dataclass
from random import Random

from benchmarks.hostile_inputs.exif import exif_block
from benchmarks.hostile_inputs.mutations import mutate_some
from benchmarks.hostile_inputs.sides import LARGE_SHARE, image, stated_sides

_SOF, _DHT, _SOI, _EOI, _SOS, _DQT, _DRI = 0xC0, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


@dataclass(frozen=True)
class _Segment:
    """Marker segment; ``data``: entropy-coded bytes after a start of scan."""

    marker: int
    payload: bytes
    data: bytes = b""

    def encode(self) -> bytes:
        length = struct.pack(">H", min(len(self.payload) + 2, 0xFFFF))
        return bytes((0xFF, self.marker)) + length + self.payload + self.data


def jpeg_file(rng: Random) -> bytes:
    """Return a JPEG made of an encoder's segments or of generated ones, changed in some places."""
    segments = _from_encoder(rng) if rng.random() < 0.7 else _generated(rng)
    for change in rng.choices(_CHANGES, k=rng.choice((0, 1, 1, 2, 3))):
        segments = change(rng, segments)
    body = b"".join(part for segment in segments for part in (_filler(rng), segment.encode()))
    end = rng.choice((b"\xff\xd9",) * 6 + (b"", b"\xff\xd9" + body[:2000], bytes(8) + b"\xff\xd9"))
    return mutate_some(rng, b"\xff\xd8" + body + end)


def _filler(rng: Random) -> bytes:
    """Return bytes that may be between segments."""
    if rng.random() < 0.97:
        return b""
    kind = rng.choice((b"\xff", b"\x00", b"\xff\x01", b"\xff\xd0", b"\xff\x00", b"a"))
    return kind * rng.choice((1, 2, 100, 5000, 100_000))


def _from_encoder(rng: Random) -> list[_Segment]:
    buffer = io.BytesIO()
    source = image(rng).convert(rng.choice(("RGB", "RGB", "RGB", "L", "CMYK")))
    options = {
        "quality": rng.choice((1, 30, 75, 100)),
        "progressive": rng.random() < 0.5,
        "subsampling": rng.choice((0, 1, 2)),
        "restart_marker_blocks": rng.choice((0, 0, 1, 3)),
    }
    if rng.random() < 0.3:
        options["exif"] = b"Exif\0\0" + exif_block(rng)[:60_000]
    source.save(buffer, "JPEG", **options)
    return _split(buffer.getvalue())


def _split(body: bytes) -> list[_Segment]:
    """Split a well-formed JPEG into segments, without the start and the end of the image."""
    segments, position = [], 2
    while body[position + 1] != _EOI:
        marker = body[position + 1]
        (length,) = struct.unpack_from(">H", body, position + 2)
        payload = body[position + 4 : position + 2 + length]
        position += 2 + length
        start = position
        if marker == _SOS:
            while body[position] != 0xFF or body[position + 1] in (0, *range(0xD0, 0xD8)):
                position += 1
        segments.append(_Segment(marker, payload, body[start:position]))
    return segments


def _generated(rng: Random) -> list[_Segment]:
    marker = rng.choice((0xC0, 0xC1, 0xC2, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA))
    components = rng.choice((1, 3, 3, 4, 0, 2, 5, 255))
    width, height = stated_sides(rng)
    factors = (0x11, 0x22, 0x21, 0x12, 0x44, 0x41, 0x00, 0xFF, 0x33)
    frame = struct.pack(">BHHB", rng.choice((8, 8, 8, 12, 0)), height, width, components)
    frame += b"".join(
        bytes((index, rng.choice(factors[: rng.choice((1, 3, 9))]), rng.randrange(2)))
        for index in range(components)
    )
    tables = [_quantization(rng) for _ in range(rng.choice((1, 2, 2, 5)))]
    tables += [_huffman(rng) for _ in range(rng.choice((2, 4, 4, 9)))]
    if rng.random() < 0.2:
        tables.append(_Segment(_DRI, struct.pack(">H", rng.choice((0, 1, 8, 0xFFFF)))))
    rng.shuffle(tables)
    scans = [_scan(rng, components) for _ in range(rng.choice((1, 1, 2, 10, 99, 101)))]
    return [*tables, _Segment(marker, frame), *scans]


def _quantization(rng: Random) -> _Segment:
    is_16_bit = rng.random() < 0.1
    table = bytes((is_16_bit << 4 | rng.choice((0, 1, 1, 3, 15)),))
    values = rng.choice((bytes([1]) * 64, bytes(64), bytes([255]) * 64, rng.randbytes(64)))
    return _Segment(_DQT, table + values * (2 if is_16_bit else 1) * rng.choice((1, 1, 4)))


def _huffman(rng: Random) -> _Segment:
    """Return a table with one symbol per code length or with random, often invalid, counts."""
    identifier = bytes((rng.choice((0x00, 0x01, 0x10, 0x11, 0x0F, 0xF0)),))
    if rng.random() < 0.7:
        counts = bytes([1] * rng.randint(1, 15)).ljust(16, b"\0")
    else:
        counts = rng.choice((bytes([255] * 16), bytes(16), rng.randbytes(16)))
    symbols = bytes(
        rng.choice((0x00, 0xE0, 0xF0, 0x01, rng.randrange(256))) for _ in range(sum(counts))
    )
    return _Segment(_DHT, identifier + counts + symbols)


def _scan(rng: Random, components: int) -> _Segment:
    count = rng.choice((1, 1, components % 5, 3, 4, 0))
    selectors = b"".join(
        bytes((index % 4, rng.choice((0x00, 0x11, 0xFF)))) for index in range(count)
    )
    spectral = rng.choice(
        (b"\x00\x3f\x00", b"\x00\x00\x01", b"\x01\x3f\x21", b"\x01\x05\x02", b"\x3f\x01\xff")
    )
    return _Segment(_SOS, bytes((count,)) + selectors + spectral, _entropy_data(rng))


def _entropy_data(rng: Random) -> bytes:
    size = rng.choice((0, 1, 20, 300, 300, 3000))
    data = rng.choice((rng.randbytes(size), bytes(size), b"\x55" * size, b"\xfe" * size))
    return data.replace(b"\xff", b"\xff\x00")


def _repeat_scans(rng: Random, segments: list[_Segment]) -> list[_Segment]:
    """Repeat a scan, openly or behind markers that have no length."""
    scans = [segment for segment in segments if segment.marker == _SOS]
    if not scans:
        return segments
    scan = rng.choice(scans)
    hidden = rng.choice((b"", b"\xff\x01", b"\xff\xff\xff", b"\xff\xd3"))
    data = scan.data[: rng.choice((3, 100, 1 << 20))] + hidden
    copies = rng.choice((2, 9, 80, 100, 101, 2000))
    return [*segments, *[_Segment(_SOS, scan.payload, data)] * copies]


def _insert_metadata(rng: Random, segments: list[_Segment]) -> list[_Segment]:
    marker = rng.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF, 0xFE, 0xCC, 0xDC, 0xF0, 0x02))
    payload = rng.choice(
        (
            b"",
            b"Exif\0\0" + exif_block(rng)[:60_000],
            b"ICC_PROFILE\0" + bytes((rng.randrange(256), rng.randrange(256))) + bytes(1000),
            b"Adobe" + rng.randbytes(7),
            b"MPF\0" + rng.randbytes(60),
            rng.randbytes(rng.choice((1, 100, 60_000))),
        )
    )
    copies = rng.choice((1, 1, 2, 400, 511, 513, 20_000))
    if len(payload) * copies > 4_000_000:
        copies = 60
    return [*[_Segment(marker, payload)] * copies, *segments]


def _change_frame(rng: Random, segments: list[_Segment]) -> list[_Segment]:
    """State another size, sampling or type than the scans have."""

    def changed(segment: _Segment) -> _Segment:
        if segment.marker not in _FRAMES:
            return segment
        width, height = stated_sides(rng)
        if rng.random() < 50 * LARGE_SHARE:
            width, height = rng.choice(((8192, 6100), (4096, 4096)))
        payload = segment.payload[:1] + struct.pack(">HH", height, width) + segment.payload[5:]
        marker = rng.choice((segment.marker,) * 4 + (0xC0, 0xC2, 0xC1, 0xC9))
        return _Segment(marker, payload)

    return [changed(segment) for segment in segments]


def _reorder(rng: Random, segments: list[_Segment]) -> list[_Segment]:
    return rng.sample(segments, len(segments))


def _drop(rng: Random, segments: list[_Segment]) -> list[_Segment]:
    dropped = rng.randrange(len(segments)) if segments else 0
    return segments[:dropped] + segments[dropped + 1 :]


def _replace_table(rng: Random, segments: list[_Segment]) -> list[_Segment]:
    replaced = {_DHT: _huffman, _DQT: _quantization}
    return [
        replaced[segment.marker](rng)
        if segment.marker in replaced and rng.random() < 0.4
        else segment
        for segment in segments
    ]


def _replace_data(rng: Random, segments: list[_Segment]) -> list[_Segment]:
    return [
        _Segment(segment.marker, segment.payload, _entropy_data(rng))
        if segment.marker == _SOS and rng.random() < 0.5
        else segment
        for segment in segments
    ]


_CHANGES = (
    *(_repeat_scans, _insert_metadata, _change_frame, _change_frame),
    *(_reorder, _drop, _replace_table, _replace_data),
)
