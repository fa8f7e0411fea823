"""Metrics of boxes, poses and 3D boxes."""
