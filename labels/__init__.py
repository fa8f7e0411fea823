"""Readers of COCO, Pascal VOC and KITTI labels, and matching of detections to labels."""
