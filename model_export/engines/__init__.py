"""TensorRT engines, built ahead of time from the ONNX files of a package; needs no torch."""
