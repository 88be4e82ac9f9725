"""SwiGLU in two vectorised passes, the second in place."""

import torch


def silu_mul_cpu(fused: torch.Tensor, out: torch.Tensor) -> None:
    width = out.shape[-1]
    torch.ops.aten.silu.out(fused[:, :width], out=out)
    out.mul_(fused[:, width:])
