"""Import of timm where torchvision and PyTorch come from different indexes."""

import pytest
import torch

_DECLARED: list[torch.library.Library] = []  # a library that is deleted removes its operators


def require_timm() -> None:
    """Skip the test if timm is not installed, and make it importable where it is.

    The torchvision of PyPI cannot load its C++ operators beside a PyTorch for CPUs only, and its
    import fails. Backbones use none of these operators, so they are declared without code.
    """
    try:
        import timm  # noqa: F401
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
