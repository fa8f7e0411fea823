"""Readers of COCO, VOC and KITTI labels, matching of boxes, and comparison of detections."""
