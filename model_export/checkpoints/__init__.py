"""Checkpoints: safe loading, identification of architecture and task, strict weight loading."""
