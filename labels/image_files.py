"""Image files that labels refer to by name only."""

from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Tried in this order."""


def find_image(directory: Path, name: str) -> Path | None:
    """Return the file ``name`` with one of :data:`IMAGE_SUFFIXES`, or None."""
    paths = (directory / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)
