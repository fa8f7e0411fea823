"""ONNX files: export, import, fp16 conversion, corner pooling functions."""
