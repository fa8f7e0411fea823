"""The Open Inference Protocol v2 (KServe V2, as Triton extends it), without its transports.

REST is :mod:`service.http.open_inference`. A transport needs

- :func:`service.open_inference.inference.infer` for an inference request,
- :mod:`service.open_inference.repository` for metadata, configuration, statistics and the index,
- :mod:`service.health` for liveness and readiness,
- :mod:`service.access` for API keys and rate limits, which it checks before.

Errors are those of :mod:`service.errors`; the transport maps them to its statuses.
"""
