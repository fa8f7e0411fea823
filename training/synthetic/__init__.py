"""Rendered training images with exact labels."""
