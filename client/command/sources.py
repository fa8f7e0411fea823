"""Images from files, folders, videos, cameras and standard input."""

import glob
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from client.command.errors import CommandError
from client.errors import ImageInputError
from client.images import encode_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STDIN = "-"
CAMERA = "camera:"
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif"),
    }
)
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg"})

Content = Union[bytes, "NDArray[np.uint8]"]
"""An encoded image, or a frame as RGB pixels (height, width, 3)."""
Key = tuple[str, int | None]
"""File and frame of an image."""


@dataclass(frozen=True)
class Item:
    """One image. ``load`` returns it, or raises :class:`ImageInputError`.

    ``file``: as it was given or found; ``frame``: index in a video, else None; ``name``: relative
    path for files that are written for this image; ``fps``: frames per second of the video.
    """

    file: str
    load: Callable[[], Content]
    name: Path
    frame: int | None = None
    fps: float | None = None

    @property
    def key(self) -> Key:
        """File and frame."""
        return self.file, self.frame


@dataclass(frozen=True)
class ImageFile:
    """An image file, or standard input for ``-``; ``name``: as in :class:`Item`."""

    file: str
    name: Path

    def count(self) -> int | None:
        """Return the number of images, or None if it is unknown."""
        return 1

    def items(self, skipped: Container[Key]) -> Iterator[Item]:
        """Yield the images whose keys are not in ``skipped``."""
        if (self.file, None) not in skipped:
            load = _read_stdin if self.file == STDIN else lambda: encode_image(self.file)
            yield Item(self.file, load, self.name)


@dataclass(frozen=True)
class Video:
    """A video file, the URL of a stream, or a camera (``camera:0``), read with OpenCV."""

    file: str

    @property
    def name(self) -> Path:
        """Folder of the frames."""
        return Path("camera" if self.file.startswith(CAMERA) else Path(self.file).stem)

    def count(self) -> int | None:
        """Return the number of frames, or None if it is unknown."""
        if not Path(self.file).is_file():
            return None
        capture = self._open()
        frames = int(capture.get(_cv2().CAP_PROP_FRAME_COUNT))
        capture.release()
        return frames if frames > 0 else None

    def items(self, skipped: Container[Key]) -> Iterator[Item]:
        """Yield the frames whose keys are not in ``skipped``."""
        cv2, capture, frame = _cv2(), self._open(), 0
        fps = capture.get(cv2.CAP_PROP_FPS) or None
        while capture.grab():
            if (self.file, frame) not in skipped:
                is_decoded, pixels = capture.retrieve()
                load = self._fail
                if is_decoded:
                    load = _constant(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
                yield Item(self.file, load, self.name / f"{frame:06}.jpg", frame, fps)
            frame += 1
        capture.release()
        if frame == 0:
            yield Item(self.file, self._fail, self.name)

    def _open(self) -> Any:
        is_camera = self.file.startswith(CAMERA)
        source = int(self.file.removeprefix(CAMERA)) if is_camera else self.file
        return _cv2().VideoCapture(source)

    def _fail(self) -> Content:
        raise ImageInputError(f"{self.file}: OpenCV cannot decode it.")


Source = ImageFile | Video


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Return the images and videos that ``inputs`` name, each once.

    An input is a file, a folder (its images, recursively), a pattern such as ``images/*.jpg``,
    ``camera:0``, the URL of a stream, or ``-``. Raises :class:`CommandError`.
    """
    sources: dict[str, Source] = {}
    for given in inputs:
        for source in _sources_of(given):
            sources.setdefault(source.file, source)
    return list(sources.values())


def _sources_of(given: str) -> Iterator[Source]:
    path = Path(given)
    if given == STDIN:
        yield ImageFile(STDIN, Path("stdin"))
    elif given.startswith(CAMERA):
        if not given.removeprefix(CAMERA).isdecimal():
            raise CommandError(f"{given}: expected the number of a camera, such as camera:0")
        yield Video(given)
    elif "://" in given:
        yield Video(given)
    elif path.is_dir():
        yield from _images_in(path)
    elif not path.exists() and glob.has_magic(given):
        yield from _matches(given)
    elif path.is_file():
        yield _file(path)
    else:
        raise CommandError(f"{given}: there is no such file or folder")


def _images_in(folder: Path) -> Iterator[Source]:
    images = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise CommandError(f"{folder}: no image ({' '.join(sorted(IMAGE_SUFFIXES))}) was found")
    for path in sorted(images):
        yield ImageFile(str(path), path.relative_to(folder))


def _matches(pattern: str) -> Iterator[Source]:
    # Path.glob() accepts no absolute pattern.
    paths = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    files = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
    if not files:
        raise CommandError(f"{pattern}: no image or video matches this pattern")
    yield from map(_file, files)


def _file(path: Path) -> Source:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Video(str(path))
    return ImageFile(str(path), Path(path.name))


def _read_stdin() -> Content:
    return sys.stdin.buffer.read()


def _constant(content: Content) -> Callable[[], Content]:
    return lambda: content


def _cv2() -> Any:
    try:
        import cv2
    except ImportError:
        raise CommandError(
            "Videos and cameras need OpenCV. Install the extra 'video': centernet-serving[video]"
        ) from None
    return cv2
