"""The messages of ``health.proto``; their types are in ``health_pb2.pyi``."""

from service.grpc.descriptors import message_classes

globals().update(message_classes("health.proto"))
