"""TorchScript archives: modules in pickles that are deep, shared, cyclic, or of many classes."""

import io
import struct
import zipfile
from random import Random

_HUGE = (1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1)
_CLASSES = (b"__torch__\nM", b"__torch__.m\nM", b"__torch__.torch.classes.quantized\nPacked")


def torchscript_archive(rng: Random, opcodes: bytes) -> bytes:
    """Return an archive; ``opcodes`` may stand where a module has an attribute."""
    data = _module(rng, 0, opcodes)
    if rng.random() < 0.1:
        data = rng.choice((_doubled(rng), _nested(rng), _many_classes(rng)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(3):
            content = bytes(16 if rng.random() < 0.95 else rng.choice((0, 15, 4000)))
            archive.writestr(zipfile.ZipInfo(f"archive/data/{index}"), content)
        for name, content in {
            "data.pkl": b"\x80\x02" + data + b".",
            "version": b"3\n" if rng.random() < 0.95 else rng.choice((b"99\n", b"x")),
            "constants.pkl": rng.choice((b"\x80\x02).", b"", opcodes)),
        }.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
        folder = "code" if rng.random() < 0.8 else rng.choice(("data", "extra", "code/../data"))
        code = bytes(rng.choice((0, 1000, 5_000_000)))
        member = zipfile.ZipInfo(f"archive/{folder}/__torch__.py")
        archive.writestr(member, code, zipfile.ZIP_DEFLATED)
        if rng.random() < 0.1:
            archive.writestr(zipfile.ZipInfo("archive/constants/0"), bytes(16))
    return buffer.getvalue()


def _text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def _object(rng: Random) -> bytes:
    return b"c" + (_CLASSES[0] if rng.random() < 0.95 else rng.choice(_CLASSES)) + b"\n)\x81"


def _module(rng: Random, depth: int, opcodes: bytes) -> bytes:
    """Return a module with attributes: tensors, modules, itself, plain values, any opcodes."""
    attributes = []
    for index in range(rng.choice((0, 1, 2, 3))):
        choice = rng.random()
        if choice < 0.5:
            value = _tensor(rng)
        elif choice < 0.85 and depth < 6:
            value = _module(rng, depth + 1, opcodes)
        else:
            value = rng.choice((b"N", b"N", b"]", b"\x88", b"h\x01", opcodes))
        name = b"%d" % index if rng.random() < 0.97 else b"w" * rng.choice((600, 100_000))
        attributes.append(_text(name) + value)
    return _object(rng) + b"q\x01}(" + b"".join(attributes) + b"ub"


def _tensor(rng: Random) -> bytes:
    count = 4 if rng.random() < 0.97 else rng.choice((0, 5, *_HUGE))
    number = b"\x8a\x09" + count.to_bytes(9, "little")
    stride = b"K\x01" if rng.random() < 0.9 else b"K\x00"
    storage = b"(" + _text(b"storage") + b"ctorch\nFloatStorage\n" + _text(b"%d" % rng.randrange(3))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + _text(rng.choice((b"cpu", b"cuda:0")))
        + (number if rng.random() < 0.9 else b"K\x04")
        + b"tQK\x00("
        + number
        + b"t("
        + stride
        + b"t\x89ccollections\nOrderedDict\n)RtR"
    )


def _doubled(rng: Random) -> bytes:
    """Return modules that contain the same module twice, again and again."""
    part = _object(rng) + b"}(" + _text(b"a") + b"h\x01" + _text(b"b") + b"h\x01" + b"ubq\x01"
    return (
        _object(rng) + b"}" + _text(b"w") + _tensor(rng) + b"sbq\x01" + part * rng.choice((3, 60))
    )


def _nested(rng: Random) -> bytes:
    """Return modules in modules, deeper than the recursion limit of Python."""
    levels = rng.choice((50, 20_000))
    return (_object(rng) + b"}" + _text(b"a")) * levels + _tensor(rng) + b"sb" * levels


def _many_classes(rng: Random) -> bytes:
    count = rng.choice((10, 20_000))
    parts = [_text(b"%d" % index) + b"c__torch__.m%d\nM\n)\x81" % index for index in range(count)]
    return _object(rng) + b"}(" + b"".join(parts) + b"ub"
