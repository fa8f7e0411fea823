"""Export of trained checkpoints to verified model packages.

Public functions:

- :func:`model_export.pipeline.export_package` exports a PyTorch checkpoint to ONNX, verifies the
  file against the network and writes a package.
- :func:`model_export.import_onnx.import_package` packages an ONNX file of undecoded head maps.
- :func:`model_export.inspect_checkpoint.inspect_checkpoint` reports the architecture and the task
  of a checkpoint.

They are not imported here: engines are built without torch, from the same distribution.
"""

import model_package  # noqa: F401  # disables ONNX Runtime's telemetry before it is loaded
