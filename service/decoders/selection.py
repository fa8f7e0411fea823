"""Score threshold, class filter, soft-NMS and top-k, shared by the decoders."""

import numpy as np
from numpy.typing import NDArray

from service.decoders.soft_nms import soft_nms
from service.decoders.types import DetectionOptions


def selection_mask(
    scores: NDArray[np.float32], class_ids: NDArray[np.int32], options: DetectionOptions
) -> NDArray[np.bool_]:
    """Return a mask (n,) of the rows that pass the options' score threshold and class filter."""
    mask = scores >= options.score_threshold
    if options.class_ids is not None:
        mask &= np.isin(class_ids, list(options.class_ids))
    return mask


def select_top_k(
    boxes_xyxy: NDArray[np.float64],
    scores: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    options: DetectionOptions,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the rows to return, best score first, and their scores, decayed by soft-NMS if on.

    ``boxes_xyxy`` (n, 4) in pixels of the image, ``scores`` (n,), ``class_ids`` (n,). Returns at
    most ``top_k`` rows, also where several tie for the last score (the reference implementation
    keeps all of those).
    """
    # A row only decays rows with lower scores, so rows below the threshold can be dropped first.
    rows = np.flatnonzero(selection_mask(scores, class_ids, options))
    if not options.soft_nms:
        # Python's sort rather than NumPy's, which releases the GIL: the event loop would have to
        # wait to acquire it again.
        row_scores = scores[rows].tolist()
        order = sorted(range(len(rows)), key=row_scores.__getitem__, reverse=True)
        top = rows[order[: options.top_k]]
        return top, scores[top]
    kept = soft_nms(boxes_xyxy[rows], scores[rows], class_ids[rows], top_k=options.top_k)
    above = kept.scores >= options.score_threshold
    return rows[kept.rows[above]], kept.scores[above]
