"""Plans of TensorRT-RTX and TensorRT from a step's graph."""
