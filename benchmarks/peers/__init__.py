"""This service beside others that serve the same network."""
