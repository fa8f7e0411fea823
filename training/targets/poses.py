"""Training targets of poses (*Objects as Points*, section 4.2)."""

from dataclasses import asdict, dataclass

import numpy as np

from training.data.sample import FloatArray, IntArray
from training.targets.centers import CenterTargets, center_radius, draw_gaussian


@dataclass(frozen=True)
class PoseTargets(CenterTargets):
    """What the heads should say about one picture; K objects at most, J joints each.

    Besides the fields of :class:`~training.targets.centers.CenterTargets`:

    Attributes:
        joint_offsets: float32 (K, 2 J), joint minus the integer center cell, x before y, in cells.
        joint_mask: float32 (K, 2 J), 1 for labelled joints inside the map.
        joint_heatmap: float32 (J, H/4, W/4), 1 at joints, Gaussian around them.
        joint_cells: int64 (K J,), flat cell of each joint.
        joint_present: float32 (K J,), 1 for labelled joints inside the map.
        joint_heatmap_offset: float32 (K J, 2), joint minus its cell, 0...1.
    """

    joint_offsets: FloatArray
    joint_mask: FloatArray
    joint_heatmap: FloatArray
    joint_cells: IntArray
    joint_present: FloatArray
    joint_heatmap_offset: FloatArray


def pose_targets(centers: CenterTargets, joints: FloatArray, *, stride: int) -> PoseTargets:
    """Add joints, float32 (N, J, 3) in network input pixels, to the targets of their boxes.

    Objects without a labelled joint stay in the heatmap, but size and offset are not learnt from
    them: their boxes are often rough (so do the authors).
    """
    height, width = centers.heatmap.shape[1:]
    slots, count = len(centers.cells), joints.shape[1]
    targets = PoseTargets(
        **asdict(centers),
        joint_offsets=np.zeros((slots, 2 * count), np.float32),
        joint_mask=np.zeros((slots, 2 * count), np.float32),
        joint_heatmap=np.zeros((count, height, width), np.float32),
        joint_cells=np.zeros(slots * count, np.int64),
        joint_present=np.zeros(slots * count, np.float32),
        joint_heatmap_offset=np.zeros((slots * count, 2), np.float32),
    )
    for index, pose in enumerate(joints):
        if not (pose[:, 2] > 0).any():
            targets.present[index] = 0.0
        center = np.array(divmod(int(centers.cells[index]), width))[::-1]
        radius = center_radius(np.ceil(centers.size[index]))
        for joint, (x, y, visibility) in enumerate(pose.tolist()):
            point = np.array([x / stride, y / stride], np.float32)
            if visibility > 0 and (point >= 0).all() and (point < (width, height)).all():
                _add_joint(targets, index * count + joint, joint, point, radius)
                own = np.s_[index, 2 * joint : 2 * joint + 2]
                targets.joint_offsets[own] = point - center
                targets.joint_mask[own] = 1.0
    return targets


def _add_joint(targets: PoseTargets, row: int, joint: int, point: FloatArray, radius: int) -> None:
    cell = point.astype(np.int64)
    draw_gaussian(targets.joint_heatmap[joint], int(cell[0]), int(cell[1]), radius)
    targets.joint_cells[row] = cell[1] * targets.heatmap.shape[2] + cell[0]
    targets.joint_present[row] = 1.0
    targets.joint_heatmap_offset[row] = point - cell
