"""Networks with deterministic weights, and small exports shared by several tests."""

import importlib.util
import json
import types
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from support.checkpoints import State

from model_export.architectures import ARCHITECTURES, box_head_channels
from model_export.config import ExportConfig, NetworkInfo
from model_export.key_mappings.objects_as_points import to_checkpoint_key
from model_export.pipeline import export_package
from model_package import ModelPackage

CLASSES = ("circle", "square", "triangle")


@pytest.fixture(scope="session")
def upstream(project: Path) -> Path:
    return project / "tests" / "upstream"


@pytest.fixture(scope="session")
def weights_rule(upstream: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("weights_rule", upstream / "weights_rule.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def manifest_of(upstream: Path) -> Callable[[str], dict]:
    """Return a function that reads the tensor shapes of an upstream checkpoint by name."""

    def read(name: str) -> dict:
        return json.loads((upstream / "manifests" / f"{name}.json").read_text())

    return read


@pytest.fixture(scope="session")
def upstream_state(
    weights_rule: types.ModuleType, manifest_of: Callable[[str], dict]
) -> Callable[[str], State]:
    """Return a function that makes the weights of an upstream network, under upstream keys."""

    @lru_cache(maxsize=2)  # an hourglass takes 800 MB
    def make(name: str) -> State:
        arrays = weights_rule.make_state(manifest_of(name)["state_dict"], name)
        return {key: torch.from_numpy(array) for key, array in arrays.items()}

    return make


@pytest.fixture(scope="session")
def slim_state(weights_rule: types.ModuleType) -> State:
    """Weights of a res_18_slim for three classes, with clearly different scores."""
    with torch.device("meta"):
        network = ARCHITECTURES["res_18_slim"].build(box_head_channels(len(CLASSES)))
    manifest = {
        to_checkpoint_key(key): [list(weight.shape), str(weight.dtype)]
        for key, weight in network.state_dict().items()
    }
    arrays = weights_rule.make_state(manifest, tab=weights_rule.TABLE["ctdet_res_18"])
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


@pytest.fixture
def slim_checkpoint(slim_state: State, tmp_path: Path) -> Path:
    path = tmp_path / "slim.pth"
    torch.save({"epoch": 140, "state_dict": slim_state}, path)
    return path


@pytest.fixture(scope="session")
def slim_config() -> ExportConfig:
    """A small input that is not square, so that swapped axes are detected."""
    return ExportConfig(
        name="slim",
        version="1",
        architecture="res_18_slim",
        classes=CLASSES,
        width_px=160,
        height_px=96,
        top_k=50,
    )


@pytest.fixture(scope="session")
def slim_network() -> NetworkInfo:
    """Describe the network of ``slim_state``."""
    return NetworkInfo("res_18_slim", "boxes", num_classes=len(CLASSES))


@pytest.fixture(scope="session")
def slim_package(
    slim_state: State, slim_config: ExportConfig, tmp_path_factory: pytest.TempPathFactory
) -> ModelPackage:
    directory = tmp_path_factory.mktemp("slim")
    checkpoint = directory / "slim.pth"
    torch.save(slim_state, checkpoint)
    return export_package(slim_config, checkpoint, directory / "package", lambda _: None)
