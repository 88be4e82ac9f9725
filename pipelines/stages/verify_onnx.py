"""Verify the onnx engine on this machine's CPU."""

from pipelines.quality.on_target import VerifyOnTarget

STAGE = VerifyOnTarget("onnx", ("onnxruntime",))
