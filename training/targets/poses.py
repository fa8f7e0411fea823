"""Training targets of poses (*Objects as Points*, section 4.2)."""

from dataclasses import asdict, dataclass

import numpy as np

from training.data.sample import FloatArray, IntArray
from training.targets.centers import CenterTargets, center_radius, draw_gaussian


@dataclass(frozen=True)
class PoseTargets(CenterTargets):
    """Targets of one image with K object slots and J keypoints each.

    In addition to the fields of :class:`~training.targets.centers.CenterTargets`:

    Attributes:
        keypoint_offsets: float32 (K, 2 J), keypoint minus the center cell, x, y in cells.
        keypoint_mask: float32 (K, 2 J), 1 for labelled keypoints inside the map.
        keypoint_heatmap: float32 (J, H/4, W/4), 1 at keypoints, Gaussian around them.
        keypoint_cells: int64 (K J,), flat cell of each keypoint.
        keypoint_present: float32 (K J,), 1 for labelled keypoints inside the map.
        keypoint_heatmap_offset: float32 (K J, 2), keypoint minus its cell, 0...1.
    """

    keypoint_offsets: FloatArray
    keypoint_mask: FloatArray
    keypoint_heatmap: FloatArray
    keypoint_cells: IntArray
    keypoint_present: FloatArray
    keypoint_heatmap_offset: FloatArray


def pose_targets(centers: CenterTargets, keypoints: FloatArray, *, stride: int) -> PoseTargets:
    """Add keypoints, float32 (N, J, 3) in network input pixels, to the targets of their boxes.

    As in the reference implementation, objects without labelled keypoints are in the heatmap, but
    not in the losses of size and offset, because their boxes are often inaccurate.
    """
    height, width = centers.heatmap.shape[1:]
    slots, count = len(centers.cells), keypoints.shape[1]
    targets = PoseTargets(
        **asdict(centers),
        keypoint_offsets=np.zeros((slots, 2 * count), np.float32),
        keypoint_mask=np.zeros((slots, 2 * count), np.float32),
        keypoint_heatmap=np.zeros((count, height, width), np.float32),
        keypoint_cells=np.zeros(slots * count, np.int64),
        keypoint_present=np.zeros(slots * count, np.float32),
        keypoint_heatmap_offset=np.zeros((slots * count, 2), np.float32),
    )
    for index, pose in enumerate(keypoints):
        if (pose[:, 2] <= 0).all():  # not those of classes without keypoints, which are NaN
            targets.present[index] = 0.0
        center = np.array(divmod(int(centers.cells[index]), width))[::-1]
        radius = center_radius(np.ceil(centers.size[index]))
        for keypoint, (x, y, visibility) in enumerate(pose.tolist()):
            point = np.array([x / stride, y / stride], np.float32)
            if visibility > 0 and (point >= 0).all() and (point < (width, height)).all():
                _add_keypoint(targets, index * count + keypoint, keypoint, point, radius)
                columns = np.s_[index, 2 * keypoint : 2 * keypoint + 2]
                targets.keypoint_offsets[columns] = point - center
                targets.keypoint_mask[columns] = 1.0
    return targets


def _add_keypoint(
    targets: PoseTargets, row: int, keypoint: int, point: FloatArray, radius: int
) -> None:
    cell = point.astype(np.int64)
    draw_gaussian(targets.keypoint_heatmap[keypoint], int(cell[0]), int(cell[1]), radius)
    targets.keypoint_cells[row] = cell[1] * targets.heatmap.shape[2] + cell[0]
    targets.keypoint_present[row] = 1.0
    targets.keypoint_heatmap_offset[row] = point - cell
