"""Which rows a request wants to see."""

import numpy as np
from numpy.typing import NDArray

from service.decoders.soft_nms import soft_nms
from service.decoders.types import DetectionOptions


def wanted(
    scores: NDArray[np.float32], class_ids: NDArray[np.int32], options: DetectionOptions
) -> NDArray[np.bool_]:
    """Whether each row (n,) has the score and one of the classes that were asked for."""
    keep = scores >= options.score_threshold
    if options.class_ids is not None:
        keep &= np.isin(class_ids, list(options.class_ids))
    return keep


def choose(
    boxes_xyxy: NDArray[np.float64],
    scores: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    options: DetectionOptions,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the rows to show, best first, and their scores, which soft-NMS may have lowered.

    Takes boxes (n, 4) in the image, scores (n,) and class ids (n,). Never more than ``top_k``
    rows, also where several share the last score (the upstream cut keeps all of those).
    """
    # A row influences lower ones only, so what is below the threshold can go first.
    rows = np.flatnonzero(wanted(scores, class_ids, options))
    if not options.soft_nms:
        # Not NumPy's: that lets go of Python's lock, and the event loop would wait to get it back.
        wanted_scores = scores[rows].tolist()
        best_first = sorted(range(len(rows)), key=wanted_scores.__getitem__, reverse=True)
        chosen = rows[best_first[: options.top_k]]
        return chosen, scores[chosen]
    left = soft_nms(boxes_xyxy[rows], scores[rows], class_ids[rows], top_k=options.top_k)
    enough = left.scores >= options.score_threshold
    return rows[left.rows[enough]], left.scores[enough]
