"""Image files that labels refer to by name, or by a path of another machine."""

import re
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Tried in this order."""


def find_image(directory: Path, name: str) -> Path | None:
    """Return the file ``name`` with one of :data:`IMAGE_SUFFIXES`, or None."""
    paths = (directory / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def image_path(directory: Path, file_name: str) -> Path:
    """Return the path of an image in ``directory``, which need not exist.

    Annotation tools such as Label Studio write the path that the image had on their server; the
    last part of it is used where ``directory`` has no file at the whole path.
    """
    path = directory / file_name
    base_name = directory / re.split(r"[/\\]", file_name)[-1]
    return base_name if base_name.is_file() and not path.is_file() else path
