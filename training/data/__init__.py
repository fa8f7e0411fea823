"""Labelled images: label readers and augmentation."""
