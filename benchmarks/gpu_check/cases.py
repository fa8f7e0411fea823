"""The networks to check: one per task, with generated weights, so nothing is downloaded.

The weights are generated as those of the golden files in ``tests/upstream``.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.notes import Notes
from model_export.architectures import ARCHITECTURES, box_head_channels
from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.config import ExportConfig, ResolvedExport, resolve_export
from model_export.detection_graph import DetectionGraph
from model_export.key_mappings.objects_as_points import to_checkpoint_key
from model_package import ModelPackage

UPSTREAM = Path(__file__).parents[2] / "tests" / "upstream"


@dataclass(frozen=True)
class Case:
    """One network.

    ``weights`` is the name of a list in ``tests/upstream/manifests``; None for the small network.
    """

    config: ExportConfig
    weights: str | None
    timed: bool = False

    @property
    def name(self) -> str:
        """Name in the report."""
        return self.config.name


CASES = (
    Case(ExportConfig(name="res_18-boxes", version="1"), "ctdet_res_18", timed=True),
    Case(ExportConfig(name="dla_34-boxes", version="1"), "ctdet_dla_34", timed=True),
    Case(
        ExportConfig(name="res_18-boxes-free-size", version="1", max_side_px=1024), "ctdet_res_18"
    ),
    Case(ExportConfig(name="res_50-poses", version="1"), "multi_pose_res_50"),
    Case(ExportConfig(name="dla_34-boxes-3d", version="1"), "ddd_dla_34"),
    Case(ExportConfig(name="centernet52-triplets", version="1"), "triplet_centernet52"),
)
SMOKE_CASES = (
    Case(
        ExportConfig(
            name="slim",
            version="1",
            architecture="res_18_slim",
            classes=("circle", "square", "triangle"),
            width_px=96,
            height_px=64,
            top_k=20,
        ),
        None,
        timed=True,
    ),
)


def generate_weights(case: Case) -> dict[str, Tensor]:
    """Generate the weights of a case, with the names of the upstream checkpoints."""
    rule = _load_weights_rule()
    if case.weights is None:
        with torch.device("meta"):
            network = ARCHITECTURES["res_18_slim"].build(box_head_channels(3))
        shapes = {
            to_checkpoint_key(key): [list(weight.shape), str(weight.dtype)]
            for key, weight in network.state_dict().items()
        }
        arrays = rule.make_state(shapes, tab=rule.TABLE["ctdet_res_18"])
    else:
        path = UPSTREAM / "manifests" / f"{case.weights}.json"
        arrays = rule.make_state(json.loads(path.read_text())["state_dict"], case.weights)
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def make_graph(
    case: Case, weights: dict[str, Tensor], wrap: Callable[[nn.Module, ResolvedExport], nn.Module]
) -> tuple[DetectionGraph, ResolvedExport]:
    """Build the exported graph in PyTorch; ``wrap`` may change the precision of the network."""
    # Reading a checkpoint drops these counters.
    state = {key: value for key, value in weights.items() if "num_batches_tracked" not in key}
    contents = identify(state, case.config.architecture, case.config.task)
    plan = resolve_export(case.config, contents.network)
    network = wrap(load_network(contents, state), plan)
    count = plan.task.peaks_per_heatmap or plan.config.top_k
    graph = DetectionGraph(network, plan.pixel_normalization, count, plan.task)
    return graph.eval(), plan


def make_package(
    case: Case, weights: dict[str, Tensor], directory: Path, notes: Notes
) -> ModelPackage:
    """Export a case in fp32 and fp16, or only in fp32 if fp16 does not suit the network."""
    from model_export.errors import Fp16Error
    from model_export.pipeline import export_package

    checkpoint = directory / f"{case.name}.pth"
    torch.save(weights, checkpoint)

    def export(config: ExportConfig) -> ModelPackage:
        return export_package(config, checkpoint, directory / case.name, lambda _: None)

    try:
        return export(replace(case.config, precision="fp16"))
    except Fp16Error as error:
        notes.skip(f"{case.name} in half precision", str(error))
        return export(case.config)
    finally:
        checkpoint.unlink()


def _load_weights_rule() -> ModuleType:
    spec = importlib.util.spec_from_file_location("weights_rule", UPSTREAM / "weights_rule.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
