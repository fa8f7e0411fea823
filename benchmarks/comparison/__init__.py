"""Throughput and latency of this service and other model servers with the same network."""
