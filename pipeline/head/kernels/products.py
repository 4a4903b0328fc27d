"""Matrix products of the head: the fastest kernel at hand, in fp32 or with bf16 factors and fp32 sums.

On the CPU, torch's ``@`` goes to MKL, which on AMD processors runs at half of what oneDNN reaches (measured on an EPYC
with two cores, 512 × 512 × 2048: 215 against 470 GFLOP/s). oneDNN's fp32 product is reached through the operator that
torch.compile emits for linear layers; if a build has none, ``@`` serves.
"""

from __future__ import annotations

import torch

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def exact_product(
    a_MK: torch.Tensor, b_NK: torch.Tensor, dtype: torch.dtype, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """``a @ b.T + bias`` [M, N] whose result keeps its type: for logits, which are exponentiated.

    With bfloat16 the factors may be rounded, never the result: a logit of 60 rounded to 8 bits is off by 0.2. CPU
    kernels with bf16 factors round their result, so on the CPU the factors stay fp32 here.
    """
    if _ONEDNN is not None and a_MK.device.type == "cpu" and a_MK.dtype == torch.float32:
        return _ONEDNN(a_MK, b_NK, bias_N, "none", [], "")
    if a_MK.is_cuda and dtype == torch.bfloat16:
        product = torch.mm(a_MK.to(dtype), b_NK.to(dtype).t(), out_dtype=torch.float32)
    else:
        product = a_MK @ b_NK.t()
    return product if bias_N is None else product.add_(bias_N)


def gradient_factor(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values` as a factor of `gradient_product`: rounded to bfloat16 if `dtype` is that (once, for all uses)."""
    return values.to(dtype) if dtype == torch.bfloat16 and values.dtype == torch.float32 else values


def gradient_product(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """``a @ b`` [M, N] of two gradient factors, sums and result in fp32 (float64 for float64 factors).

    On the CPU a bf16 product is rounded once more, at its end: a relative 2^-9, as a gradient in bf16 has.
    """
    if a_MK.dtype != torch.bfloat16:
        return exact_product(a_MK, b_KN.t(), a_MK.dtype)
    if a_MK.is_cuda:
        return torch.mm(a_MK, b_KN, out_dtype=torch.float32)
    return (a_MK @ b_KN).float()
