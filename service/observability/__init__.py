"""Logs, metrics, traces and the record of each request."""
