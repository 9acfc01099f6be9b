"""Checkpoint -> ONNX, and ONNX -> emotions without PyTorch."""
