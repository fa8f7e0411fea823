"""Throughput and latency of the service as curves."""
