"""Weights of TorchScript archives, which are read without the code that they contain.

The archive is a zip file. ``data.pkl`` is a pickle of the module, as an object of a class of the
archive's own code: its attributes are the parameters, the buffers and the submodules. ``data/N``
are storages, as in files of ``torch.save``. PyTorch's restricted unpickler reads both, with
:class:`ScriptModule` in place of every class of the code.
"""

import io
import pickletools
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, _weights_only_unpickler
from torch.jit import _pickle

MAX_NAMES = 50_000
"""Modules and tensors; the largest networks of the family have 3,000."""
MAX_NAME_CHARACTERS = 500

_CLASS = "__torch__.Module"
"""Name in the pickle that stands for every class of the archive's code."""
# Classes of C++ are not code of the archive. Quantized layers keep their weights in them.
_OWN_CLASS = re.compile(r"__torch__(?!\.torch\.classes\.)[. ]")
# Functions that return their first argument; they mark the types of lists and dicts.
_TYPE_MARKS = (
    _pickle.restore_type_tag,
    _pickle.build_intlist,
    _pickle.build_doublelist,
    _pickle.build_boollist,
    _pickle.build_tensorlist,
)


class ScriptModule:
    """An object of a class of the archive: its attributes by name, and no code."""

    def __init__(self) -> None:
        self.attributes: dict[str, object] = {}

    def __setstate__(self, state: object) -> None:
        """Keep the attributes; objects with another state have no weights under a name."""
        if isinstance(state, dict):
            self.attributes = {
                name: value for name, value in state.items() if isinstance(name, str)
            }


class TorchScriptError(Exception):
    """The archive has no weights that could be read; the message says why."""


def is_torchscript(reader: torch._C.PyTorchFileReader) -> bool:
    """Return whether ``torch.jit.save`` wrote the archive, by the same rule as ``torch.load``."""
    return "constants.pkl" in reader.get_all_records()


def load_torchscript(reader: torch._C.PyTorchFileReader) -> object:
    """Return the tensors of the module in ``data.pkl`` by dotted name, like its state dict.

    If the file is malicious, it can hold another object, which is returned. Raises
    :class:`TorchScriptError`, and what PyTorch's unpickler raises.
    """
    known: list[Any] = [*_TYPE_MARKS, (ScriptModule, _CLASS)]
    with torch.serialization.safe_globals(known):
        module: object = torch.serialization._load(  # type: ignore[no-untyped-call]
            reader, "cpu", SimpleNamespace(Unpickler=_Unpickler), encoding="utf-8"
        )
    if not isinstance(module, ScriptModule):
        return module
    state = dict(_walk(module))
    if not state and "constants/0" in reader.get_all_records():
        raise TorchScriptError(
            "its weights have no names, because torch.jit.freeze made them constants of the code. "
            "Give the archive from before, or the checkpoint that it was made from"
        )
    return state


class _Unpickler(_weights_only_unpickler.Unpickler):
    """The restricted unpickler, for a pickle with classes of the archive's code."""

    def __init__(self, file: io.BytesIO, **options: Any) -> None:
        super().__init__(io.BytesIO(_with_one_class(file.getvalue())), **options)


def _with_one_class(data: bytes) -> bytes:
    """Give the classes of the archive's code one name.

    The unpickler takes time in proportion to the number of allowed names for each object.
    """
    parts, copied = [], 0
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name == "GLOBAL" and _OWN_CLASS.match(str(argument)):
            assert position is not None
            # The opcode is the letter c, then module and name, each with a newline.
            parts += [data[copied : position + 1], _CLASS.replace(".", "\n").encode() + b"\n"]
            copied = position + 1 + len(str(argument)) + 1
    return b"".join([*parts, data[copied:]])


def _walk(module: ScriptModule) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in order; those of a module with several names under each of them."""
    count = 0
    remaining: list[tuple[str, ScriptModule | Tensor]] = [("", module)]
    while remaining:
        name, value = remaining.pop()
        if isinstance(value, Tensor):
            yield name, value
            continue
        parts = [
            (f"{name}.{part}" if name else part, child)
            for part, child in value.attributes.items()
            if isinstance(child, ScriptModule | Tensor)
        ]
        count += len(parts)
        if count > MAX_NAMES:
            raise TorchScriptError(f"it has more than {MAX_NAMES} modules and tensors")
        if any(len(part) > MAX_NAME_CHARACTERS for part, _ in parts):
            raise TorchScriptError(
                f"a name has more than {MAX_NAME_CHARACTERS} characters, or a module contains "
                "itself"
            )
        remaining.extend(reversed(parts))
