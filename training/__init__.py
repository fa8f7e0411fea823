"""Training of center-point detectors: targets, losses, data, schedule and evaluation."""
