"""A package from somebody else's ONNX file, which has raw heads and takes prepared pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import compose, version_converter
from torch import Tensor, nn

from model_export.architectures import OUTPUT_STRIDE
from model_export.checkpoints.identify import closest_task
from model_export.config import ExportConfig, Plan, make_plan
from model_export.errors import ConfigError, OnnxFileError
from model_export.graph.detection_graph import DetectionGraph, PixelNormalization
from model_export.graph.heads import activate
from model_export.graph.normalization import Normalization
from model_export.onnx.export import OPSET, free_batch, to_onnx, write_onnx
from model_export.onnx.external_model import ForeignNetwork, Layout, read_foreign_onnx
from model_export.pipeline import ONNX_FILE, collect_images, tool_versions
from model_export.tasks import TASKS, Task
from model_export.verification.onnx_vs_torch import verify
from model_package import ModelPackage, draft_package
from model_package.directory import sha256_of

IMPORTED_TASKS = ("boxes", "poses", "boxes_3d")
"""What a network with raw heads under the upstream names can be for."""

_EXAMPLE_BATCH = 2
_PREPARE, _NETWORK, _PICK = "prepare/", "network/", "pick/"
"""Prefixes of names inside the composed file, so that none can clash."""


def import_package(
    config: ExportConfig,
    onnx_file: Path,
    normalization: Normalization,
    output: Path,
    progress: Callable[[str], None],
    image_dir: Path | None = None,
) -> ModelPackage:
    """Put pixel preparation before the network in ``onnx_file``, and peaks after it; package that.

    ``normalization`` is what the network expects of its pixels. The file runs as it is, one image
    at a time, as the reference that the package is compared with. Raises
    :class:`~model_export.errors.ExportError` and :class:`~model_package.PackageError`; whatever is
    raised, no package and no draft stays behind.
    """
    if config.precision != "fp32":
        raise ConfigError(
            f"an imported file cannot be brought to {config.precision}: half precision is made of "
            "a network's own layers. Import it in fp32, or export its checkpoint."
        )
    with draft_package(output) as draft:
        progress(f"Read {onnx_file}")
        foreign = read_foreign_onnx(onnx_file)
        network = OnnxNetwork(onnx_file, foreign)
        plan, maps = _make_plan(config, foreign, network, normalization)
        images = collect_images(plan, image_dir)

        progress("Put pixel preparation before the network and peaks after it")
        model = _compose(foreign, plan, normalization, maps)
        write_onnx(model, draft.directory / ONNX_FILE)
        _check_batches(draft.directory / ONNX_FILE, plan)

        progress(f"Compare the given file with the new one on {len(images)} images")
        reference = DetectionGraph(network, normalization, config.top_k, plan.task).eval()
        names = plan.output_names()
        verification = verify(reference, draft.directory / ONNX_FILE, names, images)

        progress(f"Write {output}")
        manifest = plan.manifest(
            artifacts=(draft.describe_artifact(ONNX_FILE),),
            checkpoint_sha256=sha256_of(onnx_file),
            tools=tool_versions(),
            verification=verification.model_copy(
                update={"reference": f"ONNX Runtime {ort.__version__} on the imported file, CPU"}
            ),
        )
        return draft.publish(manifest)


class OnnxNetwork(nn.Module):
    """The given file as a network: float32 (N, 3, H, W) to raw maps by head, image by image."""

    def __init__(self, onnx_file: Path, foreign: ForeignNetwork) -> None:
        super().__init__()
        self._foreign = foreign
        try:
            self._session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common class of their own
            raise OnnxFileError(f"ONNX Runtime refuses {onnx_file}: {str(error)[:300]}.") from error

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Run; the session takes one image at a time, whatever the file says."""
        pixels = to_layout(images, self._foreign.layout)
        rows = [self._run(pixels[index : index + 1]) for index in range(len(pixels))]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _run(self, image: Tensor) -> dict[str, Tensor]:
        outputs = self._session.run(
            list(self._foreign.heads.values()),
            {self._foreign.input_name: image.contiguous().numpy()},
        )
        return {
            name: torch.from_numpy(values)
            for name, values in zip(self._foreign.heads, outputs, strict=True)
        }


def to_layout(images: Tensor, layout: Layout) -> Tensor:
    """Put the channels of (N, 3, H, W) where the network wants them."""
    return images if layout == "nchw" else images.permute(0, 2, 3, 1)


class _Preparation(nn.Module):
    """uint8 RGB (N, H, W, 3) to what the given network takes."""

    def __init__(self, normalization: Normalization, layout: Layout) -> None:
        super().__init__()
        self.normalize = PixelNormalization(normalization)
        self.layout = layout

    def forward(self, images: Tensor) -> Tensor:
        """Prepare; float32 (N, 3, H, W) or (N, H, W, 3)."""
        return to_layout(self.normalize(images), self.layout)


class _Picking(nn.Module):
    """Raw maps, in a list in the order of ``heads``, to the outputs of the task's decoder."""

    def __init__(self, task: Task, heads: Sequence[str], top_k: int) -> None:
        super().__init__()
        self.task = task
        self.heads = tuple(heads)
        self.top_k = top_k

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Pick; (N, C, H, W) each."""
        raw = dict(zip(self.heads, maps, strict=True))
        return self.task.pick(activate(raw, self.task.heads), self.top_k)


def _make_plan(
    config: ExportConfig,
    foreign: ForeignNetwork,
    network: OnnxNetwork,
    normalization: Normalization,
) -> tuple[Plan, dict[str, Tensor]]:
    """Find out by running it what the network gives; its maps for a black image come along."""
    task_name = config.task or closest_task(foreign.heads, IMPORTED_TASKS)
    width_px, height_px = TASKS[task_name].size_px
    width_px = foreign.width_px or config.width_px or width_px
    height_px = foreign.height_px or config.height_px or height_px
    try:
        with torch.inference_mode():
            maps = network(torch.zeros(1, 3, height_px, width_px))
    except Exception as error:  # as above
        raise OnnxFileError(
            f"the network cannot be run on an input of {width_px}x{height_px}: {str(error)[:300]}."
        ) from error
    channels = {name: values.shape[1] for name, values in maps.items()}
    plan = make_plan(
        _settled(config, width_px, height_px, normalization),
        "imported",
        32,
        task_name,
        channels["heatmap"],
        channels.get("keypoint_offsets", 0) // 2,
    )
    expected = plan.task.head_channels(channels, len(plan.classes), len(plan.keypoints))
    cells = (height_px // OUTPUT_STRIDE, width_px // OUTPUT_STRIDE)
    _check_maps(maps, expected, cells)
    return plan, {name: maps[name] for name in expected}


def _settled(
    config: ExportConfig, width_px: int, height_px: int, normalization: Normalization
) -> ExportConfig:
    mean, std = (" ".join(f"{v:g}" for v in v3) for v3 in (normalization.mean, normalization.std))
    return replace(
        config,
        width_px=width_px,
        height_px=height_px,
        normalization=f"{normalization.channel_order}, pixel * {normalization.scale:g}, "
        f"mean {mean}, std {std}",
    )


def _check_maps(
    maps: Mapping[str, Tensor], expected: Mapping[str, int], cells: tuple[int, int]
) -> None:
    for name, channels in expected.items():
        wanted = (1, channels, *cells)
        found = tuple(maps[name].shape) if name in maps else "none"
        if found != wanted:
            raise OnnxFileError(
                f"the head for {name} is {wanted} in such a network, but the file has {found}. "
                "Name another --task, or export the raw heads at a quarter of the input's size."
            )


def _compose(
    foreign: ForeignNetwork, plan: Plan, normalization: Normalization, maps: Mapping[str, Tensor]
) -> onnx.ModelProto:
    """Put the three graphs into one: uint8 (N, H, W, 3) to the decoder's outputs."""
    spec = plan.input
    images = torch.zeros(_EXAMPLE_BATCH, spec.height_px, spec.width_px, 3, dtype=torch.uint8)
    prepare = to_onnx(
        _Preparation(normalization, foreign.layout),
        (images,),
        ["images"],
        ["pixels"],
        (free_batch(),),
    )
    batch = free_batch()
    pick = to_onnx(
        _Picking(plan.task, list(maps), plan.config.top_k),
        ([values.expand(_EXAMPLE_BATCH, -1, -1, -1).clone() for values in maps.values()],),
        list(maps),
        plan.output_names(),
        ([batch] * len(maps),),
    )
    network = _with_free_batch(foreign, [foreign.heads[name] for name in maps])
    network.ir_version = prepare.ir_version  # merging asks for equal ones
    head = compose.merge_models(
        compose.add_prefix(prepare, _PREPARE, rename_inputs=False),
        compose.add_prefix(network, _NETWORK),
        io_map=[(f"{_PREPARE}pixels", f"{_NETWORK}{foreign.input_name}")],
    )
    return compose.merge_models(
        head,
        compose.add_prefix(pick, _PICK, rename_outputs=False),
        io_map=[(f"{_NETWORK}{foreign.heads[name]}", f"{_PICK}{name}") for name in maps],
    )


def _with_free_batch(foreign: ForeignNetwork, outputs: Sequence[str]) -> onnx.ModelProto:
    """Bring the network to our version of the operators, and unsay how long its batch axis is."""
    try:
        model = version_converter.convert_version(foreign.model, OPSET)
    except Exception as error:  # the converter's own errors are plain RuntimeErrors, and others
        raise OnnxFileError(
            f"the network's operators cannot be brought to version {OPSET}: {str(error)[:300]}."
        ) from error
    graph = model.graph
    del graph.value_info[:]
    kept = [entry for entry in graph.output if entry.name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    for entry in [*graph.input, *graph.output]:
        if entry.name == foreign.input_name or entry.name in outputs:
            entry.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def _check_batches(onnx_file: Path, plan: Plan) -> None:
    """Raise unless the composed file takes several images: some networks have one built in."""
    session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    spec = plan.input
    images = np.zeros((_EXAMPLE_BATCH, spec.height_px, spec.width_px, 3), np.uint8)
    problem = OnnxFileError(
        "the network takes only as many images at once as it was exported with. "
        "Export it again with a free batch axis."
    )
    try:
        outputs = session.run(None, {"images": images})
    except Exception as error:  # ONNX Runtime's exceptions have no common class of their own
        raise problem from error
    if any(len(rows) != len(images) for rows in outputs):
        raise problem
