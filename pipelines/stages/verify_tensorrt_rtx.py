"""Verify the TensorRT-RTX engine on this machine's GPU; without one that runs it, say so."""

from pipelines.quality.on_target import VerifyOnTarget

STAGE = VerifyOnTarget("tensorrt_rtx", ("tensorrt-rtx",))
