"""ONNX files of a package into TensorRT engines, ahead of time; needs no torch."""
