"""Checks and measurements that need a GPU, as one command; see ``__main__``."""
