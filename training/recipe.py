"""A training recipe: everything that decides the weights, read from one TOML file."""

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_export.architectures import ARCHITECTURES, INPUT_MULTIPLE, ResNetArchitecture
from model_export.normalization import NORMALIZATIONS
from training.augmentation import AugmentationRanges


class RecipeError(ValueError):
    """A recipe that cannot be trained; the message names the file and every wrong field."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    """Which pictures are trained on and which choose the best epoch.

    Paths are relative to the directory the training is started in. Without ``validation`` the last
    epoch is the result.
    """

    images: Path
    train: tuple[Path, ...] = Field(min_length=1)
    validation: Path | None = None
    repeats: int = Field(1, ge=0)
    rendered_per_epoch: int = Field(0, ge=0)


class AugmentationSection(_Section):
    """Ranges of the random views; see :class:`~training.augmentation.AugmentationRanges`."""

    scale: tuple[float, float]
    brightness: float = Field(ge=0, lt=1)
    contrast: float = Field(ge=0, lt=1)
    saturation: float = Field(ge=0, le=1)
    hue_degrees: float = Field(ge=0, le=180)
    blur_probability: float = Field(ge=0, le=1)

    def ranges(self) -> AugmentationRanges:
        """The same numbers as the augmentation takes them."""
        return AugmentationRanges(**self.model_dump())


class ScheduleSection(_Section):
    """AdamW with linear warm-up and cosine decay to zero, and the average of the weights."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_steps: int = Field(ge=0)
    average_decay: float = Field(ge=0, lt=1)
    gradient_clip: float = Field(gt=0)
    evaluate_every: int = Field(default=1, ge=1)


class Recipe(_Section):
    """One training run."""

    architecture: str
    normalization: str
    classes: tuple[str, ...] = Field(min_length=1)
    input_width: int = Field(gt=0, multiple_of=INPUT_MULTIPLE)
    input_height: int = Field(gt=0, multiple_of=INPUT_MULTIPLE)
    train_crop: int = Field(gt=0, multiple_of=INPUT_MULTIPLE)
    picture_width: int = Field(gt=0)
    seed: int = Field(ge=0)
    loader_workers: int = Field(ge=0)
    data: DataSection
    augmentation: AugmentationSection
    schedule: ScheduleSection

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        # The others' necks and stacks would need starting weights and losses of their own.
        known = sorted(
            name for name, kind in ARCHITECTURES.items() if isinstance(kind, ResNetArchitecture)
        )
        if self.architecture not in known:
            raise ValueError(f"architecture must be one of {known}")
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {sorted(NORMALIZATIONS)}")
        if self.data.repeats == 0 and self.data.rendered_per_epoch == 0:
            raise ValueError("data: repeats and rendered_per_epoch are both 0: nothing to train on")
        return self


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; raises :class:`RecipeError` before anything is trained."""
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise RecipeError(f"{path}: {error}") from error
