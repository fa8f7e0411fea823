"""GIF, TIFF, AVIF and HEIC: pixels as Pillow's, and files that are refused from their headers."""

import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from support.heif import box, content_of, encode_avif, encode_heic, heif_file
from support.images import encode, quadrants

from service.errors import BadImageError, ImageSizeError, ServiceError, UnsupportedImageError
from service.imaging import image_decoding
from service.imaging.heic import IS_HEIC_SUPPORTED
from service.imaging.image_decoding import OpenedImage, open_image
from service.imaging.image_header import MAX_PARTS

LIMIT = 50_000_000
needs_heic = pytest.mark.skipif(
    not IS_HEIC_SUPPORTED, reason="pi-heif is not installed: install the extra 'heic'"
)


def opened(body: bytes) -> OpenedImage:
    return open_image(body, LIMIT)


def pixels_of(body: bytes) -> NDArray[np.uint8]:
    return opened(body).decode().pixels


def photo(width: int = 317, height: int = 201) -> Image.Image:
    """Return a smooth image of many colours."""
    small = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(cv2.resize(small, (width, height)))


def by_pillow(body: bytes) -> NDArray[np.uint8]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB"))


GIF = encode(photo(64, 48).convert("P"), "GIF")
GIF_PALETTE_END = 13 + (3 << (GIF[10] & 7) + 1)


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1"])
@pytest.mark.parametrize("interlace", [0, 1])
def test_gif_pixels_are_pillows(mode: str, interlace: int) -> None:
    body = encode(photo().convert(mode), "GIF", interlace=interlace)
    assert np.array_equal(pixels_of(body), by_pillow(body))


def test_of_an_animated_gif_the_first_frame_is_decoded() -> None:
    frames = [photo(), Image.fromarray(quadrants(317, 201))]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "disposal": 2}
    body = encode(frames[0], "GIF", comment=b"x" * 5000, **options)
    assert np.array_equal(pixels_of(body), by_pillow(encode(frames[0], "GIF")))
    assert b"xxxx" not in opened(body)._header.data


def test_a_gif_frame_may_be_smaller_or_larger_than_the_canvas() -> None:
    body = bytearray(GIF)
    for width, height in ((100, 80), (20, 20)):
        struct.pack_into("<HH", body, 6, width, height)
        changed = bytes(body)
        assert np.array_equal(pixels_of(changed), by_pillow(changed))


def test_the_size_of_a_gif_is_that_of_its_frame_if_larger() -> None:
    body = bytearray(GIF)
    frame = body.index(b"\x2c", GIF_PALETTE_END)
    struct.pack_into("<HH", body, frame + 5, 20_000, 20_000)
    with pytest.raises(ImageSizeError, match="20000 x 20000"):
        opened(bytes(body))


@pytest.mark.parametrize(
    "extension",
    [
        b"\x21\xfe" + b"\1x" * MAX_PARTS,
        b"\x21\xfe\0" * (MAX_PARTS + 1),
        # Neither the extensions nor the blocks of one of them are many.
        (b"\x21\xfe" + b"\1x" * 99 + b"\0") * 50,
    ],
)
def test_blocks_of_a_gif_are_bounded(extension: bytes) -> None:
    with pytest.raises(UnsupportedImageError, match="more than the 4096"):
        opened(GIF[:GIF_PALETTE_END] + extension + b"\0" + GIF[GIF_PALETTE_END:])


DEEP = Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 256 + 77)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_pixels_are_pillows(mode: str, compression: str) -> None:
    body = encode(photo().convert(mode), "TIFF", compression=compression)
    assert np.array_equal(pixels_of(body), by_pillow(body))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_16_bit_tiffs_keep_their_high_byte(compression: str) -> None:
    expected = np.asarray(DEEP) >> 8
    decoded = pixels_of(encode(DEEP, "TIFF", compression=compression))
    assert np.array_equal(decoded, np.repeat(expected[..., None], 3, axis=2))


def tiff(
    fields: dict[int, tuple[int, ...]], data: bytes, order: str = "<", offsets_tag: int = 273
) -> bytes:
    """Return a TIFF of one directory after the data; offsets are relative to the data."""
    entries, values = b"", b""
    values_start = 8 + len(data) + 2 + 12 * len(fields) + 4
    for tag, numbers in sorted(fields.items()):
        shift = 8 if tag == offsets_tag else 0
        packed = struct.pack(f"{order}{len(numbers)}I", *(number + shift for number in numbers))
        entries += struct.pack(order + "HHI", tag, 4, len(numbers))
        if len(packed) > 4:
            entries += struct.pack(order + "I", values_start + len(values))
            values += packed
        else:
            entries += packed
    start = struct.pack(order + "I", 8 + len(data))
    directory = struct.pack(order + "H", len(fields)) + entries + bytes(4)
    return (b"II*\0" if order == "<" else b"MM\0*") + start + data + directory + values


RGB_FIELDS = {256: (64,), 257: (48,), 258: (8, 8, 8), 259: (1,), 262: (2,), 277: (3,)}
RGB_DATA = np.asarray(photo(64, 48)).tobytes()
STRIP = {278: (48,), 273: (0,), 279: (len(RGB_DATA),)}


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_of_both_byte_orders_in_strips_and_tiles(order: str) -> None:
    expected = np.asarray(photo(64, 48))
    assert np.array_equal(pixels_of(tiff(RGB_FIELDS | STRIP, RGB_DATA, order)), expected)
    rows = {278: (10,), 273: tuple(range(0, 9216, 1920)), 279: (1920,) * 4 + (1536,)}
    assert np.array_equal(pixels_of(tiff(RGB_FIELDS | rows, RGB_DATA, order)), expected)
    padded = np.zeros((64, 64, 3), np.uint8)
    padded[:48] = expected
    tiles = b"".join(padded[y : y + 32, x : x + 32].tobytes() for y in (0, 32) for x in (0, 32))
    fields = {322: (32,), 323: (32,), 324: tuple(range(0, 12288, 3072)), 325: (3072,) * 4}
    body = tiff(RGB_FIELDS | fields, tiles, order, 324)
    assert np.array_equal(pixels_of(body), expected)
    assert np.array_equal(by_pillow(body), expected)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({322: (65520,), 323: (65520,), 324: (0,), 325: (9216,)}, "tiles of 65520 x 65520"),
        ({322: (40,), 323: (48,), 324: (0,), 325: (9216,)}, "multiples of 16"),
        ({278: (1,), 273: (0,) * 48, 279: (9000,) * 48}, "overlap"),
        ({278: (48,), 273: (0,), 279: (10_000_000,)}, "extends beyond its end"),
        ({278: (1,), 273: (0,), 279: (192,)}, "1 offsets and 1 sizes of 48"),
        ({**STRIP, 259: (7,)}, "compressed with method 7"),
        ({**STRIP, 258: (32, 32, 32)}, "samples of 32, 32, 32 bits"),
        ({**STRIP, 284: (2,)}, "or an unusual order"),
        ({**STRIP, 339: (3,)}, "or an unusual order"),
        ({**STRIP, 258: (8,) * 9}, "tag 258 has 9 values"),
        ({**STRIP, 262: (3,), 258: (8,), 277: (1,), 320: (1,) * 12}, "its palette has 12 values"),
        ({**STRIP, **dict.fromkeys(range(1000, 1600), (1,))}, "at most 512"),
    ],
)
def test_tiffs_whose_tags_do_not_agree_are_refused(
    fields: dict[int, tuple[int, ...]], reason: str
) -> None:
    offsets_tag = 324 if 324 in fields else 273
    with pytest.raises(ServiceError, match=reason):
        opened(tiff(RGB_FIELDS | fields, RGB_DATA, offsets_tag=offsets_tag))


def test_only_the_first_image_of_a_tiff_and_no_metadata_reach_the_decoder() -> None:
    pages = [photo(64, 48), Image.fromarray(quadrants(64, 48))]
    body = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:], description="x" * 999)
    assert np.array_equal(pixels_of(body), np.asarray(pages[0]))
    read_by_decoder = Image.open(io.BytesIO(opened(body)._header.data))
    assert read_by_decoder.n_frames == 1
    assert 270 not in read_by_decoder.tag_v2


@pytest.mark.parametrize("subsampling", ["4:0:0", "4:2:0", "4:4:4"])
def test_avif_pixels_are_pillows(subsampling: str) -> None:
    body = encode_avif(photo(), subsampling=subsampling)
    assert np.array_equal(pixels_of(body), by_pillow(body))


def test_the_alpha_of_an_avif_is_dropped_and_not_decoded() -> None:
    image = photo().convert("RGBA")
    image.putalpha(photo().convert("L"))
    body = encode_avif(image)
    assert np.array_equal(pixels_of(body), by_pillow(body))
    assert len(opened(body)._header.data) < len(body) - len(content_of(body, b"mdat")) // 10


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["TIFF", "AVIF"])
def test_orientations_are_pillows(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = encode(photo(), image_format, exif=exif)
    image = opened(body)
    assert image._header.orientation == orientation
    assert np.array_equal(image.decode().pixels, by_pillow(body))


@needs_heic
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("size", [(316, 200), (317, 201)])
def test_heic_pixels_are_libheifs(mode: str, size: tuple[int, int]) -> None:
    import pillow_heif

    body = encode_heic(photo(*size).convert(mode))
    expected = np.asarray(pillow_heif.open_heif(body).to_pillow().convert("RGB"))
    assert expected.shape[1::-1] == size
    assert np.array_equal(pixels_of(body), expected)


@needs_heic
def test_the_rotation_of_a_heic_is_applied() -> None:
    import pillow_heif

    single = encode_heic(photo(128, 64))
    for rotation in range(4):
        body = heif_file([single], properties=[(b"irot", bytes([rotation]))])
        expected = np.asarray(pillow_heif.open_heif(body).to_pillow())
        assert np.array_equal(pixels_of(body), expected)
        assert np.array_equal(expected, np.rot90(pixels_of(single), rotation))
        for axis in (0, 1):
            both = [(b"irot", bytes([rotation])), (b"imir", bytes([axis]))]
            body = heif_file([single], properties=both)
            assert np.array_equal(
                pixels_of(body), np.asarray(pillow_heif.open_heif(body).to_pillow())
            )


def tiles_of(encoder: Any) -> list[bytes]:
    whole = np.asarray(photo(384, 256))
    return [
        encoder(Image.fromarray(whole[y : y + 128, x : x + 128]))
        for y in (0, 128)
        for x in (0, 128, 256)
    ]


def test_a_grid_of_an_avif_is_decoded() -> None:
    body = heif_file(tiles_of(encode_avif), (2, 3), (380, 250))
    assert np.array_equal(pixels_of(body), by_pillow(body))
    assert np.abs(pixels_of(body).astype(int) - np.asarray(photo(384, 256))[:250, :380]).mean() < 9


@needs_heic
def test_a_grid_of_a_heic_is_decoded() -> None:
    import pillow_heif

    body = heif_file(tiles_of(encode_heic), (2, 3), (380, 250))
    assert np.array_equal(pixels_of(body), np.asarray(pillow_heif.open_heif(body).to_pillow()))
    assert np.abs(pixels_of(body).astype(int) - np.asarray(photo(384, 256))[:250, :380]).mean() < 9


TILE = encode_avif(photo(128, 128))
DATA = content_of(TILE, b"mdat")


def with_data(body: bytes, data: bytes) -> bytes:
    return body[: body.index(b"mdat") - 4] + box(b"mdat", data)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (heif_file([with_data(TILE, DATA + DATA[2:])]), "two sequence headers"),
        (heif_file([with_data(TILE, DATA + DATA[DATA.index(b"\x32") :])]), "have 2 frames"),
        (heif_file([with_data(TILE, DATA[:2])]), "have 0 frames"),
        (heif_file([with_data(TILE, DATA[:-9])]), "end early"),
        (heif_file([with_data(TILE, b"\x7a\0" * MAX_PARTS)]), "more than the 4096 units"),
        (heif_file([TILE], size=(64, 64)), "128 x 128 pixels, and the file states 64 x 64"),
        (heif_file([TILE] * 2, (1, 2), (64, 64)), "do not have the size of the grid"),
        (heif_file([TILE] * 2, (1, 3), (384, 128)), "differs from the images"),
        (heif_file([TILE] * 2, (17, 17), (2176, 2176)), "a grid of 289 images"),
        (
            heif_file([TILE] * 4, (2, 2), (256, 256), extents=[(0, 4 * len(DATA))] * 4),
            "use the same data",
        ),
        (heif_file([TILE], properties=[(b"a1op", b"\1")]), "property 'a1op'"),
        (heif_file([TILE], properties=[(b"clap", bytes(32))]), "shows a part"),
        (heif_file([TILE], extents=[(0, 1 << 30)]), "0 frames"),
        (TILE.replace(b"pitm", b"free"), "no box pitm"),
        (TILE[:100], "ends early|beyond its end|no meta"),
        (TILE.replace(b"av01", b"jpeg"), "coded as"),
        (TILE.replace(b"ftypavif", b"ftypavis"), "an image sequence"),
    ],
)
def test_avifs_that_are_not_one_frame_of_the_stated_size_are_refused(
    body: bytes, reason: str
) -> None:
    with pytest.raises((BadImageError, UnsupportedImageError), match=reason):
        opened(body)


@needs_heic
def test_a_heic_whose_codec_states_another_size_is_refused() -> None:
    body = heif_file([encode_heic(photo(128, 128))], size=(64, 64))
    with pytest.raises(BadImageError, match="128 x 128 of 128 x 128 pixels"):
        opened(body)


@needs_heic
def test_a_heic_with_two_frames_is_refused() -> None:
    single = encode_heic(photo(128, 128))
    data = content_of(single, b"mdat")
    with pytest.raises(BadImageError, match="several frames"):
        opened(heif_file([with_data(single, data + data)]))


def test_entries_of_boxes_are_bounded() -> None:
    with pytest.raises(UnsupportedImageError, match="more than the 8192 entries"):
        opened(TILE[:32] + box(b"free", b"") * 10_000 + TILE[32:])


def test_a_heic_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body = TILE.replace(b"av01", b"hvc1")

    def read(_: bytes) -> Any:
        return image_decoding.ImageHeader("HEIC", 128, 128, 1, (b"",))

    monkeypatch.setattr("service.imaging.image_decoding.read_heif_header", read)
    monkeypatch.setattr("service.imaging.heic.IS_HEIC_SUPPORTED", False)
    with pytest.raises(UnsupportedImageError, match="extra 'heic'"):
        opened(body)


@pytest.mark.parametrize("image_format", ["GIF", "TIFF", "AVIF"])
def test_truncated_files_are_rejected(image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    body = encode(noise, image_format)
    with pytest.raises((BadImageError, UnsupportedImageError)):
        pixels_of(body[: len(body) // 2])


def test_damaged_files_write_at_most_a_line_to_the_log(project: Path) -> None:
    """libtiff writes its errors to stderr, and stops at the first one."""
    program = """
import sys
from service.errors import ServiceError
from service.imaging.image_decoding import open_image
body = sys.stdin.buffer.read()
for position in range(200, len(body), 37):
    changed = body[:position] + b"\\xff\\x00\\xff" + body[position + 3:]
    try:
        open_image(changed, 50_000_000).decode()
    except ServiceError:
        print("damaged")
"""
    for image_format, options in (
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("GIF", {}),
        ("AVIF", {}),
    ):
        body = encode(photo(64, 48), image_format, **options)
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, input=body, capture_output=True, cwd=project, check=True)
        assert done.stdout
        assert done.stderr.count(b"\n") <= done.stdout.count(b"\n") * (image_format == "TIFF")
