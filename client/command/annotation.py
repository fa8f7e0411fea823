"""Annotated images and videos: where they are written, and what is drawn."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.command.backends import ModelDescription
from client.command.errors import CommandError
from client.command.outputs import Drawing, DrawnImages, DrawnVideo, Output
from client.command.sources import Content, Item, Source, Video
from client.errors import ImageInputError
from client.results import DetectionResult

if TYPE_CHECKING:
    import PIL.Image


class Annotation:
    """What ``--draw`` asks for: one image, one video, or a folder of images.

    Raises :class:`CommandError` if ``target`` does not fit the ``sources``, before anything is
    processed.
    """

    def __init__(self, target: Path, sources: Sequence[Source], *, birds_eye: bool) -> None:
        self._target = target
        self._birds_eye = birds_eye
        self.is_video = target.suffix.lower() in DrawnVideo.CODECS
        self._is_file = self.is_video or _is_image(target)
        if self._is_file:
            _check_single(target, sources, self.is_video)
        else:
            _check_names(target, sources)

    def open(self) -> Output:
        """Return the output."""
        return DrawnVideo(self._target) if self.is_video else DrawnImages(self._path_of)

    def draw(
        self, item: Item, content: Content, result: DetectionResult, model: ModelDescription
    ) -> Drawing:
        """Return the annotated image, encoded unless it is a frame of a video to write.

        Raises :class:`ImageInputError` if Pillow cannot read the image.
        """
        from PIL import Image, ImageOps

        from client.drawing import draw_birds_eye, draw_detections

        try:
            if isinstance(content, bytes):
                _register_heic()
                image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
            else:
                image = Image.fromarray(content)
            drawn = draw_detections(
                image, result.detections, skeleton=model.skeleton, keypoint_names=model.keypoints
            )
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ImageInputError(f"{item.file} cannot be drawn: {error}") from error
        if self._birds_eye:
            drawn = _beside(drawn, draw_birds_eye(result.detections, drawn.height))
        return _pixels(drawn) if self.is_video else _encode(drawn, self._path_of(item))

    def plain(self, content: Content) -> Drawing | None:
        """Return what is written for a frame without detections; None for images."""
        return content if self.is_video and not isinstance(content, bytes) else None

    def _path_of(self, item: Item) -> Path:
        path = self._target if self._is_file else self._target / item.name
        return path if _is_image(path) else path.with_name(path.name + ".png")


def _register_heic() -> None:
    """Let Pillow open HEIC files, where the extra ``heic`` is installed."""
    try:
        import pi_heif
    except ImportError:
        return
    pi_heif.register_heif_opener()


def _is_image(path: Path) -> bool:
    from PIL import Image

    return Image.registered_extensions().get(path.suffix.lower()) in Image.SAVE


def _check_single(target: Path, sources: Sequence[Source], is_video: bool) -> None:
    if not target.parent.is_dir():
        raise CommandError(f"--draw {target}: there is no folder {target.parent}")
    if len(sources) != 1 or isinstance(sources[0], Video) != is_video:
        kind = "video or camera" if is_video else "image"
        raise CommandError(
            f"--draw {target}: this is a file for one {kind}. Received {len(sources)} inputs, or "
            "another kind: give a folder"
        )
    _check_other_file(target, sources[0])


def _check_names(folder: Path, sources: Sequence[Source]) -> None:
    if folder.suffix and not folder.is_dir():
        raise CommandError(
            f"--draw {folder}: expected a folder, a file such as NAME.png for one image, or "
            f"{', '.join('NAME' + suffix for suffix in DrawnVideo.CODECS)} for one video"
        )
    check_unique([source.name for source in sources], f"--draw {folder}")
    for source in sources:
        _check_other_file(folder / source.name, source)


def _check_other_file(path: Path, source: Source) -> None:
    if path.resolve() == Path(source.file).resolve():
        raise CommandError(f"--draw: {path} would overwrite the input; give another folder")


def check_unique(names: Sequence[Path], option: str) -> None:
    """Raise :class:`CommandError` if two images would be written to the same file."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise CommandError(
            f"{option}: {count} inputs would be written to {name}. Give the folder that contains "
            "them as the only input: names are relative to it"
        )


def _beside(left: "PIL.Image.Image", right: "PIL.Image.Image") -> "PIL.Image.Image":
    from PIL import Image

    both = Image.new("RGB", (left.width + right.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def _pixels(image: "PIL.Image.Image") -> Any:
    import numpy as np

    return np.asarray(image)


def _encode(image: "PIL.Image.Image", path: Path) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    image_format = Image.registered_extensions()[path.suffix.lower()]
    image.save(buffer, image_format, **({"quality": 95} if image_format == "JPEG" else {}))
    return buffer.getvalue()
