"""Float32 outputs of the heads in models that OpenVINO computes in bf16."""

from typing import Any

_LIMIT = 3e38
"""Close to the largest float32, so that no finite value is changed."""


def keep_head_outputs_in_float32(openvino: Any, model: Any) -> None:
    """Make the last convolutions of ``model`` write float32; they still multiply bf16 values.

    OpenVINO would round their outputs to bf16, which has 8 significant bits: an offset of 3.4 cells
    would become 3.41, a depth of 30.1 m would become 30.2 m. It fuses an element-wise operator that
    follows a convolution, and the fused operator has the precision of what follows, float32. A
    clamp with the limits of float32 is such an operator and is not optimised away.
    """
    reaches_convolution: set[str] = set()
    for node in reversed(model.get_ordered_ops()):
        consumers = [
            target.get_node() for output in node.outputs() for target in output.get_target_inputs()
        ]
        if any(
            _is_convolution(consumer) or consumer.get_friendly_name() in reaches_convolution
            for consumer in consumers
        ):
            reaches_convolution.add(node.get_friendly_name())
        elif _is_convolution(node):
            biases = [one for one in consumers if one.get_type_name() == "Add"]
            _clamp(openvino, (biases[0] if biases else node).output(0))


def _is_convolution(node: Any) -> bool:
    return "Convolution" in node.get_type_name()


def _clamp(openvino: Any, output: Any) -> None:
    targets = list(output.get_target_inputs())
    clamped = openvino.opset8.clamp(output, -_LIMIT, _LIMIT).output(0)
    for target in targets:
        target.replace_source_output(clamped)
