"""Bounds on the header of a safetensors file, checked before the library parses it.

The format: eight bytes with the length of the header, the header in JSON, the tensors. The library
checks the offsets, but accepts headers of 100 MB, which take gigabytes as objects.
"""

import struct
from pathlib import Path

MAX_HEADER_BYTES = 4_000_000
"""Ten thousand tensors with long names take 2 MB."""

_LENGTH = struct.Struct("<Q")


def is_safetensors(path: Path) -> bool:
    """Return whether the file starts with the length of a header, and a JSON object."""
    with path.open("rb") as file:
        start = file.read(_LENGTH.size + 1)
    return len(start) == _LENGTH.size + 1 and start.endswith(b"{") and start[7] == 0


def check_header(path: Path) -> None:
    """Raise ``ValueError`` if the header is longer than :data:`MAX_HEADER_BYTES`."""
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, at most {MAX_HEADER_BYTES} are read")
