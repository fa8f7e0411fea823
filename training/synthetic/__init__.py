"""Renderers of synthetic training images with exact labels."""
