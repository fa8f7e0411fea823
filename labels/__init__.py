"""Labelled data: one reader for each label format, and the matching of detections to labels."""
