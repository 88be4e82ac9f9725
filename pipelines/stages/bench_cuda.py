"""Measure the CUDA engine on this machine's GPU; without one, say so."""

from pipelines.benchmark.on_target import BenchOnTarget

STAGE = BenchOnTarget("cuda", ("matplotlib",), has_stack=True)
