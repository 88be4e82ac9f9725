"""RMSNorm through torch's own op, which is the fastest of the forms tried on the CPU for 1 to 512 rows."""

import torch


def rms_norm_cpu(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    out.copy_(torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps))
