"""Dynamic batching: the queue, batch formation, admission control, latency models."""
