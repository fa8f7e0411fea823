"""The kinds of inputs that are requests, and their generators."""

from collections.abc import Callable, Mapping
from random import Random

from benchmarks.hostile_inputs.grpc_requests import grpc_frames
from benchmarks.hostile_inputs.http_requests import (
    http_bodies,
    http_forms,
    http_heads,
    http_json,
    http_tasks,
)
from benchmarks.hostile_inputs.open_inference import open_inference

REQUESTS: Mapping[str, Callable[[Random], bytes]] = {
    "http_head": http_heads,
    "http_body": http_bodies,
    "http_form": http_forms,
    "http_json": http_json,
    "http_tasks": http_tasks,
    "open_inference": open_inference,
    "grpc_frames": grpc_frames,
}
GRPC_KINDS = ("grpc_frames",)
"""Kinds that are sent to the port for gRPC."""
