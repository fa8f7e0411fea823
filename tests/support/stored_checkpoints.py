"""Checkpoints written by MMEngine and by Lightning, stored without their weights.

The large tensors of a stored file are zero, so that xz reduces it to some kilobytes. For a test,
the records of its weights are replaced.
"""

import io
import lzma
import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def restore_checkpoint(stored: Path, state: Mapping[str, Tensor], path: Path) -> None:
    """Write the checkpoint ``stored`` to ``path``, with ``state`` as the weights.

    The state dict is the first entry with tensors in these files, so that its tensors are the first
    records, in order.
    """
    records = {f"data/{index}": tensor for index, tensor in enumerate(state.values())}
    with (
        zipfile.ZipFile(io.BytesIO(lzma.decompress(stored.read_bytes()))) as source,
        zipfile.ZipFile(path, "w") as target,
    ):
        for member in source.infolist():
            content = source.read(member)
            tensor = records.get(member.filename.partition("/")[2])
            if tensor is not None:
                assert len(content) == tensor.nbytes
                content = tensor.numpy().tobytes()
            target.writestr(member.filename, content)
