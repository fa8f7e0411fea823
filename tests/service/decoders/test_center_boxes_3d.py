"""Geometry of 3D boxes against the reference implementation (``unit_geometry_xz.npz``)."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.decoders.center_boxes_3d import (
    alphas_to_rotations_y,
    box_corners,
    decode_alphas,
    project,
    unproject,
)

Golden = dict[str, NDArray[np.floating]]


@pytest.fixture(scope="module")
def golden(project: Path) -> Golden:
    with np.load(project / "tests/upstream/goldens/unit_geometry_xz.npz") as file:
        return {name: file[name].astype(np.float64) for name in file.files}


def test_angles_equal_upstream(golden: Golden) -> None:
    actual = decode_alphas(golden["rot_in"])
    assert np.abs(actual - golden["rot_alpha"]).max() <= 1e-6
    rotations_y = alphas_to_rotations_y(
        golden["ddd_alpha"], golden["ddd_center"][:, 0], golden["ddd_calib"]
    )
    assert np.abs(rotations_y - golden["ddd_roty"]).max() <= 1e-6


def test_locations_equal_upstream(golden: Golden) -> None:
    actual = unproject(golden["ddd_center"], golden["ddd_depth"], golden["ddd_calib"])
    assert np.abs(actual - golden["ddd_unproject"]).max() <= 2e-5
    actual[:, 1] += golden["ddd_dim"][:, 0] / 2
    assert np.abs(actual - golden["ddd_loc"]).max() <= 2e-5


def test_corners_equal_upstream(golden: Golden) -> None:
    corners = box_corners(golden["ddd_dim"], golden["ddd_loc"], golden["ddd_roty"])
    assert np.abs(corners - golden["ddd_corners"]).max() <= 2e-5
    actual = project(golden["ddd_corners"], golden["ddd_calib"])
    in_front = (golden["ddd_corners"][..., 2] > 0).all(axis=1)
    assert np.isnan(actual[~in_front]).all()
    assert np.abs(actual[in_front] - golden["ddd_proj"][in_front]).max() <= 2e-4
    assert in_front.sum() == 63


def test_unproject_inverts_project(golden: Golden) -> None:
    points = np.random.default_rng(0).uniform((-20, -3, 5), (20, 3, 60), (9, 3))
    camera = golden["ddd_calib"]
    in_image = project(points[:, None], camera)[:, 0]
    depths = points[:, 2] + camera[2, 3]
    assert np.allclose(unproject(in_image, depths, camera), points, atol=1e-9)
