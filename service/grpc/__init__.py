"""gRPC front end: the Open Inference Protocol, and health checks; needs the extra ``grpc``."""
