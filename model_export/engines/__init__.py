"""Engines made ahead of time, and the kernels inside them; nothing here needs torch."""
