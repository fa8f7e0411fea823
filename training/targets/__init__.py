"""Training targets: heatmaps, offsets, sizes, keypoints, 3D boxes, corners."""
