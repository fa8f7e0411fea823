"""Exceptions of the export.

Messages say what was received, what is accepted and what to do; ``code`` is stable when a message
is reworded. An output directory that exists or cannot be written raises
:class:`model_package.PackageError`.
"""

from typing import ClassVar


class ExportError(Exception):
    """Base class; no package was written."""

    code: ClassVar[str] = "export_failed"


class ConfigError(ExportError):
    """The configuration is invalid; raised before a file is exported."""

    code = "config_invalid"


class CheckpointError(ExportError):
    """The checkpoint cannot be used."""

    code = "checkpoint_invalid"


class CheckpointUnreadableError(CheckpointError):
    """The file is missing, damaged or too large, or does not hold the weights of a network."""

    code = "checkpoint_unreadable"


class CheckpointUnsafeError(CheckpointError):
    """Loading the file would run code that it contains; no code was run."""

    code = "checkpoint_unsafe"


class CheckpointMismatchError(CheckpointError):
    """The weights do not match the requested architecture, task or names."""

    code = "checkpoint_mismatch"


class OnnxFileError(ExportError):
    """The ONNX file cannot be imported."""

    code = "onnx_file_invalid"


class ImagesError(ExportError):
    """The verification images cannot be read."""

    code = "images_unreadable"


class VerificationError(ExportError):
    """The detections of the exported file differ from those of the network."""

    code = "verification_failed"


class QuantizationError(ExportError):
    """The network cannot be quantized, or its detections in int8 differ from those in fp32."""

    code = "int8_unsuitable"


class Fp16Error(ExportError):
    """The network's detections in fp16 differ from those in fp32, or fp16 overflows."""

    code = "half_precision_unsuitable"
