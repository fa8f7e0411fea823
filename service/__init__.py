"""Serve model packages over HTTP: images in, detections in their pixels out."""
