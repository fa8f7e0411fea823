"""End-to-end goldens of the upstream programs, and tolerances for comparisons with them.

Tolerances follow from the rounding errors of raw heads. ``fp32_vs_fp64.json`` lists, per network
and head, the largest error of float32 against float64 on one image, and the standard deviation of
the head's values there. On other images the error is assumed to grow with the standard deviation.
Five times that error, e, is allowed. It affects
- a score by e * s * (1 - s), the slope of the sigmoid;
- a center by e of the offsets; a box by that and half of e of the sizes;
- a regressed keypoint by e of the keypoint offsets, one at a peak by e of the heatmap offsets; the
  larger of both is used;
- a depth, 1 / sigmoid(x) - 1, by e * (depth + 1); the rotation angle of a bin by e divided by the
  length of (sine, cosine); dimensions and raw rotations by e.
The float32 rounding error of the value itself is added everywhere.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARGIN = 5.0
MATCH_CELLS = 0.5

# Networks that the file does not list, with a listed one that has the same layers.
_SAME_LAYERS = {
    "ctdet_res_34": "ctdet_res_18",
    "ctdet_res_50": "ctdet_res_18",
    "ctdet_res_101": "ctdet_res_18",
    "multi_pose_res_50": "ctdet_res_18",
    "multi_pose_hourglass": "ctdet_hourglass",
}

# Networks and cases whose errors are larger than those that the file lists, measured in float32 and
# in float64 with this project's networks and the weights of the rule, on photographs.
# resdcn_101: the largest of five inputs of 512x512 (640x402 and 400x600, each with its flip, and
# 451x301); of resdcn_18, which has the same layers, the file lists 1.2e-4, 1.0e-4 and 8.9e-5.
# dla_34: 400x600, not flipped, in an input of 416x608; the file lists 1.2e-3, 1.2e-3 and 1.3e-3.
_RELATIVE_NOISE = {
    "ctdet_resdcn_101": {"hm": 1.03e-3, "wh": 8.6e-4, "reg": 7.2e-4},
    "ctdet_dla_34_keepres_flip": {"hm": 6.36e-3, "wh": 5.74e-3, "reg": 5.83e-3},
}
"""By the start of ``<network>_<case>``: the largest error of each raw head, relative to the
standard deviation of its values."""

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Golden:
    """Golden of one image at one scale."""

    canvas: NDArray[np.uint8]
    """RGB (H, W, 3)."""
    network_input: NDArray[np.float32]
    """Every 16th pixel of the normalized canvas, from (3, 5)."""
    rows: Rows
    """Upstream detections, in cells, in the columns of the upstream decoding."""
    spreads: Mapping[str, float]
    """Standard deviation of the values of every raw head."""


def read_goldens(directory: Path, name: str) -> list[Golden]:
    """Read ``<network>_<case>``: one golden per test scale."""
    with np.load(directory / f"{name}.npz") as file:
        scales = sum(key.endswith("_dets") for key in file.files)
        return [_read_golden(directory, file, f"s{scale}_") for scale in range(scales)]


def _read_golden(directory: Path, file: Mapping[str, NDArray[Any]], prefix: str) -> Golden:
    place, _, key = str(file[f"{prefix}warped_u8_ref"]).partition(":")
    with np.load(directory / place) as canvases:
        canvas = np.ascontiguousarray(canvases[key][..., ::-1])
    raw, stat = f"{prefix}raw_", "_stat"
    return Golden(
        canvas=canvas,
        network_input=file[f"{prefix}input_sub"],
        rows=file[f"{prefix}dets"][0].astype(np.float64),
        spreads={
            key.removeprefix(raw).removesuffix(stat): float(file[key][1])
            for key in file
            if key.startswith(raw) and key.endswith(stat)
        },
    )


def allowed_errors(
    manifests: Path, network: str, case: str, spreads: Mapping[str, float]
) -> dict[str, float]:
    """Return five times the rounding error of each raw head, scaled by ``spreads``."""
    name = f"{network}_{case}"
    measured = [errors for start, errors in _RELATIVE_NOISE.items() if name.startswith(start)]
    if measured:
        noise = measured[0]
    else:
        listed = json.loads((manifests / "fp32_vs_fp64.json").read_text())
        of_heads = listed[_SAME_LAYERS.get(network, network)]
        noise = {head: one["max_abs"] / one["std"] for head, one in of_heads.items()}
    worst = max(noise.values())
    return {head: MARGIN * spread * noise.get(head, worst) for head, spread in spreads.items()}


@dataclass(frozen=True)
class Column:
    """Columns of the upstream rows and their tolerances per row."""

    name: str
    columns: slice
    tolerances: Rows
    """(K, 1)."""


def _floor(values: Rows) -> Rows:
    return 1e-5 + 4e-6 * np.abs(values).max(axis=1, keepdims=True)


def box_columns(rows: Rows, errors: Mapping[str, float]) -> list[Column]:
    """Return the tolerances of x1, y1, x2, y2, score, class."""
    scores = rows[:, 4:5]
    box = errors["reg"] + errors["wh"] / 2
    return [
        Column("box", slice(0, 4), box + _floor(rows[:, :4])),
        Column("score", slice(4, 5), errors["hm"] * scores * (1 - scores) + 2e-7),
    ]


def pose_columns(rows: Rows, errors: Mapping[str, float]) -> list[Column]:
    """Return the tolerances of x1, y1, x2, y2, score, 17 times x and y, class."""
    keypoint = max(errors["hps"], errors["hp_offset"])
    return [
        *box_columns(rows, errors),
        Column("keypoint", slice(5, 39), keypoint + _floor(rows[:, 5:39])),
    ]


def box_3d_columns(rows: Rows, errors: Mapping[str, float]) -> list[Column]:
    """Return the tolerances of x, y, score, 8 of rotation, depth, 3 dimensions, w, h, class."""
    scores, depths = rows[:, 2:3], rows[:, 11:12]
    return [
        Column("center", slice(0, 2), errors["reg"] + _floor(rows[:, :2])),
        Column("score", slice(2, 3), errors["hm"] * scores * (1 - scores) + 2e-7),
        Column("rotation", slice(3, 11), errors["rot"] + _floor(rows[:, 3:11])),
        Column("depth", slice(11, 12), errors["dep"] * (depths + 1) + _floor(depths)),
        Column("dimensions", slice(12, 15), errors["dim"] + _floor(rows[:, 12:15])),
        Column("box", slice(15, 17), errors["wh"] + _floor(rows[:, 15:17])),
    ]


def to_rows(outputs: Mapping[str, NDArray[Any]]) -> Rows:
    """Convert the graph outputs of one image to the upstream columns."""
    values = {name: array.astype(np.float64) for name, array in outputs.items()}
    scores, class_ids = (values[name][:, np.newaxis] for name in ("scores", "class_ids"))
    centers, sizes = values["centers"], values["sizes"]
    if "depths" in values:
        depths = values["depths"][:, np.newaxis]
        return np.hstack(
            (centers, scores, values["rotations"], depths, values["dimensions"], sizes, class_ids)
        )
    keypoints = values.get("keypoints", np.empty((len(centers), 0))).reshape(len(centers), -1)
    return np.hstack((centers - sizes / 2, centers + sizes / 2, scores, keypoints, class_ids))


def match_rows(local: Rows, upstream: Rows, centers: slice) -> tuple[NDArray[Any], NDArray[Any]]:
    """Match rows by class and center; returns two index arrays, each row at most once."""
    places = [rows[:, centers] for rows in (local, upstream)]
    if places[0].shape[1] == 4:  # corners
        places = [(place[:, :2] + place[:, 2:]) / 2 for place in places]
    distances = np.abs(places[0][:, np.newaxis] - places[1]).max(axis=2)
    distances[local[:, np.newaxis, -1] != upstream[:, -1]] = np.inf
    nearest = distances.argmin(axis=1)
    rows = np.flatnonzero(distances[np.arange(len(local)), nearest] < MATCH_CELLS)
    assert len(set(nearest[rows])) == len(rows)
    return rows, nearest[rows]
