"""Folders and object storage as file systems of pyarrow."""

import uuid
from pathlib import Path
from typing import NamedTuple

from pyarrow import ArrowException
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from bulk.errors import BulkError

_OBJECT_STORAGE = frozenset({"s3", "gcs", "abfs"})


class Location(NamedTuple):
    """A path in a file system."""

    files: FileSystem
    path: str

    def child(self, name: str) -> "Location":
        """Return a path below this one."""
        return Location(self.files, f"{self.path.rstrip('/')}/{name}")

    @property
    def exists(self) -> bool:
        """Whether there is a file or folder."""
        return self.files.get_file_info(self.path).type is not FileType.NotFound

    def write(self, content: bytes) -> None:
        """Write a file that is complete as soon as it is visible.

        Object storage shows an object when its upload has been completed; elsewhere a finished
        file is renamed, which replaces an earlier one.
        """
        is_atomic = self.files.type_name in _OBJECT_STORAGE
        folder, _, name = self.path.rpartition("/")
        # Readers of Parquet folders ignore hidden files, which a fault may leave.
        draft = self.path if is_atomic else f"{folder}/.{name}.{uuid.uuid4().hex}"
        with self.files.open_output_stream(draft) as file:
            file.write(content)
        if not is_atomic:
            self.files.move(draft, self.path)


def locate(uri: str) -> Location:
    """Return the location of a path, or of a URI such as ``s3://bucket/images``.

    Raises :class:`BulkError` for URIs that pyarrow does not support.
    """
    try:
        if "://" not in uri:
            return Location(LocalFileSystem(), str(Path(uri).absolute()))
        return Location(*FileSystem.from_uri(uri))
    except (ArrowException, ValueError, OSError) as error:
        raise BulkError(
            f"{uri}: pyarrow cannot open it ({error}). Accepted are paths and URIs of file systems "
            "of pyarrow: s3://, gs://, abfs://, hdfs:// and file://."
        ) from None
