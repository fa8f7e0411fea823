"""Corner pooling: comparison with upstream, in PyTorch and as an exported operator."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.key_mappings.corner_nets import corner_keys
from model_export.networks.corner_blocks import CascadePoolingBlock, PoolingBlock
from model_export.networks.corner_pooling import (
    BOTTOM_RIGHT,
    CENTER,
    TOP_LEFT,
    Pool,
    PoolPair,
    bottom_pool,
    left_pool,
    right_pool,
    top_pool,
)
from model_export.onnx.corner_pool_functions import add_corner_pool_functions

POOLS: Mapping[str, Pool] = {
    "top": top_pool,
    "bottom": bottom_pool,
    "left": left_pool,
    "right": right_pool,
}

SUMS: Mapping[str, PoolPair] = {"top_left": TOP_LEFT, "bottom_right": BOTTOM_RIGHT}

BLOCKS = [  # golden file, name in the file, block
    ("unit_cornernet", "tl_pool", lambda: PoolingBlock(16, TOP_LEFT)),
    ("unit_cornernet", "br_pool", lambda: PoolingBlock(16, BOTTOM_RIGHT)),
    ("unit_triplet", "tl_pool", lambda: CascadePoolingBlock(16, TOP_LEFT)),
    ("unit_triplet", "br_pool", lambda: CascadePoolingBlock(16, BOTTOM_RIGHT)),
    ("unit_triplet", "center_pool", lambda: PoolingBlock(16, CENTER)),
]

LONGEST_SIDE = 24


def _running_maximum(values: NDArray[np.float32], direction: str) -> NDArray[np.float32]:
    axis = 2 if direction in ("top", "bottom") else 3
    if direction in ("bottom", "right"):
        return np.maximum.accumulate(values, axis)
    return np.flip(np.maximum.accumulate(np.flip(values, axis), axis), axis)


class Pooled(nn.Module):
    """All four pools of one map, and both pooled sums of two maps."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # Without the addition, operators would connect graph inputs directly to graph outputs.
        pooled = [pool(x + 1) for pool in POOLS.values()]
        return *pooled, *(pair.sum(x + 1, -3 - 2 * x) for pair in SUMS.values())


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All operators, for maps of every size up to LONGEST_SIDE."""
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # internal to torch.export
        program = torch.onnx.export(
            Pooled().eval(),
            (torch.zeros(2, 3, 5, 7),),
            input_names=["x"],
            output_names=[*POOLS, *SUMS],
            dynamic_shapes=(free,),
            opset_version=20,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    add_corner_pool_functions(model, LONGEST_SIDE)
    onnx.checker.check_model(model, full_check=True)
    path = tmp_path_factory.mktemp("pools") / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def run(onnx_file: Path) -> Callable[[NDArray[np.float32]], dict[str, NDArray]]:
    session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    return lambda x: dict(zip([*POOLS, *SUMS], session.run(None, {"x": x - 1}), strict=True))


@pytest.mark.parametrize("direction", POOLS)
def test_corner_pools_match_upstream(upstream: Path, direction: str) -> None:
    with np.load(upstream / "goldens" / "unit_cornernet.npz") as golden:
        pooled = POOLS[direction](torch.from_numpy(golden["pool_in"]))
        np.testing.assert_array_equal(pooled.numpy(), golden[f"pool_{direction}"])
        ties = golden["pool_tie_in"]
    assert len(np.unique(ties)) < ties.size / 10
    pooled = POOLS[direction](torch.from_numpy(ties))
    np.testing.assert_array_equal(pooled.numpy(), _running_maximum(ties, direction))


@pytest.mark.parametrize("direction", POOLS)
def test_infinities_are_kept_and_nan_propagates(direction: str) -> None:
    lowest = torch.full((1, 1, 3, 4), -torch.inf)
    assert torch.equal(POOLS[direction](lowest), lowest)
    damaged = torch.zeros(1, 1, 3, 3)
    damaged[0, 0, 1, 1] = torch.nan
    spread = {"top": [[0, 1], [1, 1]], "bottom": [[1, 1], [2, 1]]}
    spread |= {"left": [[1, 0], [1, 1]], "right": [[1, 1], [1, 2]]}
    assert POOLS[direction](damaged)[0, 0].isnan().nonzero().tolist() == spread[direction]


@pytest.mark.parametrize("size", [(1, 1), (9, 13), (24, 24), (1, 24), (23, 2)])
def test_exported_operators_pool_maps_of_any_size(
    run: Callable[[NDArray[np.float32]], dict[str, NDArray]], size: tuple[int, int]
) -> None:
    # Integers: exact, with many ties and no value above 0.
    x = np.random.default_rng(7).integers(-9, 1, (2, 3, *size)).astype(np.float32)
    pooled = run(x)
    for direction in POOLS:
        np.testing.assert_array_equal(pooled[direction], _running_maximum(x, direction))
    for pair in SUMS:
        vertical, horizontal = pair.split("_")
        expected = _running_maximum(x, vertical) + _running_maximum(-1 - 2 * x, horizontal)
        np.testing.assert_array_equal(pooled[pair], expected)


def test_functions_have_one_max_pool_per_direction(onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    nodes = [node for node in model.graph.node if node.domain == "centernet"]
    names = [f"corner_pool_{name}" for name in POOLS]
    assert [node.op_type for node in nodes] == [*names, *(f"corner_pool_{n}_sum" for n in SUMS)]
    for node in nodes:
        attributes = {
            entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute
        }
        assert attributes == {"plugin_namespace": b"centernet", "plugin_version": b"1"}
    for function in model.functions:
        assert function.domain == "centernet"
        assert list(function.attribute) == ["plugin_namespace", "plugin_version"]
        pair = ["MaxPool", "MaxPool", "Add"]
        expected = pair if function.name.endswith("_sum") else pair[:1]
        assert [node.op_type for node in function.node] == expected


def test_files_without_corner_pools_get_no_functions() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "graph", [value("x", 1, [1])], [value("y", 1, [1])])
    model = onnx.helper.make_model(graph)
    add_corner_pool_functions(model, 128)
    assert not model.functions


@pytest.mark.parametrize(("file", "name", "make"), BLOCKS)
def test_pooling_blocks_match_upstream(
    upstream: Path, file: str, name: str, make: Callable[[], PoolingBlock]
) -> None:
    keypoint = {"tl_pool": "tl", "br_pool": "br", "center_pool": "ct"}[name]
    key_mapping = corner_keys(1)
    with np.load(upstream / "goldens" / f"{file}.npz") as golden:
        prefix = f"{name}_sd."
        state = {}
        for key in golden.files:
            if key.startswith(prefix):
                upstream_key = f"{keypoint}_cnvs.0.{key.removeprefix(prefix)}"
                block_key = key_mapping.to_network_key(upstream_key).split(".", 2)[2]
                state[block_key] = torch.from_numpy(golden[key])
        x, expected = torch.from_numpy(golden[f"{name}_x"]), golden[f"{name}_y"]
    block = make().eval()
    block.load_state_dict(state)
    with torch.inference_mode():
        np.testing.assert_allclose(block(x).numpy(), expected, rtol=1e-5, atol=1e-5)
