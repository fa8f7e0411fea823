"""The messages of ``inference.proto``; their types are in ``inference_pb2.pyi``."""

from service.grpc.descriptors import message_classes

globals().update(message_classes("inference.proto"))
