"""A network may start from a checkpoint, of which heads that do not fit start anew."""

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
    """Of a network that has learned two steps."""
    (tmp_path / "first").mkdir()
    first = trainer(tmp_path / "first", "res_18_slim")
    first.run()
    return tmp_path / "first/run" / BEST_CHECKPOINT


def test_all_weights_are_taken_over(checkpoint: Path, tmp_path: Path, capsys) -> None:
    second = trainer(tmp_path, "res_18_slim", start=checkpoint)
    assert "no weight anew" in capsys.readouterr().out
    fresh = trainer(tmp_path, "res_18_slim")
    pairs = zip(second.network.state_dict().items(), fresh.network.parameters(), strict=False)
    assert any((value != other).any() for (_, value), other in pairs)
    second._save(tmp_path / "again.pth", with_optimizer=False)
    saved, given = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (tmp_path / "again.pth", checkpoint)
    )
    assert saved.keys() == given.keys()
    for name, value in given.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(saved[name], value, rtol=0, atol=0)


def test_a_head_for_other_classes_starts_anew(checkpoint: Path, tmp_path: Path, capsys) -> None:
    content = torch.load(checkpoint, weights_only=True)
    state = content["state_dict"]
    state["hm.2.weight"], state["hm.2.bias"] = state["hm.2.weight"][:1], state["hm.2.bias"][:1]
    torch.save(content, checkpoint)
    trainer(tmp_path, "res_18_slim", start=checkpoint)
    assert "hm.2.weight, hm.2.bias anew" in capsys.readouterr().out


def test_another_network_s_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"start: .*these are weights of another network"):
        trainer(tmp_path, "hourglass_tiny", start=checkpoint)


def test_a_resumed_run_needs_its_start_no_more(checkpoint: Path, tmp_path: Path) -> None:
    begun = trainer(tmp_path, "res_18_slim", start=checkpoint)
    begun.run()
    checkpoint.unlink()
    resumed = trainer(tmp_path, "res_18_slim", start=checkpoint, resume=True)
    for key, value in begun.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[key], value, rtol=0, atol=0)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"start: .*none\.pth"):
        trainer(tmp_path, "res_18_slim", start=tmp_path / "none.pth")
