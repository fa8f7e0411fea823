"""Training may start from a checkpoint; heads of another shape are newly initialized."""

from pathlib import Path

import pytest
import torch
from support.configs import write_config

from training.config import ConfigError
from training.trainer import BEST_CHECKPOINT, Trainer


def trainer(folder: Path, architecture: str, *, resume: bool = False, **changes: object) -> Trainer:
    config = write_config(folder, architecture, "boxes", images=1)
    return Trainer(config.model_copy(update=changes), folder / "run", resume=resume)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Checkpoint of a network after one epoch."""
    (tmp_path / "first").mkdir()
    first = trainer(tmp_path / "first", "res_18_slim")
    first.run()
    return tmp_path / "first/run" / BEST_CHECKPOINT


def test_all_weights_are_loaded(checkpoint: Path, tmp_path: Path, capsys) -> None:
    second = trainer(tmp_path, "res_18_slim", start=checkpoint)
    assert "newly initialized: no weights" in capsys.readouterr().out
    fresh = trainer(tmp_path, "res_18_slim")
    pairs = zip(second.network.state_dict().items(), fresh.network.parameters(), strict=False)
    assert any((value != other).any() for (_, value), other in pairs)
    second._save(tmp_path / "again.pth", with_optimizer=False)
    saved, loaded = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (tmp_path / "again.pth", checkpoint)
    )
    assert saved.keys() == loaded.keys()
    for name, value in loaded.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(saved[name], value, rtol=0, atol=0)


def test_a_head_for_other_classes_is_newly_initialized(
    checkpoint: Path, tmp_path: Path, capsys
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    state = content["state_dict"]
    state["hm.2.weight"], state["hm.2.bias"] = state["hm.2.weight"][:1], state["hm.2.bias"][:1]
    torch.save(content, checkpoint)
    trainer(tmp_path, "res_18_slim", start=checkpoint)
    assert "newly initialized: hm.2.weight, hm.2.bias" in capsys.readouterr().out


def test_weights_of_another_network_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"start: .*these are weights of another network"):
        trainer(tmp_path, "hourglass_tiny", start=checkpoint)


def test_resuming_does_not_need_the_start_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    original = trainer(tmp_path, "res_18_slim", start=checkpoint)
    original.run()
    checkpoint.unlink()
    resumed = trainer(tmp_path, "res_18_slim", start=checkpoint, resume=True)
    for key, value in original.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[key], value, rtol=0, atol=0)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"start: .*none\.pth"):
        trainer(tmp_path, "res_18_slim", start=tmp_path / "none.pth")
