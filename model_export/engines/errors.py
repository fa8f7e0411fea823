"""What can stop a build; whatever it was, the package stays as it was."""

from model_export.errors import ExportError


class EngineError(ExportError):
    """No engine was made."""

    code = "engine_failed"


class EngineRequestError(EngineError):
    """What was asked for cannot be built; found before any work is done."""

    code = "engine_request_invalid"


class EngineLibraryError(EngineError):
    """The library that builds engines is missing, broken or too old."""

    code = "engine_library_missing"


class LoweringError(EngineError):
    """The file has an operator that the library lacks, in a form that nothing else stands for."""

    code = "operator_not_lowered"


class EngineBuildError(EngineError):
    """The library refused the file, failed to build it, or died of it."""

    code = "engine_build_failed"
