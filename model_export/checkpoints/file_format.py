"""Recognition of files that are not checkpoints of PyTorch, by their first bytes and names."""

import re
from collections.abc import Collection
from pathlib import Path

HEAD_BYTES = 512
"""Bytes that :func:`describe_other_file` looks at."""

_IMPORT = (
    "If its outputs are the undecoded head maps, use centernet-export import --onnx FILE "
    "--output DIR; otherwise export the checkpoint that it was made from"
)
_CONVERT = (
    "Only weights of PyTorch are read: export the checkpoint (.pth) of the same network, or "
    "convert the weights to the tensor names of the reference implementation"
)
_DOWNLOAD = "Download the checkpoint again, and check that the file is as large as its source says"
_EXPORTED_PROGRAM = (
    "In the environment that wrote it, save only the weights, "
    "torch.save(torch.export.load(FILE).state_dict, 'weights.pth')"
)
_UNPACK = "Unpack it, and give the checkpoint (.pth) in it"

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Run git lfs pull"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it", _CONVERT),
    (4, b"TFL3", "a TensorFlow Lite model", _CONVERT),
    (0, b"\x93NUMPY", "a NumPy array", _CONVERT),
    (0, b"GGUF", "a GGUF file", _CONVERT),
    (0, b"<?xml", "an XML file, such as a network of OpenVINO", _CONVERT),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x1f\x8b", "a file compressed with gzip", _UNPACK),
    (0, b"BZh", "a file compressed with bzip2", _UNPACK),
    (0, b"\xfd7zXZ\x00", "a file compressed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a file compressed with Zstandard", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
)
"""Offset, signature, what the file is, what to do."""

_HTML = re.compile(rb"\s*(<!--.{0,200}-->\s*)?<(!doctype html|html|head)\b", re.I | re.S)
# ir_version, then the name of the producer, the graph or the operator sets (onnx.proto).
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x3a\x42]")

_ENGINE = (
    "an engine of TensorRT",
    "It has no weights that could be read: give the checkpoint that it was built from",
)
_TENSORFLOW = ("a file of TensorFlow", _CONVERT)
_SUFFIXES = {
    ".engine": _ENGINE, ".plan": _ENGINE, ".trt": _ENGINE,
    ".pb": _TENSORFLOW, ".index": _TENSORFLOW, ".meta": _TENSORFLOW,
    ".onnx": ("an ONNX file", _IMPORT),
}  # fmt: skip
"""Names of formats without a signature, of files that PyTorch cannot have written."""

_CHECKPOINT_STARTS = (b"PK", b"\x80")
"""First bytes of zip files and pickles."""


def describe_other_file(path: Path, head: bytes) -> str | None:
    """Return what a file is instead of a checkpoint, and what to do; None if that is unknown.

    ``head``: the first :data:`HEAD_BYTES` bytes.
    """
    for offset, signature, kind, advice in _SIGNATURES:
        if head[offset:].startswith(signature):
            return _sentence(kind, advice)
    if _HTML.match(head):
        return _sentence("an HTML page, such as the error page of a download", _DOWNLOAD)
    if _ONNX.match(head):
        return _sentence(*_SUFFIXES[".onnx"])
    if not head.startswith(_CHECKPOINT_STARTS) and path.suffix.lower() in _SUFFIXES:
        return _sentence(*_SUFFIXES[path.suffix.lower()])
    return None


def describe_other_directory(path: Path) -> str:
    """Return what a directory is, and what to do."""
    if (path / "saved_model.pb").is_file():
        return _sentence("a SavedModel of TensorFlow", _CONVERT)
    return _sentence("a directory or a device, not a file", "Give the path of the .pth file")


def describe_other_archive(members: Collection[str]) -> str | None:
    """Return what a zip file with these members is; None if it can be of PyTorch."""
    names = {name.rpartition("/")[2] for name in members}
    if any(re.fullmatch(r"[^/]*/?data\.pkl", name) for name in members):
        return None
    if "archive_format" in names:
        return _sentence("a program of torch.export", _EXPORTED_PROGRAM)
    if "model.weights.h5" in names:
        return _sentence("a model of Keras", _CONVERT)
    if names and all(name.endswith(".npy") for name in names):
        return _sentence("a NumPy archive (.npz)", _CONVERT)
    return _sentence("a zip file that torch.save has not written", _UNPACK)


def _sentence(kind: str, advice: str) -> str:
    return f"{kind}. {advice}."
