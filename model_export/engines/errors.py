"""Exceptions of engine builds. After any of them the package is as it was before the build."""

from model_export.errors import ExportError


class EngineBuildError(ExportError):
    """An engine could not be built."""

    code = "engine_failed"


class EngineRequestError(EngineBuildError):
    """The requested engine is not possible; detected before the build starts."""

    code = "engine_request_invalid"


class EngineLibraryError(EngineBuildError):
    """The library that builds engines is missing, cannot be imported or is too old."""

    code = "engine_library_missing"


class LoweringError(EngineBuildError):
    """An operator that the library does not support has no equivalent in supported operators."""

    code = "operator_not_lowered"


class EngineCompileError(EngineBuildError):
    """The library rejected the file, failed to build it or ended the build process."""

    code = "engine_build_failed"
