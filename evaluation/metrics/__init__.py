"""Metrics: COCO average precision, OKS, KITTI 3D AP, and the matching they share."""
