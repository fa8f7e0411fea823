"""Run the corner pooling plugins in TensorRT's Python code, without its libraries or a GPU.

Runs as a process of its own. Arguments: a folder with TensorRT's bindings and lean runtime, and an
output file. Takes the plugins through the steps of an engine build and writes their return values
to the file, as JSON. Real: the bindings, the quick plugin package and the plugin registry (of the
lean runtime). Stubs: builder and parser, which are not called, and symbolic dimensions, which
TensorRT creates in its builder.
"""

import ctypes
import importlib
import itertools
import json
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STUBS = {
    "libnvinfer.so": """
        extern void* getPluginRegistry(void);
        void* createInferBuilder_INTERNAL(void* logger, int version) { return 0; }
        void* getBuilderPluginRegistry(int capability) { return getPluginRegistry(); }""",
    "libnvonnxparser.so": """
        void* createNvOnnxParser_INTERNAL(void* network, void* logger, int version) { return 0; }
        void* createNvOnnxParserRefitter_INTERNAL(void* r, void* l, int v) { return 0; }
        int getNvOnnxParserVersion(void) { return 0; }""",
    # Logs an error with the virtual function log(severity, message) of nvinfer1::ILogger.
    "libnvinfer_plugin.so": """
        #include <stdbool.h>
        #include <stdio.h>
        bool initLibNvInferPlugins(void* logger, const char* name_space) {
            char message[100];
            snprintf(message, sizeof message, "plugins registered in '%s'", name_space);
            (*(void (***)(void*, int, const char*))logger)[LOG](logger, 1, message);
            return true;
        }""",
}
LOG_BY_MAJOR_VERSION = {"10": 0, "11": 4}
"""Index of ``log`` among the virtual functions of ``nvinfer1::ILogger``.

In TensorRT 11 it comes after the two functions and the destructor, which takes two places, of
``IVersionedInterface``.
"""
CHANNELS = 3
FREE_SHAPES = (
    (1, CHANNELS, 1, 1),
    (2, CHANNELS, 7, 5),
    (3, CHANNELS, 33, 40),
    (9, CHANNELS, 4, 66),
)
FIXED_SIZE = (40, 36)


class Dim:
    """A dimension or an expression, as a function of the values of the dynamic dimensions."""

    def __init__(self, value: Callable[[dict[str, int]], int], constant: bool) -> None:
        self.value = value
        self.constant = constant

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        return self.value({})

    def is_size_tensor(self) -> bool:
        return False


class ExpressionBuilder:
    """The operations that TensorRT offers plugins for symbolic dimensions."""

    def __init__(self, trt: Any) -> None:
        kinds = trt.DimensionOperation
        self._operations: dict[Any, Callable[[int, int], int]] = {
            kinds.SUM: lambda a, b: a + b,
            kinds.SUB: lambda a, b: a - b,
            kinds.PROD: lambda a, b: a * b,
            kinds.FLOOR_DIV: lambda a, b: a // b,
        }

    def constant(self, value: int) -> Dim:
        return Dim(lambda _: value, constant=True)

    def operation(self, kind: Any, a: Dim, b: Dim) -> Dim:
        function = self._operations[kind]
        return Dim(lambda free: function(a.value(free), b.value(free)), a.constant and b.constant)


class Setter:
    """Receives launch parameters by name and kernel arguments by index."""

    def __init__(self) -> None:
        self.arguments: dict[int, Any] = {}

    def __setitem__(self, index: int, value: Any) -> None:
        self.arguments[index] = value


def load(folder: Path) -> tuple[Any, Any]:
    """Load ``tensorrt`` and ``tensorrt.plugin`` from ``folder``."""
    lean = folder / "tensorrt_lean_libs"
    major = next(lean.glob("libnvinfer_lean.so.*")).name.rpartition(".")[2]
    with tempfile.TemporaryDirectory() as directory:
        for name, code in STUBS.items():
            source, library = Path(directory, "stub.c"), Path(directory, f"{name}.{major}")
            source.write_text(code)
            command = [
                "gcc",
                "-shared",
                "-fPIC",
                "-o",
                library,
                source,
                f"-Wl,-soname,{library.name}",
                f"-DLOG={LOG_BY_MAJOR_VERSION[major]}",
            ]
            if name == "libnvinfer.so":
                command += [f"-L{lean}", f"-l:libnvinfer_lean.so.{major}", f"-Wl,-rpath,{lean}"]
            subprocess.run(command, check=True)
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    bindings = importlib.import_module("tensorrt_bindings")
    trt = types.ModuleType("tensorrt")
    public = {name: value for name, value in vars(bindings).items() if not name.startswith("__")}
    vars(trt).update(public, __version__=bindings.__version__, IDimensionExpr=Dim)
    sys.modules["tensorrt"] = trt
    quick = importlib.import_module("tensorrt_bindings.plugin")
    vars(trt)["plugin"] = sys.modules["tensorrt.plugin"] = quick
    return trt, quick


def records(trt: Any, quick: Any) -> Iterator[dict[str, Any]]:
    """Yield the return values of each plugin for each format, kind of shape and tactic."""
    from model_export.networks.corner_pool_ops import INPUTS

    formats = {"fp32": trt.float32, "fp16": trt.float16, "bf16": trt.bfloat16}
    for op_type, kernel_format, free in itertools.product(INPUTS, formats, (True, False)):
        creator = trt.get_plugin_registry().get_creator(op_type, "1", "centernet")
        plugin = creator.create_plugin(
            creator.name,
            "centernet",
            trt.PluginFieldCollection([]),
            trt.TensorRTPhase.BUILD,
            trt.QuickPluginCreationRequest.STRICT_AOT,
        )
        yield from _build(trt, quick, plugin, (op_type, kernel_format, free), formats)


def _build(
    trt: Any, quick: Any, plugin: Any, case: tuple[str, str, bool], formats: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    from model_export.networks.corner_pool_ops import INPUTS

    op_type, kernel_format, free = case
    inputs, dtype, builder = INPUTS[op_type], formats[kernel_format], ExpressionBuilder(trt)
    dims = _dims(builder, free)
    output_types = plugin.get_output_data_types([dtype] * inputs, [4] * inputs)
    assert output_types == [dtype]
    # get_output_shapes() fills a DimsExprs of the real builder; this is the part of it in Python.
    quick._tensor.SymIntExpr._exprBuilder = builder
    plugin.input_descs = [_description(quick, dtype, dims) for _ in range(inputs)]
    plugin.output_descs = (plugin.register_function(*plugin.input_descs),)
    output_dims = [plugin.output_descs[0].shape_expr[axis]._expr for axis in range(4)]
    io = [_profile(trt, dtype, free) for _ in range(inputs + 1)]
    combinations = plugin.get_supported_format_combinations(io, inputs)
    plugin.configure_plugin(io[:inputs], io[inputs:])
    for tactic in plugin.get_valid_tactics():
        plugin.set_tactic(tactic)
        parameters, setter = Setter(), Setter()
        plugin.get_launch_params([dims] * inputs, io, inputs, parameters, setter, builder)
        descriptions = [entry.desc for entry in io]
        name, ptx = plugin.get_kernel(descriptions[:inputs], descriptions[inputs:])
        assert all(s.dtype == trt.PluginArgDataType.INT32 for s in setter.arguments.values())
        for shape in FREE_SHAPES if free else [(n, CHANNELS, *FIXED_SIZE) for n in (1, 8, 9)]:
            values = dict(zip("NCHW", shape, strict=True))
            yield {
                "op_type": op_type,
                "format": kernel_format,
                "combinations": [str(entry.type) for entry in combinations],
                "layouts": sorted({str(entry.format) for entry in combinations}),
                "tactic": tactic,
                "shape": shape,
                "output_shape": [dim.value(values) for dim in output_dims],
                "kernel": name,
                "ptx_entries": [
                    line.split("(")[0].split()[-1]
                    for line in ptx.decode().splitlines()
                    if ".entry" in line
                ],
                "grid": [_value(getattr(parameters, f"grid_{axis}"), values) for axis in "xyz"],
                "block": [_value(getattr(parameters, f"block_{axis}"), values) for axis in "xyz"],
                "shared_mem": _value(parameters.shared_mem, values),
                "arguments": [
                    _value(entry, values) for _, entry in sorted(setter.arguments.items())
                ],
            }


def _value(expression: Any, values: dict[str, int]) -> int:
    result: int = expression.expr.value(values)
    return result


def _dims(builder: ExpressionBuilder, free: bool) -> list[Dim]:
    named = [Dim(lambda values, name=name: values[name], constant=False) for name in "NCHW"]  # type: ignore[misc]
    sizes = named[2:] if free else [builder.constant(side) for side in FIXED_SIZE]
    return [named[0], builder.constant(CHANNELS), *sizes]


def _description(quick: Any, dtype: Any, dims: list[Dim]) -> Any:
    description = quick.TensorDesc()
    description.dtype = dtype
    description.shape_expr = quick.ShapeExprs(4)
    for axis, dim in enumerate(dims):
        description.shape_expr[axis] = quick.ShapeExpr(dim)
    description._immutable = True
    return description


def _profile(trt: Any, dtype: Any, free: bool) -> Any:
    now, profile = trt.PluginTensorDesc(), trt.DynamicPluginTensorDesc()
    size = (-1, -1) if free else FIXED_SIZE
    now.dims, now.type, now.format = trt.Dims((-1, CHANNELS, *size)), dtype, trt.TensorFormat.LINEAR
    profile.desc = now
    for name, batch, sides in (("min", 1, (1, 1)), ("opt", 4, (33, 40)), ("max", 9, (64, 66))):
        setattr(profile, name, trt.Dims((batch, CHANNELS, *(sides if free else FIXED_SIZE))))
    return profile


def _readable(name: str) -> property:
    return property(
        lambda self: getattr(self, name), lambda self, value: setattr(self, name, value)
    )


def main() -> None:
    trt, quick = load(Path(sys.argv[1]))

    # The fields of TensorRT accept only expressions of the real builder and cannot be read.
    for field in ("expr", "dtype"):
        setattr(quick._tensor.SymExprImpl, field, _readable(f"_{field}"))
    from model_export.engines.corner_pooling_plugin import register_corner_pooling

    register_corner_pooling(trt)
    register_corner_pooling(trt)  # the second call does nothing
    result = {"version": trt.__version__, "records": list(records(trt, quick))}
    Path(sys.argv[2]).write_text(json.dumps(result))  # standard output has the log of the registry


if __name__ == "__main__":
    main()
