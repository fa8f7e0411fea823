"""The error of the evaluation."""


class EvaluationError(ValueError):
    """Labels, images or options that cannot be used; the message says what to do."""
