"""Class and keypoint names, in the index order of the upstream data sets."""

from collections.abc import Sequence
from pathlib import Path

from model_export.errors import ConfigError

COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes of COCO by increasing category id, without the gaps."""

PASCAL = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""The 20 classes of Pascal VOC."""

KITTI = ("Pedestrian", "Car", "Cyclist")
"""The classes of KITTI that *Objects as Points* detects."""

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
    "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
"""The 17 keypoints of COCO."""

COCO_SKELETON = (
    (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10),
    (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16),
)  # fmt: skip
"""Limbs: index pairs into :data:`COCO_KEYPOINTS`."""

_KNOWN = {"coco": COCO, "pascal": PASCAL}
_MAX_FILE_BYTES = 1024 * 1024


def read_classes(text: str) -> tuple[str, ...]:
    """Read class names from ``coco``, ``pascal``, a text file (one per line) or ``name,name,...``.

    Raises :class:`ConfigError` for a file that cannot be read and for an empty list.
    """
    if text in _KNOWN:
        return _KNOWN[text]
    return _read_names("--classes", text, tuple(_KNOWN))


def _read_names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    # A single name is written "car,", so that a mistyped file name is not read as a class.
    listed = text.split(",") if "," in text else _read_lines(option, Path(text), known)
    names = tuple(name.strip() for name in listed if name.strip())
    if not names:
        raise ConfigError(f"{option} {text!r} holds no names. Give at least one name.")
    return names


def _read_lines(option: str, path: Path, known: Sequence[str]) -> list[str]:
    try:
        if not path.is_file():
            raise ConfigError(
                f"{option} {str(path)!r} is not a file. Accepted: {', '.join(known)}, a text file "
                "with one name per line, or names separated by commas (a single one: 'car,')."
            )
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ConfigError(
                f"{path} has more than {_MAX_FILE_BYTES} bytes; a list of names must be smaller."
            )
        return content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"names cannot be read from {path}: {error}. "
            "UTF-8 text with one name per line is accepted."
        ) from error


def read_keypoints(text: str) -> tuple[str, ...]:
    """Read keypoint names from ``coco``, a text file (one per line) or ``name,name,...``.

    Raises :class:`ConfigError` as :func:`read_classes` does.
    """
    return COCO_KEYPOINTS if text == "coco" else _read_names("--keypoints", text, ("coco",))


def flipped_pairs(keypoints: Sequence[str]) -> list[tuple[int, int]]:
    """Return the index pairs that a horizontal flip swaps: ``left...`` and ``right...``."""
    return [
        (index, keypoints.index(opposite))
        for index, name in enumerate(keypoints)
        if (opposite := name.replace("left", "right")) != name and opposite in keypoints
    ]
