"""Verification: ONNX Runtime against PyTorch, fp16 against fp32, on tensors and detections."""
