"""2D boxes from center points (*Objects as Points*, Zhou et al. 2019, section 4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import CenterBoxesDecoder
from service.decoders.selection import select_top_k
from service.decoders.types import DetectionOptions, Detections, ModelOutput


class CenterBoxes:
    """Decodes the ``top_k`` heatmap peaks that the graph returns per network input.

    Output tensors: see :class:`model_package.CenterBoxesDecoder`.
    """

    def __init__(self, config: CenterBoxesDecoder) -> None:
        self._output_stride = config.output_stride

    def decode(self, outputs: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
        """Return the best boxes of all network inputs of one image."""
        return select_boxes(outputs, self._output_stride, options)[1]


def select_boxes(
    outputs: Sequence[ModelOutput], output_stride: int, options: DetectionOptions
) -> tuple[NDArray[np.int64], Detections]:
    """Return the best boxes of all network inputs of one image, and their rows.

    The rows (n,) index the tensors of all ``outputs``, concatenated along the first axis.
    """
    boxes = np.concatenate([decode_boxes(output, output_stride) for output in outputs])
    class_ids = concatenate(outputs, "class_ids")
    rows, scores = select_top_k(boxes, concatenate(outputs, "scores"), class_ids, options)
    return rows, Detections(boxes[rows], scores, class_ids[rows])


def decode_boxes(output: ModelOutput, output_stride: int) -> NDArray[np.float64]:
    """Return boxes (top_k, 4), x1, y1, x2, y2 in pixels of the image: center -/+ half the size.

    Reads ``centers`` and ``sizes``, both float32 (top_k, 2) in cells of the output map. As in the
    reference implementation, boxes are not clipped to the image.
    """
    centers = output.tensors["centers"].astype(np.float64) * output_stride
    half_sizes = output.tensors["sizes"].astype(np.float64) * (output_stride / 2)
    corners = np.stack([centers - half_sizes, centers + half_sizes], axis=1)
    return output.transform.to_image(corners).reshape(-1, 4)


def concatenate(outputs: Sequence[ModelOutput], name: str) -> NDArray[Any]:
    """Return the tensor ``name`` of all network inputs, concatenated along the first axis."""
    return np.concatenate([output.tensors[name] for output in outputs])
