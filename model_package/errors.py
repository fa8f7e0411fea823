"""Exceptions of reading and writing model packages."""


class PackageError(Exception):
    """Base class: a model package cannot be read or written."""


class PackageNotFoundError(PackageError):
    """The directory has no ``model.json``."""


class PackageInvalidError(PackageError):
    """The manifest or an artifact of the package is invalid."""


class PackageExistsError(PackageError):
    """The output path of a new package exists already."""


class PackageBusyError(PackageError):
    """Another process is writing to the package."""
