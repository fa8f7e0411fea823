"""Checkpoints: safe reading, and one module per source for the layout that its authors chose."""
