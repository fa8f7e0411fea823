"""Training of CenterNet-family detectors: data, targets, losses and the training loop."""
