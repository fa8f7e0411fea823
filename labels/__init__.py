"""Readers of COCO, YOLO, VOC and KITTI labels, matching of boxes, and comparison of detections."""
