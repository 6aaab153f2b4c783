"""Export: checkpoint → ONNX in FP32, FP16 and INT8."""
