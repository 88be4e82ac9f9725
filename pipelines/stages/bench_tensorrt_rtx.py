"""Measure the TensorRT-RTX engine on this machine's GPU; without one that runs it, say so."""

from pipelines.benchmark.on_target import BenchOnTarget

STAGE = BenchOnTarget("tensorrt_rtx", ("tensorrt-rtx",))
