"""Builds of real TensorRT-RTX engines of whole networks, without a GPU; no engine is run.

``make test-engines`` installs the library and prints the cost of each build.
"""

import inspect
import json
import shutil
import signal
import types
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from support.builds import FAKES, contents, engines_of, start_build, tiny_graph, write_package
from support.checkpoints import State, without_counters
from torch import Tensor, nn

from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.config import ExportConfig, resolve_export
from model_export.detection_graph import DetectionGraph
from model_export.graph.normalization import NORMALIZATIONS
from model_export.onnx.export import export_onnx
from model_package import load_package

pytestmark = pytest.mark.engines

VERSION = "1.7.1.116"
LIMIT_S = 600
NETWORKS = (
    *("blood_cells", "ctdet_dla_34", "ctdet_dla_34 free", "ddd_dla_34", "exdet_dla_34"),
    *("cornernet_squeeze", "triplet_centernet52"),
)


@pytest.fixture(scope="module", autouse=True)
def library() -> types.ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="`make test-engines` installs it")


class HalfBody(nn.Module):
    """A network in half precision with float32 inputs and outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.network(images.half())
        return {name: values.float() for name, values in maps.items()}


def _write_network(directory: Path, state: State, max_side_px: int | None) -> None:
    """Write a package with the network of ``state`` in fp32 and fp16, not verified."""
    state = without_counters(state)
    identified = identify(state, None, None)
    plan = resolve_export(
        ExportConfig(name="network", version="1", max_side_px=max_side_px), identified.network
    )
    network = load_network(identified, state).eval()
    spec, names, files = plan.input, plan.output_names(), {}
    for file, make_body in {"model.onnx": nn.Identity, "model_fp16.onnx": HalfBody}.items():
        body = network if make_body is nn.Identity else make_body(network)
        graph = DetectionGraph(
            body,
            NORMALIZATIONS[plan.normalization],
            plan.task.peaks_per_heatmap or plan.config.top_k,
            plan.task,
        )
        path = directory.with_suffix(".onnx")
        export_onnx(
            *(graph.eval(), spec.height_px, spec.width_px, names, path, spec.free_size),
            output_stride=plan.network.output_stride,
        )
        files[file] = path.read_bytes()
        path.unlink()
    write_package(directory, files, plan.input, plan.decoder())


def _half_convolutions(path: Path) -> bytes:
    """Make every convolution of a file compute in half precision, with casts around it."""
    model = onnx.load(path)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type in ("Conv", "ConvTranspose"):
            halves = [f"{node.output[0]}/half_{index}" for index in range(len(node.input))]
            nodes[-1:-1] = [
                helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16)
                for name, half in zip(node.input, halves, strict=True)
            ]
            output = node.output[0]
            node.input[:] = halves
            node.output[:] = [f"{output}/half"]
            nodes.append(
                helper.make_node("Cast", list(node.output), [output], to=TensorProto.FLOAT)
            )
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module", params=NETWORKS)
def network(
    request: pytest.FixtureRequest,
    project: Path,
    upstream_state: Callable[[str], State],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A package with one network in both precisions."""
    directory = tmp_path_factory.mktemp("network") / "package"
    name, _, free = request.param.partition(" ")
    if name == "blood_cells":
        bundled = load_package(project / "models" / name)
        path = bundled.directory / "model.onnx"
        files = {"model.onnx": path.read_bytes(), "model_fp16.onnx": _half_convolutions(path)}
        write_package(directory, files, bundled.manifest.input, bundled.manifest.decoder)
    else:
        _write_network(directory, upstream_state(name), 1024 if free else None)
    return directory


@pytest.mark.parametrize(("capability", "target"), [("8.9", b"sm89"), ("12.0", b"sm120")])
def test_builds_engines_of_whole_networks(
    network: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    capability: str,
    target: bytes,
) -> None:
    process = start_build(network, "--compute-capability", capability, libraries=None)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    with capsys.disabled():
        print(f"\n{request.node.callspec.id}\n{err}{out}", end="")

    engines = [e for e in engines_of(network) if e.requires.compute_capability == capability]
    sizes = {engine.precision: engine.size_bytes for engine in engines}
    assert sizes.keys() == {"fp32", "fp16"}
    assert sizes["fp16"] < 0.7 * sizes["fp32"]  # the weights halve, the code of kernels does not
    for engine in engines:
        assert engine.requires.version == VERSION
        assert engine.batch.model_dump() == {"min": 1, "opt": 8, "max": 8}
        content = (network / engine.file).read_bytes()
        assert b"accelerators={%s }" % target in content  # the target, as the library writes it
        (
            network / engine.file
        ).unlink()  # saves disk space; the next build removes it from the package


def test_builds_an_int8_engine_of_a_quantized_network(project: Path, tmp_path: Path) -> None:
    directory = tmp_path / "package"
    shutil.copytree(project / "models" / "blood_cells", directory)
    options = ("--precision", "int8", "--compute-capability", "8.9")
    process = start_build(directory, *options, libraries=None)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    (engine,) = engines_of(directory)
    assert engine.precision == "int8"
    assert engine.file.startswith("model_int8.")
    assert b"accelerators={sm89 }" in (directory / engine.file).read_bytes()
    load_package(directory)


def test_fp16_files_have_deformable_convolutions_in_half_precision(
    upstream_state: Callable[[str], State], tmp_path: Path
) -> None:
    """A condition of the builds above: they show that these can be lowered."""
    _write_network(tmp_path / "package", upstream_state("ctdet_dla_34"), None)
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "package" / "model_fp16.onnx"))
    types_ = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    deform = [node for node in model.graph.node if node.op_type == "DeformConv"]
    assert len(deform) == 16
    assert {types_[node.input[0]] for node in deform} == {TensorProto.FLOAT16}


@pytest.fixture
def triplets(upstream_state: Callable[[str], State], tmp_path: Path) -> Path:
    """The network that takes longest to build."""
    _write_network(tmp_path / "package", upstream_state("triplet_centernet52"), None)
    return tmp_path / "package"


def test_interrupted_builds_end_at_once_and_leave_no_files(triplets: Path) -> None:
    before = contents(triplets)
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        options = ("--compute-capability", "8.9", "--progress", "json")
        process = start_build(triplets, *options, libraries=None)
        assert process.stdout is not None
        fraction = 0.0
        while fraction < 0.25:  # in the middle of the library's call
            fraction = json.loads(process.stdout.readline())["progress"]
        process.send_signal(number)
        process.communicate(timeout=10)
        assert process.returncode == status
        remaining = contents(triplets)
        remaining.pop(".build.lock", None)  # only after SIGKILL, and not locked
        assert remaining == before


def test_reports_files_and_targets_that_the_real_library_rejects(tmp_path: Path) -> None:
    for operator, capability, message in (
        ("NonMaxSuppression", "8.9", "does not accept model.onnx: node '/first' (NonMaxSuppr"),
        ("Cast", "9.0", "does not build for compute capability 9.0. Accepted: 7.5, 8.0, 8.6, 8.9"),
    ):
        directory = tmp_path / operator
        write_package(directory, {"model.onnx": tiny_graph(operator=operator)})
        process = start_build(directory, "--compute-capability", capability, libraries=None)
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 2
        assert message in err


def test_the_real_library_has_every_name_of_the_fake(
    library: types.ModuleType,
) -> None:
    spec = spec_from_file_location("fake", FAKES / "tensorrt_rtx.py")
    assert spec is not None
    assert spec.loader is not None
    fake = module_from_spec(spec)
    spec.loader.exec_module(fake)
    classes = [
        entry
        for name, entry in inspect.getmembers(fake, inspect.isclass)
        if entry.__module__ == "fake" and not name.startswith("_")
    ]
    assert len(classes) == 11
    for entry in classes:
        real = getattr(library, entry.__name__)
        missing = [name for name in vars(entry) if name[0] != "_" and not hasattr(real, name)]
        assert not missing, entry.__name__
