"""Evaluation of a model package, offline or behind a service, with the papers' metrics."""
