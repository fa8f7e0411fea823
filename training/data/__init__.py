"""Datasets: labelled images, augmentation, training samples."""
