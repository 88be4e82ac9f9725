"""The model as ONNX graphs, written directly from its specification and checkpoint. Nothing is traced."""
