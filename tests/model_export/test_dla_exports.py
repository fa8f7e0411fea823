"""Verification of DLA networks, which in uniform noise depend on rounding."""

import os
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from support.checkpoints import State
from support.damage import DAMAGES, damage
from torch import Tensor

from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.class_names import flipped_pairs
from model_export.config import ExportConfig
from model_export.detection_graph import DetectionGraph
from model_export.errors import VerificationError
from model_export.graph.normalization import NORMALIZATIONS
from model_export.pipeline import FLIP_ONNX_FILE, ONNX_FILE, export_package
from model_export.tasks import TASKS
from model_export.verification.images import drawn_scenes, synthetic_images
from model_export.verification.onnx_vs_torch import verify
from model_package import CenterPosesDecoder, ModelPackage
from service.engines import open_engine
from service.self_test import make_self_test

SIZES_PX = {
    "ctdet_dla_34": (256, 256),
    "ctdet_dlav0_34": (256, 256),
    "multi_pose_dla_34": (256, 256),
    "ddd_dla_34": (640, 192),
}
"""Width and height: a quarter of the pixels that the networks were trained with."""
_3D = "ddd_dla_34"
FILES = [(name, file) for name in SIZES_PX for file in (ONNX_FILE, FLIP_ONNX_FILE)]
FILES.remove((_3D, FLIP_ONNX_FILE))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("HEAVY_TESTS"), reason="takes minutes: set HEAVY_TESTS=1"
    ),
]

Export = Callable[[str], tuple[ModelPackage, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def export(
    upstream_state: Callable[[str], State], tmp_path_factory: pytest.TempPathFactory
) -> Export:
    """Return a function that exports a network with flip and dynamic size."""

    @cache
    def run(name: str) -> tuple[ModelPackage, dict[str, Tensor]]:
        directory = tmp_path_factory.mktemp(name)
        state = {k: v for k, v in upstream_state(name).items() if "num_batches" not in k}
        torch.save(state, directory / "model.pth")
        width_px, height_px = SIZES_PX[name]
        config = ExportConfig(
            name=name,
            version="1",
            width_px=width_px,
            height_px=height_px,
            max_side_px=2 * width_px,
            flip=name != _3D,  # which the task does not support
        )
        package = export_package(config, directory / "model.pth", directory / "package", print)
        return package, state

    return run


@pytest.mark.parametrize("name", SIZES_PX)
def test_packages_are_written(export: Export, name: str) -> None:
    verification = export(name)[0].manifest.verification
    # Six images, and two of another size; only the one of noise may be left out.
    assert verification.inputs in (7, 8)
    assert all("image 0: " in text for text in verification.left_out)
    assert verification.matched_fraction > 0.8


def test_openvino_agrees_with_the_references_of_several_tasks(
    weights_rule: types.ModuleType, tmp_path: Path
) -> None:
    architecture, table = ARCHITECTURES["dla_34"], weights_rule.TABLE["multi_pose_dla_34"]
    heads = {**weights_rule.TABLE[_3D]["heads"], **table["heads"]}
    task = TASKS["poses_and_boxes_3d"]
    with torch.device("meta"):
        network = architecture.build(
            {name: head.count(1, len(task.keypoints)) for name, head in task.heads.items()}
        )
    shapes = {
        architecture.key_mapping.to_checkpoint_key(key): [list(weight.shape), str(weight.dtype)]
        for key, weight in network.state_dict().items()
    }
    arrays = weights_rule.make_state(shapes, tab={**table, "heads": heads})
    state = {key: torch.from_numpy(array) for key, array in arrays.items()}
    torch.save(state, tmp_path / "model.pth")
    config = ExportConfig(name="several", version="1", width_px=128, height_px=128)
    package = export_package(config, tmp_path / "model.pth", tmp_path / "package", print)
    engine = open_engine(package, "openvino", threads=1, precision="fp32")
    make_self_test(package, engine).check(engine)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize(("name", "file"), FILES)
def test_small_mistakes_are_found(export: Export, name: str, file: str, kind: str) -> None:
    package, state = export(name)
    manifest = package.manifest
    info = identify(state)
    task = TASKS[info.task]
    decoder = manifest.decoder
    keypoints = decoder.keypoints if isinstance(decoder, CenterPosesDecoder) else ()
    graph = DetectionGraph(
        load_network(info, state),
        NORMALIZATIONS[task.normalization],
        manifest.decoder.top_k,
        task,
        file == FLIP_ONNX_FILE,
        flipped_pairs(keypoints),
    ).eval()
    damage(graph, kind)
    noise, *_ = synthetic_images(128, 192)
    images = [noise, *drawn_scenes(128, 192)]
    names = [spec.name for spec in decoder.outputs()]
    with pytest.raises(VerificationError, match="does not reproduce the network"):
        verify(graph, package.directory / file, names, images)
