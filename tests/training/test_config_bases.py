"""Configurations that override values of a base configuration."""

import shutil
from pathlib import Path

import pytest
from support.configs import assert_refused, read_config


@pytest.fixture
def longer(project: Path, tmp_path: Path) -> Path:
    for name in ("people.toml", "people_longer.toml"):
        shutil.copy(project / "training/configs" / name, tmp_path)
    return tmp_path / "people_longer.toml"


def test_missing_values_come_from_the_base(longer: Path) -> None:
    base, config = read_config(longer.with_name("people.toml")), read_config(longer)
    overridden = {"seed", "start", "schedule", "loss_weights"}
    assert base.model_dump(exclude=overridden) == config.model_dump(exclude=overridden)
    assert (base.seed, config.seed) == (17, 19)
    assert config.schedule == base.schedule.model_copy(update={"epochs": 42, "learning_rate": 8e-4})


def test_tables_are_merged_and_other_values_replaced(longer: Path) -> None:
    longer.write_text(longer.read_text() + "[augmentation]\nscale = [1.0, 1.0]\n")
    base, config = read_config(longer.with_name("people.toml")), read_config(longer)
    assert config.augmentation.scale == (1.0, 1.0)
    assert config.augmentation.hue_degrees == base.augmentation.hue_degrees


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("missing.toml", "missing.toml"),
        ("people_longer.toml", "base is not a key; accepted: architecture, task"),
    ],
)
def test_a_base_must_exist_and_have_no_base_itself(longer: Path, base: str, message: str) -> None:
    assert_refused(longer, '"people.toml"', f'"{base}"', message)
