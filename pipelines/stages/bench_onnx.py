"""Measure the onnx engine on this machine's CPU."""

from pipelines.benchmark.on_target import BenchOnTarget

STAGE = BenchOnTarget("onnx", ("onnxruntime",))
