"""Reading a stranger's checkpoint: never runs code from it, and takes nothing on trust."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_export.errors import CheckpointUnreadableError, CheckpointUnsafeError

MAX_FILE_BYTES = 4 * 1024**3
"""Twenty times the largest plain ResNet checkpoint with its optimizer."""

_FOUND_CHARACTERS = 300  # names in the file can be of any length
_COUNTER = ".num_batches_tracked"
_DATA_PARALLEL_PREFIX = "module."


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the weights in ``path``, under the names that its authors gave them.

    Accepts both layouts of ``torch.save``, a bare state dict or one under ``state_dict``, and the
    ``module.`` prefix of data-parallel training. Returns finite float32 tensors on the CPU,
    without the counters that batch normalisation keeps for training (files from before
    PyTorch 0.4.1 have none).

    Raises :class:`CheckpointUnreadableError` and :class:`CheckpointUnsafeError`.
    """
    _check_file(path)
    state = _find_state(_load(path), path)
    weights = {}
    for key, value in state.items():
        if not isinstance(key, str):
            raise _no_weights(path, f"a key is {key!r}, not a name")
        name = key.removeprefix(_DATA_PARALLEL_PREFIX)
        if name in weights:
            raise _no_weights(path, f"{name!r} is there with and without the prefix 'module.'")
        if not name.endswith(_COUNTER):
            weights[name] = _checked(name, value, path)
    return weights


def _check_file(path: Path) -> None:
    if not path.exists():
        raise CheckpointUnreadableError(f"there is no file {path}. Check the path.")
    if not path.is_file():
        raise CheckpointUnreadableError(
            f"{path} is a directory or a device, not a file. Name the .pth file itself."
        )
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise CheckpointUnreadableError(f"{path} is empty (0 bytes). Copy or download it again.")
    if size_bytes > MAX_FILE_BYTES:
        raise CheckpointUnreadableError(
            f"{path} has {size_bytes} bytes; at most {MAX_FILE_BYTES} are read. "
            "Save the state dict alone, without the optimizer."
        )


def _load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # torch warns about layouts (TorchScript, newer pickles) that it then refuses itself.
            warnings.simplefilter("ignore", UserWarning)
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or hostile file can end in any exception: EOFError, KeyError, struct.error, ...
    except Exception as error:
        wanted = re.search(r"GLOBAL (\S{1,100})", str(error))
        if wanted:
            raise CheckpointUnsafeError(
                f"{path} asks for {wanted[1]!r}, which is not plain data and may be code; it was "
                "not run. Only tensors and containers of them are read. If you trust the file, "
                "load it where it was made and save its state dict alone."
            ) from error
        raise CheckpointUnreadableError(
            f"{path} is not a PyTorch checkpoint, or it is damaged ({_reason(error)}). "
            "Accepted is what torch.save wrote; copy or download it again."
        ) from error
    return loaded


def _reason(error: Exception) -> str:
    """Name the error in a few words, without torch's advice to switch its safety off."""
    text = str(error).partition(". ")[0].partition("\n")[0][:160]
    if not text or text.startswith("Weights only load failed"):
        return type(error).__name__
    return f"{type(error).__name__}: {text}"


def _find_state(loaded: object, path: Path) -> Mapping[Any, Any]:
    if not isinstance(loaded, Mapping):
        raise _no_weights(path, f"it holds a {type(loaded).__name__}")
    state = loaded.get("state_dict", loaded)
    if isinstance(state, Mapping) and state and all(isinstance(v, Tensor) for v in state.values()):
        return state
    names = ", ".join(repr(key) for key in list(loaded)[:5])
    raise _no_weights(path, f"at the top it holds {names or 'nothing'}")


def _checked(name: str, tensor: Tensor, path: Path) -> Tensor:
    """Return ``tensor`` as finite float32, or say why it cannot be the weight ``name``."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise _no_weights(path, f"{name!r} is not an ordinary dense tensor")
    if not tensor.is_floating_point():
        raise _no_weights(path, f"{name!r} is of {tensor.dtype}, not of floating point")
    # A stride of zero lets one stored number pose as terabytes; looking at them would need those.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise _no_weights(path, f"{name!r} claims {tuple(tensor.shape)} but stores less")
    weight = tensor.detach().to(torch.float32)
    if not torch.isfinite(weight).all():
        raise _no_weights(path, f"{name!r} contains NaN or infinity")
    return weight


def _no_weights(path: Path, found: str) -> CheckpointUnreadableError:
    return CheckpointUnreadableError(
        f"{path} does not hold usable weights: {found[:_FOUND_CHARACTERS]}. "
        "Accepted is a state dict (names to floating-point tensors), bare or under 'state_dict'."
    )
