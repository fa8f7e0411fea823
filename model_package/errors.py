"""What can be wrong with a model package."""


class PackageError(Exception):
    """A model package cannot be read or written; the text says why and what to do."""


class PackageNotFoundError(PackageError):
    """There is no ``model.json`` where a package was expected."""


class PackageInvalidError(PackageError):
    """The package is there, but its manifest or an artifact is not what it should be."""


class PackageExistsError(PackageError):
    """Something already stands where a new package should be written."""


class PackageBusyError(PackageError):
    """Another program is writing to the package."""
