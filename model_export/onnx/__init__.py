"""ONNX files: export, reading of external files, composition, corner pooling functions."""
