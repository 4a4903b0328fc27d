"""Matrix products in bf16 with fp32 sums and fp32 results, on the CPU and on the GPU."""

from __future__ import annotations

import torch


def matmul_fp32(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``a @ b`` with factors rounded to `dtype`, summed and returned in the factors' own type.

    A plain bf16 product would round its *result* to 8 bits as well, which moves a logit of 30 by 0.1.
    `dtype` float32 (or the factors' own type) is the ordinary product.
    """
    if dtype != torch.bfloat16 or a.dtype != torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a.to(dtype), b.to(dtype), out_dtype=torch.float32)
    onednn = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = onednn.fp32_precision
    onednn.fp32_precision = "bf16"  # oneDNN may round the factors, and sums in fp32
    try:
        return a @ b
    finally:
        onednn.fp32_precision = before
