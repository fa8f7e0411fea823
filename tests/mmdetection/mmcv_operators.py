"""The operators of MMCV that the networks need, compiled for the CPU from its source distribution.

Compiling all operators of MMCV takes much longer, and most of them need a GPU.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import mmcv
from torch.utils.cpp_extension import load

_SOURCES = ("nms.cpp", "cpu/nms.cpp", "modulated_deform_conv.cpp", "cpu/modulated_deform_conv.cpp")
_OPERATORS = {
    "softnms": "boxes scores dets iou_threshold sigma min_score method offset",
    "nms": "boxes scores iou_threshold offset",
    "modulated_deform_conv_forward": "input weight bias ones offset mask output columns kernel_h "
    "kernel_w stride_h stride_w pad_h pad_w dilation_h dilation_w group deformable_group with_bias",
    "modulated_deform_conv_backward": "input weight bias ones offset mask columns grad_input "
    "grad_weight grad_bias grad_offset grad_mask grad_output kernel_h kernel_w stride_h stride_w "
    "pad_h pad_w dilation_h dilation_w group deformable_group with_bias",
}
_DECLARATIONS = """
#include <torch/extension.h>
using at::Tensor;
Tensor softnms(Tensor, Tensor, Tensor, float, float, float, int, int);
Tensor nms(Tensor, Tensor, float, int);
void modulated_deform_conv_forward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
    int, int, const int, const int, const int, const int, const int, const int, const int,
    const int, const bool);
void modulated_deform_conv_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
    Tensor, Tensor, Tensor, Tensor, Tensor, int, int, int, int, int, int, int, int, int, int,
    const bool);
"""


def install(build_directory: Path) -> None:
    """Compile the operators and make them the compiled module of MMCV, ``mmcv._ext``."""
    build_directory.mkdir(parents=True, exist_ok=True)
    sources = Path(mmcv.__file__).parent / "ops/csrc"
    definitions = "\n".join(
        f'm.def("{name}", &{name}, ' + ", ".join(f'py::arg("{one}")' for one in given) + ");"
        for name, given in ((name, text.split()) for name, text in _OPERATORS.items())
    )
    bindings = build_directory / "bindings.cpp"
    bindings.write_text(
        f"{_DECLARATIONS}PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {{\n{definitions}\n}}\n"
    )
    files = [bindings]
    for name in _SOURCES:  # object files of sources of the same name would overwrite each other
        files.append(build_directory / name.replace("/", "_"))
        files[-1].write_text(f'#include "{sources / "pytorch" / name}"\n')
    compiled = load(
        "mmcv_operators",
        [str(file) for file in files],
        extra_include_paths=[str(sources / "common")],
        build_directory=str(build_directory),
    )
    module = ModuleType("mmcv._ext")
    module.__spec__ = ModuleSpec("mmcv._ext", None)
    module.__dict__.update({name: getattr(compiled, name) for name in _OPERATORS})
    module.__getattr__ = _missing  # type: ignore[method-assign]
    sys.modules["mmcv._ext"] = module


def _missing(name: str) -> Callable[..., None]:
    """Return a stand-in of any other operator, which MMCV looks up when it is imported."""

    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError(name)

    return missing
