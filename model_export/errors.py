"""What can stop an export, placed where the data is when it happens.

Every message says what was received, what is accepted and what to do; ``code`` stays the same
when a message is reworded. A place that is taken or cannot be written is
:class:`model_package.PackageError`.
"""

from typing import ClassVar


class ExportError(Exception):
    """No package was made."""

    code: ClassVar[str] = "export_failed"


class ConfigError(ExportError):
    """What was asked for cannot be exported; found before any work is done."""

    code = "config_invalid"


class CheckpointError(ExportError):
    """The checkpoint is not what it should be."""

    code = "checkpoint_invalid"


class CheckpointUnreadableError(CheckpointError):
    """The file is missing, damaged, too large, or does not hold the weights of a network."""

    code = "checkpoint_unreadable"


class CheckpointUnsafeError(CheckpointError):
    """Reading the file would run code that it brings along; nothing was run."""

    code = "checkpoint_unsafe"


class CheckpointMismatchError(CheckpointError):
    """The weights belong to another network than the one asked for."""

    code = "checkpoint_mismatch"


class OnnxFileError(ExportError):
    """Somebody else's ONNX file is not what can be imported."""

    code = "onnx_file_invalid"


class ImagesError(ExportError):
    """The images to verify with cannot be read."""

    code = "images_unreadable"


class VerificationError(ExportError):
    """The exported file does not find what the network finds."""

    code = "verification_failed"


class HalfPrecisionError(ExportError):
    """The network does not find in half precision what it finds in float32."""

    code = "half_precision_unsuitable"
