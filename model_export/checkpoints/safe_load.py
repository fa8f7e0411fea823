"""Loading of untrusted checkpoints: no code in the file is run and every tensor is checked."""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model_export.checkpoints.file_format import (
    HEAD_BYTES,
    describe_other_archive,
    describe_other_directory,
    describe_other_file,
)
from model_export.checkpoints.mmdetection import RecordedSettings, read_settings
from model_export.checkpoints.pickle_limits import PickleLimitError, check_pickles
from model_export.checkpoints.safetensors_header import check_header, is_safetensors
from model_export.checkpoints.torchscript import (
    TorchScriptError,
    is_torchscript,
    load_torchscript,
)
from model_export.checkpoints.training_record import TrainingRecord
from model_export.checkpoints.training_state import training_state_skipped
from model_export.checkpoints.weights_entries import common_prefix, find_entries, is_state
from model_export.errors import (
    CheckpointError,
    CheckpointUnreadableError,
    CheckpointUnsafeError,
)

MAX_FILE_BYTES = 4 * 1024**3
"""Twenty times the largest plain ResNet checkpoint with its optimizer."""

MEMORY_PER_BYTE = 2
"""Bytes of memory that loading may take per byte of the file: its tensors, and their copies."""
MEMORY_MARGIN_BYTES = 192 * 1024**2
"""Further bytes that loading may take, for the interpreter and the libraries."""
MAX_FLOAT32_PER_BYTE = 4
"""Bytes of float32 weights per byte of the file; a file of float16 weights needs 2."""

_ZIP_SIGNATURE = b"PK\x03\x04"
_CODE = re.compile(r"[^/]+/code/")
_PICKLES = 5
"""Pickles in a file of PyTorch before 1.6: magic number, version, platform, content, storages."""
_FOUND_CHARACTERS = 300  # names in the file can be of any length
_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class Checkpoint:
    """Weights under their stored (upstream) names, and what the file says of their training.

    Attributes:
        state: finite float32 tensors on the CPU.
        entry: key of the file that the weights are stored under; None for a bare state dict.
        other_entries: keys of the file that hold weights as well.
        prefix: what was removed from all names.
        record: of a checkpoint of ``centernet-train``; None for others.
        mmdetection: of a checkpoint of MMDetection; empty for others.
    """

    state: dict[str, Tensor]
    entry: str | None
    other_entries: tuple[str, ...]
    prefix: str
    record: TrainingRecord | None
    mmdetection: RecordedSettings


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the weights in ``path``; see :func:`read_checkpoint`."""
    return read_checkpoint(path).state


def read_checkpoint(path: Path, entry: str | None = None) -> Checkpoint:
    """Read the weights in ``path`` under their stored (upstream) names, and their description.

    Accepts safetensors, both file formats of ``torch.save``, and TorchScript archives, whose code
    is not read; a bare state dict, or one under ``entry``, by default the first of
    :data:`~model_export.checkpoints.weights_entries.ENTRIES`. A prefix of all names is removed,
    such as ``module.`` of data-parallel training. Integer ``num_batches_tracked`` buffers are left
    out (files from before PyTorch 0.4.1 have none).

    Raises :class:`CheckpointUnreadableError` and :class:`CheckpointUnsafeError`.
    """
    size_bytes = _check_file(path)
    with _memory_limit(MEMORY_PER_BYTE * size_bytes + MEMORY_MARGIN_BYTES):
        if is_safetensors(path):
            loaded: object = _load_safetensors(path)
        else:
            archive = _check_content(path, size_bytes)
            loaded = _load(path) if archive is None else _load_archive(archive, path)
    chosen, others = _choose_entry(loaded, entry, path)
    state = loaded if chosen is None else loaded[chosen]  # type: ignore[index]
    assert isinstance(state, Mapping)
    for key in state:
        if not isinstance(key, str):
            raise _no_weights(path, f"a key is {key!r}, not a string")
    prefix = common_prefix(list(state))
    weights = {}
    for key, value in state.items():
        name = key.removeprefix(prefix)
        if not name.endswith(_COUNTER):
            _check_tensor(name, value, path)
            weights[name] = value
    _check_expansion(weights, size_bytes, path)
    return Checkpoint(
        {name: _to_float32(name, tensor, path) for name, tensor in weights.items()},
        chosen,
        tuple(others),
        prefix,
        TrainingRecord.find(loaded),
        read_settings(loaded),
    )


def _check_file(path: Path) -> int:
    """Return the size in bytes of a file that may be read."""
    if not path.exists():
        raise CheckpointUnreadableError(f"{path} does not exist. Check the path.")
    if not path.is_file():
        raise CheckpointUnreadableError(f"{path} is {describe_other_directory(path)}")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise CheckpointUnreadableError(f"{path} is empty (0 bytes). Copy or download it again.")
    if size_bytes > MAX_FILE_BYTES:
        raise CheckpointUnreadableError(
            f"{path} has {size_bytes} bytes; at most {MAX_FILE_BYTES} are read. "
            "Save only the state dict, without the optimizer."
        )
    with path.open("rb") as file:
        other = describe_other_file(path, file.read(HEAD_BYTES))
    # A safetensors file begins with a number, which can look like another signature.
    if other is not None and not is_safetensors(path):
        raise CheckpointUnreadableError(f"{path} is {other}")
    return size_bytes


@contextmanager
def _memory_limit(size_bytes: int) -> Iterator[None]:
    """Let allocations of the block fail that need more than ``size_bytes`` of further memory.

    Unpickling may construct tensors and byte arrays of any declared size. The limit applies to the
    address space of the process; operating systems without it are not protected.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        yield
        return
    import resource  # does not exist on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    threads = torch.get_num_threads()
    limit = pages * resource.getpagesize() + size_bytes
    torch.set_num_threads(1)  # OpenMP ends the process if it cannot create a thread
    resource.setrlimit(
        resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        torch.set_num_threads(threads)


def _check_content(path: Path, size_bytes: int) -> torch._C.PyTorchFileReader | None:
    """Check the archive, in the format since PyTorch 1.6, and the pickles.

    Returns the reader of a TorchScript archive; None for files of ``torch.save``.
    """
    try:
        with path.open("rb") as file:
            if not file.read(len(_ZIP_SIGNATURE)).startswith(_ZIP_SIGNATURE):
                file.seek(0)
                check_pickles(file, _PICKLES)
                return None
        _check_archive(path, size_bytes)
        # With the reader of torch.load: another one could find another record of that name.
        archive = torch._C.PyTorchFileReader(str(path))
        check_pickles(io.BytesIO(archive.get_record("data.pkl")), 1)
        return archive if is_torchscript(archive) else None
    except PickleLimitError as error:
        raise CheckpointUnreadableError(
            f"{path} is not a checkpoint that can be read: {error}. "
            "Save only the state dict, with torch.save."
        ) from None
    # Of the reader: the third where names of the archive, also in its messages, are not UTF-8.
    except (RuntimeError, MemoryError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _check_archive(path: Path, size_bytes: int) -> None:
    """Reject a zip file that expands to more than its own size.

    ``torch.save`` only stores. ``torch.jit.save`` compresses code, which is not read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # a damaged file can raise any exception
        raise _unreadable(path, error) from error
    other = describe_other_archive([member.filename for member in members])
    if other is not None:
        raise CheckpointUnreadableError(f"{path} is {other}")
    members = [member for member in members if not _CODE.match(member.filename)]
    expanded_bytes = sum(member.file_size for member in members)
    is_compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if is_compressed or expanded_bytes > size_bytes:
        raise CheckpointUnreadableError(
            f"{path} expands to {expanded_bytes} bytes from {size_bytes}: its members are "
            "compressed or overlap. Only files written by torch.save, which does not compress, are "
            "accepted; save it again."
        )


def _check_expansion(weights: Mapping[str, Tensor], size_bytes: int, path: Path) -> None:
    """Reject weights that are far larger than the file, such as many views of one storage."""
    float32_bytes = 4 * sum(tensor.numel() for tensor in weights.values())
    if float32_bytes > MAX_FLOAT32_PER_BYTE * size_bytes:
        raise _no_weights(
            path, f"its weights take {float32_bytes} bytes as float32, the file has {size_bytes}"
        )


def _load(path: Path) -> object:
    try:
        with warnings.catch_warnings(), training_state_skipped():
            # torch warns about newer pickles, which it then refuses itself.
            warnings.simplefilter("ignore", UserWarning)
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or malicious file can raise any exception: EOFError, KeyError, struct.error, ...
    except Exception as error:
        raise _unreadable(path, error) from error
    return loaded


def _load_archive(archive: torch._C.PyTorchFileReader, path: Path) -> object:
    """Load a TorchScript archive; see :func:`load_torchscript`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return load_torchscript(archive)
    except TorchScriptError as error:
        raise CheckpointUnreadableError(
            f"{path} is a TorchScript archive that cannot be read: {error}."
        ) from None
    except Exception as error:  # as in _load
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    blocked = re.search(r"GLOBAL (\S{1,100})", str(error))
    if blocked:
        return CheckpointUnsafeError(
            f"{path} refers to {blocked[1]!r}, which is not plain data and may be code; it was "
            "not run. Only tensors and containers of them are accepted. If you trust the file, "
            "load it in the environment that wrote it and save only its state dict."
        )
    return CheckpointUnreadableError(
        f"{path} is not a PyTorch checkpoint, or it is damaged ({_reason(error)}). "
        "Only files written by torch.save are accepted; copy or download it again."
    )


def _reason(error: Exception) -> str:
    """Return a short description without torch's advice to set ``weights_only=False``."""
    text = str(error).partition(". ")[0].partition("\n")[0][:160]
    if not text or text.startswith("Weights only load failed"):
        return type(error).__name__
    return f"{type(error).__name__}: {text}"


def _load_safetensors(path: Path) -> object:
    try:
        check_header(path)
        return load_file(path)
    # The library raises its own error for a damaged file, OSError, ValueError or MemoryError.
    except Exception as error:
        raise CheckpointUnreadableError(
            f"{path} is a damaged safetensors file ({_reason(error)}). "
            "Copy or download it again, or save it again with safetensors.torch.save_file."
        ) from error


def _choose_entry(
    loaded: object, entry: str | None, path: Path
) -> tuple[str | None, Sequence[str]]:
    """Return the key of the weights, None for a bare state dict, and the keys of others."""
    if not isinstance(loaded, Mapping):
        raise _no_weights(path, f"it holds a {type(loaded).__name__}")
    entries = find_entries(loaded)
    if entry is None and is_state(loaded):
        return None, entries
    if entry is None and entries:
        return entries[0], entries[1:]
    if entry in entries:
        return entry, [other for other in entries if other != entry]
    if entry is not None:
        known = ", ".join(repr(key) for key in entries[:5])
        raise _no_weights(path, f"it has no weights under {entry!r}, only under {known or 'none'}")
    names = ", ".join(repr(key) for key in list(loaded)[:5])
    raise _no_weights(path, f"its top-level keys are {names or 'none'}")


def _check_tensor(name: str, tensor: Tensor, path: Path) -> None:
    """Raise if ``tensor`` cannot be the weight ``name``."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise _no_weights(path, f"{name!r} is not a dense CPU tensor")
    if not tensor.is_floating_point():
        raise _no_weights(path, f"{name!r} has the type {tensor.dtype}, not a floating-point type")
    # With a stride of 0, one stored number can have a shape of terabytes, which a check would
    # have to allocate.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise _no_weights(
            path, f"{name!r} has the shape {tuple(tensor.shape)} but stores fewer values"
        )


def _to_float32(name: str, tensor: Tensor, path: Path) -> Tensor:
    """Return the weight ``name`` as float32; raises if a value is not finite."""
    weight = tensor.detach().to(torch.float32)
    if not torch.isfinite(weight).all():
        raise _no_weights(path, f"{name!r} contains NaN or infinity")
    return weight


def _no_weights(path: Path, found: str) -> CheckpointUnreadableError:
    return CheckpointUnreadableError(
        f"{path} does not hold usable weights: {found[:_FOUND_CHARACTERS]}. "
        "A state dict (names to floating-point tensors) is accepted, bare or under a key such as "
        "'state_dict'."
    )
