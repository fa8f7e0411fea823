"""What ``centernet-train`` stores in its checkpoints about the network, beside the weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from model_export.config import ExportConfig
from model_package import ResizeMode

_KEY = "config"
_MAX_CHARACTERS = 1024 * 1024


class TrainingRecord(BaseModel):
    """The settings of a training run that an export needs; the others are ignored.

    The record comes from an untrusted file: it supplies defaults of options, which are then
    validated like those of the command line.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    architecture: str
    """A name that :func:`model_export.architectures.find_architecture` accepts."""
    task: str
    normalization: str
    classes: tuple[str, ...]
    keypoints: tuple[str, ...] = ()
    keypoint_classes: tuple[str, ...] = ()
    input_width: int
    input_height: int
    resize: ResizeMode | None = None

    @classmethod
    def find(cls, loaded: object) -> Self | None:
        """Return the record of a checkpoint, or None if another program wrote it."""
        text = loaded.get(_KEY) if isinstance(loaded, Mapping) else None
        if not isinstance(text, str) or len(text) > _MAX_CHARACTERS:
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    def complete(self, config: ExportConfig) -> ExportConfig:
        """Return ``config`` with the settings of the training run where its options are None."""
        defaults: dict[str, Any] = {
            "architecture": self.architecture,
            "task": self.task,
            "classes": self.classes,
            "keypoints": self.keypoints or None,
            "keypoint_classes": self.keypoint_classes or None,
            "width_px": self.input_width,
            "height_px": self.input_height,
            "resize": self.resize,
            "normalization": self.normalization,
        }
        unset = {name: value for name, value in defaults.items() if getattr(config, name) is None}
        return replace(config, **unset)
