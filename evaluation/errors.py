"""What can be wrong with the question; what goes wrong in the service has its own errors."""


class EvaluationError(ValueError):
    """Labels, images or options that a model cannot be evaluated with; the text says what to do."""
