"""Encoded images to network inputs: decoding, geometry, resizing, warping."""
