"""Errors of data sets."""


class DatasetError(ValueError):
    """A label file or image that cannot be used; the message names the file and the entry."""
