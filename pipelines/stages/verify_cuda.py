"""Verify the CUDA engine on this machine's GPU; without one, say so."""

from pipelines.quality.on_target import VerifyOnTarget

STAGE = VerifyOnTarget("cuda")
