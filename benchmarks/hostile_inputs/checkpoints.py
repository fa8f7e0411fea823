"""Checkpoints: files of ``torch.save``, ``torch.jit.save`` and safetensors, well-formed or not."""

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from benchmarks.hostile_inputs.mutations import mutate_some
from benchmarks.hostile_inputs.torchscript import torchscript_archive

_LAYERS = ("conv1.weight", "bn1.running_mean", "hm.2.weight", "hm.0.bias", "wh.2.bias", "fc.weight")
_MAX_PICKLE_BYTES = 4_000_000
_HUGE = (1 << 31, 1 << 40, (1 << 63) - 1)
_GLOBALS = (
    *(b"torch._utils\n_rebuild_tensor_v2", b"torch\nFloatStorage", b"collections\nOrderedDict"),
    *(b"torch._utils\n_rebuild_parameter", b"__builtin__\nbytearray", b"_codecs\nencode"),
    *(b"torch\nSize", b"torch._utils\n_rebuild_sparse_tensor", b"torch\ndevice", b"os\nsystem"),
    *(b"builtins\nset", b"torch._tensor\n_rebuild_from_type_v2", b"torch\nfloat16"),
    *(b"torch._utils\n_rebuild_qtensor", b"torch\nquint8", b"torch\nComplexFloatStorage"),
    *(b"torch._utils\n_rebuild_meta_tensor_no_storage", b"builtins\ncomplex", b"__torch__\nM"),
    *(b"torch.jit._pickle\nrestore_type_tag", b"builtins\neval", b"subprocess\nPopen"),
    b"benchmarks.hostile_inputs.checkpoints\nrecord_call",
)

calls: list[tuple[object, ...]] = []
"""Arguments of calls of :func:`record_call`, which pickles refer to."""


def record_call(*arguments: object) -> None:
    """Record that the content of a checkpoint was executed."""
    calls.append(arguments)


def checkpoint_file(rng: Random) -> bytes:
    """Return a checkpoint; the generators of its parts are chosen at random."""
    choice = rng.random()
    if choice < 0.1:
        return mutate_some(rng, _safetensors(rng))
    if choice < 0.3:
        return mutate_some(rng, torchscript_archive(rng, rng.choice(_OPCODES)(rng)))
    if choice < 0.5:
        body = _saved(_state(rng), is_zip=rng.random() < 0.7)
        return mutate_some(rng, _changed_archive(rng, body) if rng.random() < 0.5 else body)
    if choice < 0.75:
        return mutate_some(rng, _archive(rng, _pickle_of(rng)))
    if choice < 0.9:
        return mutate_some(rng, _legacy(rng))
    return mutate_some(rng, _archive(rng, pickle.dumps(_containers(rng), protocol=2)))


def _safetensors(rng: Random) -> bytes:
    """Return a safetensors file: deep, wide or huge headers, offsets outside of the file."""
    offset = 0
    header: dict[str, Any] = {}
    for index in range(rng.choice((0, 1, 6, 30, 20_000))):
        count = rng.choice((0, 1, 64))
        size = 4 * count if rng.random() < 0.99 else rng.choice((-1, 3, *_HUGE))
        header[f"{rng.choice(_LAYERS)}{index}"] = {
            "dtype": rng.choice(("F32", "F32", "F32", "I64", "BF16", "X")),
            "shape": rng.choice(([count], [count, 1], [_HUGE[0], _HUGE[0]], [])),
            "data_offsets": [offset, offset + size],
        }
        offset += 4 * count
    if rng.random() < 0.2:
        header["__metadata__"] = rng.choice(({"format": "pt"}, {"x": "y" * 1_000_000}, [[]], 1))
    text = json.dumps(header).encode()
    if rng.random() < 0.05:  # the same keys again
        text = text[:-1] + b"," + text[1:] if header else b'{"a":1,"a":1}'
    if rng.random() < 0.1:
        text = b'{"a":' * rng.choice((10, 100_000)) + text
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, *_HUGE))
    return struct.pack("<Q", length) + text + bytes(offset)


def _state(rng: Random) -> Any:
    prefix = rng.choice(("", "module.", "model.", "state_dict.", "x" * 1000))
    count = rng.choice((1, 6, 30, 30, 3000))
    state: dict[Any, Any] = OrderedDict()
    for index in range(count):
        name = f"{prefix}{rng.choice(_LAYERS)}{'' if index < 6 else index}"
        state[name if rng.random() < 0.99 else index] = _tensor(rng)
    if rng.random() < 0.2:
        state[rng.choice(("epoch", "optimizer", "args"))] = _containers(rng)
    return (
        state if rng.random() < 0.6 else {"state_dict": state, "epoch": rng.choice((1, None, "x"))}
    )


def _tensor(rng: Random) -> Any:
    shape = rng.choice(((1,), (64, 3, 7, 7), (0,), (), (3, 1, 1, 1, 1, 1, 1), (80, 16, 1, 1)))
    tensor = torch.zeros(
        shape, dtype=rng.choice((torch.float32, torch.float16, torch.int64, torch.bool))
    )
    if rng.random() < 0.02:
        return rng.choice(_RARE_TENSORS)()
    choice = rng.random()
    if choice < 0.05:
        return torch.zeros(1).expand(rng.choice((3, 1 << 20, 1 << 40)))
    if choice < 0.08:
        return torch.zeros(100).as_strided((50, 50), (1, 1))
    if choice < 0.1:
        return torch.eye(3).to_sparse()
    if choice < 0.12:
        return torch.full((3,), rng.choice((float("nan"), float("inf"))))
    return torch.nn.Parameter(tensor) if choice < 0.2 and tensor.is_floating_point() else tensor


_RARE_TENSORS: tuple[Callable[[], torch.Tensor], ...] = (
    lambda: torch.zeros(2, dtype=torch.complex64),
    lambda: torch.zeros(2).to(torch.float8_e4m3fn),
    lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
    lambda: torch.quantize_per_channel(
        torch.zeros(2, 2), torch.ones(2), torch.zeros(2, dtype=torch.int64), 0, torch.quint8
    ),
    lambda: torch.eye(3).to_sparse_csr(),
    lambda: torch.zeros(2, device="meta"),
    lambda: torch.zeros(1).expand(1_000_000_000),
    lambda: torch.zeros(1, dtype=torch.complex128).expand(1_000_000, 1_000_000),
)


def _containers(rng: Random) -> Any:
    """Return plain containers: deep, wide, or shared so that they expand exponentially."""
    kind = rng.randrange(5)
    if kind == 0:
        value: Any = []
        for _ in range(rng.choice((10, 200))):
            value = [value]
        return value
    if kind == 1:
        return list(range(rng.choice((10, 100_000))))
    if kind == 2:
        value = ["a"]
        for _ in range(rng.choice((5, 60))):
            value = [value, value]
        return value
    if kind == 3:
        return {str(index): None for index in range(rng.choice((1, 50_000)))}
    return rng.choice((None, 1 << 100_000, "x" * 1_000_000, 1.5, {1, 2}, b"x" * 100))


def _saved(value: Any, is_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def _archive(rng: Random, data: bytes, storages: int = 2) -> bytes:
    """Return a zip file as ``torch.save`` writes it, with the given pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        _add(archive, "archive/data.pkl", data)
        _add(archive, "archive/byteorder", rng.choice((b"little", b"big", b"")))
        for index in range(storages):
            _add(archive, f"archive/data/{index}", bytes(rng.choice((0, 4, 4000))))
        _add(archive, "archive/version", rng.choice((b"3\n", b"3\n", b"99\n", b"x")))
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add a member with a fixed date, so that inputs are reproducible."""
    archive.writestr(zipfile.ZipInfo(name), data, archive.compression)


def _changed_archive(rng: Random, body: bytes) -> bytes:
    """Write the members again: compressed, repeated, missing, larger, under other names."""
    try:
        source = zipfile.ZipFile(io.BytesIO(body))
    except zipfile.BadZipFile:
        return body
    change = rng.randrange(8)
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if change == 0 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for member in source.infolist():
            name, data = member.filename, source.read(member)
            if change == 1 and "/data/" in name:
                data = bytes(rng.choice((0, 1, 1000)))
            if change == 2:
                name = rng.choice(("../" + name, "/etc/" + name, name * 9, name.upper()))
            if change == 3 and rng.random() < 0.3:
                continue
            if change == 0:
                data += bytes(20_000_000) if "/data/0" in name else b""
            _add(archive, name, data)
            if change == 7:
                with warnings.catch_warnings(action="ignore"):  # of the repeated name
                    _add(archive, name, data[: rng.choice((0, 1, len(data)))])
        if change == 4:
            for index in range(rng.choice((10, 5000))):
                _add(archive, f"archive/data/x{index}", b"")
        if change == 5:
            archive.comment = rng.randbytes(rng.choice((10, 65_000)))
    content = buffer.getvalue()
    if change == 6:  # sizes in the central directory
        position = content.find(b"PK\x01\x02")
        field = struct.pack("<I", rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF)))
        offset = position + rng.choice((20, 24, 42))
        content = content[:offset] + field + content[offset + 4 :]
    return content


def _legacy(rng: Random) -> bytes:
    """Return the format before PyTorch 1.6: four pickles, then the storages."""
    if rng.random() < 0.5:
        return _saved(_state(rng), is_zip=False)
    keys = [str(index) for index in range(rng.choice((0, 1, 1000)))]
    pickles: list[Any] = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(part, protocol=2) for part in pickles]
    parts += [_pickle_of(rng), pickle.dumps(keys, protocol=2)]
    parts.append(struct.pack("<q", rng.choice((0, 1, -1, *_HUGE))) * max(1, len(keys)))
    return b"".join(parts) + bytes(rng.choice((0, 100)))


def _pickle_of(rng: Random) -> bytes:
    """Return a pickle of generated opcodes; the stack is mostly deep enough for them."""
    opcodes = b"".join(rng.choice(_OPCODES)(rng) for _ in range(rng.choice((3, 20, 100))))
    if rng.random() < 0.03:
        opcodes = _equal_hashes(rng) + opcodes
    copies = 1 if rng.random() < 0.8 else rng.choice((10, 1000))
    return b"\x80\x02" + (opcodes * copies)[:_MAX_PICKLE_BYTES] + b"."


def _integer(rng: Random) -> bytes:
    value = rng.choice((0, 1, 3, 255, 65_536, -1, *_HUGE))
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def _string(rng: Random) -> bytes:
    text = rng.choice((b"a", b"storage", b"cpu", b"0", b"latin1", b"x" * 5000))
    stated = len(text) if rng.random() < 0.97 else 0xFFFFFFFF
    return b"X" + struct.pack("<I", stated) + text


def _global(rng: Random) -> bytes:
    return b"c" + rng.choice(_GLOBALS) + b"\n"


def _call(rng: Random) -> bytes:
    return _global(rng) + b"(" + _integer(rng) * rng.choice((0, 1, 3)) + b"tR"


def _huge_bytearray(rng: Random) -> bytes:
    return b"c__builtin__\nbytearray\n(" + _integer(rng) + b"tR"


def _storage(rng: Random) -> bytes:
    """Return a persistent id of a storage with any number of elements."""
    kind = b"ctorch\n" + rng.choice((b"FloatStorage", b"HalfStorage", b"LongStorage")) + b"\n"
    key = b"X\x01\x00\x00\x000"
    return (
        b"(X\x07\x00\x00\x00storage" + kind + key + b"X\x03\x00\x00\x00cpu" + _integer(rng) + b"tQ"
    )


def _rebuilt_tensor(rng: Random) -> bytes:
    sizes = b"(" + _integer(rng) * rng.randrange(4) + b"t"
    strides = b"(" + _integer(rng) * rng.randrange(4) + b"t"
    arguments = _storage(rng) + _integer(rng) + sizes + strides + b"\x89"
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + hooks + b"tR"


def _doubled(rng: Random) -> bytes:
    """Put a list into a list twice, again and again."""
    return b"]q\x01" + b"](h\x01h\x01eq\x01" * rng.choice((3, 40))


def _doubled_key(rng: Random) -> bytes:
    """Put a tuple into a tuple twice, again and again, and use it as a key."""
    doubled = b")q\x01" + b"h\x01h\x01\x86q\x01" * rng.choice((3, 40))
    return doubled + b"}h\x01Ns" + rng.choice((b"", b"]h\x01aR", b"h\x01Q"))


def _equal_hashes(rng: Random) -> bytes:
    """Return a dict whose keys, multiples of the modulus of integer hashes, have one hash."""
    modulus = (1 << 61) - 1
    keys = [modulus * index for index in range(1, rng.choice((3, 30_000)))]
    items = [b"\x8a\x0b" + key.to_bytes(11, "little") + b"N" for key in keys]
    return b"}(" + b"".join(items) + b"u"


def _memo(rng: Random) -> bytes:
    index = rng.choice((b"\x00", b"\x01", b"\xff"))
    return rng.choice((b"q" + index, b"h" + index, b"r" + index * 4, b"j" + index * 4))


def _simple(rng: Random) -> bytes:
    return rng.choice(
        (b"(", b")", b"]", b"}", b"t", b"\x85", b"\x86", b"\x87", b"N", b"\x88", b"e", b"u")
    )


def _stack(rng: Random) -> bytes:
    return rng.choice(
        (b"R", b"Q", b"a", b"s", b"b", b"0", b"2", b"1", b"\x81", b"l", b"d", b"\x93")
    )


_OPCODES: tuple[Callable[[Random], bytes], ...] = (
    *(_integer, _string, _global, _call, _huge_bytearray, _storage, _rebuilt_tensor),
    *(_rebuilt_tensor, _doubled, _doubled_key, _memo, _simple, _simple, _simple, _stack),
)
