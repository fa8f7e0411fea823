"""Import of external ONNX files of undecoded head maps, and rejection of others."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.checkpoints import State, without_counters
from torch import Tensor, nn

from benchmarks.hostile_inputs.bounds import Reading, measure
from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.cli import main
from model_export.errors import OnnxFileError
from model_export.graph.normalization import NORMALIZATIONS
from model_export.onnx.export import dynamic_batch, to_onnx
from model_export.onnx.external_model import read_external_model
from model_package import ModelPackage, load_package

HEADS = ("hm", "wh", "reg")
HEAD_NAMES = ("heatmap", "size", "offset")
CLASSES = "circle,square,triangle"
COCO = NORMALIZATIONS["coco"]
PIXELS = [
    "--mean", *map(str, COCO.mean), "--std", *map(str, COCO.std), "--order", "bgr",
]  # fmt: skip


class _RawHeads(nn.Module):
    def __init__(self, network: nn.Module, channels_last: bool) -> None:
        super().__init__()
        self.network = network
        self.channels_last = channels_last

    def forward(self, pixels: Tensor) -> list[Tensor]:
        maps = self.network(pixels.permute(0, 3, 1, 2) if self.channels_last else pixels)
        return [maps[name] for name in HEAD_NAMES]


@pytest.fixture(scope="module")
def raw_file(slim_state: State, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Return a function that exports the slim network without decoding, in either layout."""

    def make(channels_last: bool) -> Path:
        state = without_counters(slim_state)
        network = _RawHeads(load_network(identify(state), state), channels_last)
        shape = (2, 96, 160, 3) if channels_last else (2, 3, 96, 160)
        model = to_onnx(network, (torch.zeros(shape),), ["data"], HEADS, (dynamic_batch(),))
        path = tmp_path_factory.mktemp("raw") / "raw.onnx"
        onnx.save(model, path)
        return path

    return make


@pytest.mark.parametrize("channels_last", [False, True])
def test_imported_and_exported_packages_agree(
    raw_file: Callable[[bool], Path],
    slim_package: ModelPackage,
    tmp_path: Path,
    channels_last: bool,
) -> None:
    path, output = raw_file(channels_last), tmp_path / "imported"
    options = ["--classes", CLASSES, "--top-k", "50", *PIXELS]
    assert main(["import", "--onnx", str(path), "--output", str(output), *options]) == 0
    package = load_package(output)
    manifest = package.manifest
    assert (manifest.input.width_px, manifest.input.height_px) == (160, 96)
    assert manifest.provenance.architecture == "imported"
    assert manifest.provenance.normalization.startswith("bgr, pixel * 0.00392157, mean 0.407897 ")
    assert manifest.verification.matched_fraction > 0.99
    images = np.random.default_rng(8).integers(0, 256, (3, 96, 160, 3), dtype=np.uint8)
    sessions = [
        ort.InferenceSession(str(one.directory / "model.onnx"), providers=["CPUExecutionProvider"])
        for one in (package, slim_package)
    ]
    imported_outputs, exported_outputs = (
        session.run(None, {"images": images}) for session in sessions
    )
    for imported, exported in zip(imported_outputs, exported_outputs, strict=True):
        np.testing.assert_allclose(imported, exported, rtol=1e-4, atol=1e-4)


def _model(*nodes: onnx.NodeProto, **changes: object) -> onnx.ModelProto:
    """Make a file with one image input and three heads of zeros, with ``changes``."""
    parts: dict[str, object] = {
        "input": ("data", TensorProto.FLOAT, [1, 3, 64, 64]),
        "outputs": HEADS,
        "domain": "",
    } | changes
    outputs = parts["outputs"]
    assert isinstance(outputs, tuple)
    channels = {"hm": 3, "wh": 2, "reg": 2}
    makers = [
        helper.make_node(
            "Constant", [], [name],
            value=numpy_helper.from_array(
                np.zeros((1, channels.get(name, 2), 16, 16), np.float32), name
            ),
        )
        for name in outputs
    ]  # fmt: skip
    graph = helper.make_graph(
        [*nodes, *makers],
        "heads",
        [helper.make_tensor_value_info(*parts["input"])],  # type: ignore[misc]
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None, None, None])
            for name in outputs
        ],
    )
    opsets = [helper.make_opsetid("", 20)]
    if parts["domain"]:
        opsets.append(helper.make_opsetid(str(parts["domain"]), 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _external() -> onnx.ModelProto:
    model = _model()
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "outside")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    model.graph.initializer.append(tensor)
    return model


def _loop() -> onnx.NodeProto:
    """Return a loop that does not end."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"])],
        "body",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, [])],
    )
    return helper.make_node("Loop", ["", "condition"], ["end"], body=body)


def _nested_loop() -> onnx.NodeProto:
    output = helper.make_tensor_value_info("end", TensorProto.BOOL, [])
    other = helper.make_node("Identity", ["condition"], ["end"])
    branches = {
        f"{name}_branch": helper.make_graph([node], name, [], [output])
        for name, node in (("then", _loop()), ("else", other))
    }
    return helper.make_node("If", ["condition"], ["unused"], **branches)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_model(_loop()), "has Loop operators"),
        (_model(_nested_loop()), "has Loop operators"),
        (_model(*[_nested_loop()] * 7000), "more than the 20000 nodes"),
        (
            _model(outputs=("boxes", "scores")),
            "has the outputs boxes, scores; accepted are undecoded head maps",
        ),
        (_model(input=("data", TensorProto.UINT8, [1, 3, 64, 64])), "accepted is a float32 image"),
        (_model(input=("data", TensorProto.FLOAT, [1, 1, 64, 64])), "accepted is a float32 image"),
        (
            _model(helper.make_node("Magic", ["data"], ["y"], domain="acme"), domain="acme"),
            "has custom operators \\(acme\\)",
        ),
        (_model(helper.make_node("Nonsense", ["data"], ["y"])), "is not valid"),
        (_external(), "keeps weights in external files"),
    ],
)
def test_unsupported_networks_are_rejected(
    model: onnx.ModelProto, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "external.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxFileError, match=message) as caught:
        read_external_model(path)
    assert caught.value.code == "onnx_file_invalid"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "has 0 bytes"), (b"\x08\xff words", "is not an ONNX file")],
)
def test_invalid_onnx_files_are_rejected(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "external.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OnnxFileError, match=message):
        read_external_model(path)


@pytest.mark.parametrize("name", ["Magic", "acme", "data", "heads"])
def test_names_that_are_not_utf8_are_rejected(name: str, tmp_path: Path) -> None:
    node = helper.make_node("Magic", ["data"], ["y"], domain="acme")
    content = _model(node, domain="acme").SerializeToString()
    path = tmp_path / "external.onnx"
    path.write_bytes(content.replace(name.encode(), b"\xff" * len(name)))
    with pytest.raises(OnnxFileError):
        read_external_model(path)


@pytest.mark.parametrize("name", ["external.json", "external.textproto"])
def test_the_parser_does_not_depend_on_the_file_extension(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(_model().SerializeToString())
    assert read_external_model(path).layout == "nchw"


@pytest.mark.skipif(sys.platform != "linux", reason="resets the peak of memory through /proc")
def test_shapes_are_not_inferred(tmp_path: Path) -> None:
    """A chain of ``Gather`` doubles the number of dimensions at each step: 650 MB after 20."""
    nodes = [helper.make_node("ArgMax", ["data"], ["y0"], axis=1, keepdims=1)]
    nodes += [
        helper.make_node("Gather", [f"y{index}"] * 2, [f"y{index + 1}"], axis=0)
        for index in range(20)
    ]
    path = tmp_path / "external.onnx"
    path.write_bytes(_model(*nodes).SerializeToString())
    measured = measure(lambda _: Reading(read_external_model(path).layout), b"")
    assert (measured.outcome, measured.violation) == ("nchw", None)


def test_a_fixed_batch_size_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.onnx"
    path.write_bytes(_model().SerializeToString())  # heads of one image for any batch size
    output = tmp_path / "packages" / "out"
    arguments = ["import", "--onnx", str(path), "--output", str(output), "--classes", CLASSES]
    assert main([*arguments, "--top-k", "10"]) == 2
    assert "has a fixed batch size" in capsys.readouterr().err
    assert not any(output.parent.iterdir())


def test_a_third_party_network_is_imported(shared: Path, tmp_path: Path) -> None:
    path, output = shared / "weights" / "mb3_ctdet_coco80_512.onnx", tmp_path / "out"
    images = shared / "data" / "photos"
    options = ["--classes", "coco", "--scale", "1", "--verify-images", str(images)]
    assert main(["import", "--onnx", str(path), "--output", str(output), *options]) == 0
    manifest = load_package(output).manifest
    assert len(manifest.classes) == 80
    assert (manifest.input.width_px, manifest.input.height_px) == (512, 512)
    assert manifest.verification.inputs > 4
    assert manifest.verification.matched_fraction > 0.99
