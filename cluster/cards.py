"""What GPUs can do at most, by name: the one table of peaks, for shares of the possible."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A GPU's peaks as NVIDIA's datasheets have them: dense, without sparsity.

    Attributes:
        bf16, tf32: FLOPs a second of the tensor cores, which cuDNN also uses for float32 convolutions (as TF32).
        fp32: FLOPs a second of float32 proper.
        bytes_per_second: of memory.
    """

    bf16: float
    tf32: float
    fp32: float
    bytes_per_second: float


_A100 = (312e12, 156e12, 19.5e12)
_H100 = (989e12, 494e12, 67e12)

# The driver's whole name -> peaks. A slice of a card (MIG) has another name, and none of these peaks.
CARDS = {
    "NVIDIA A100-SXM4-40GB": Card(*_A100, 1.555e12),
    "NVIDIA A100-PCIE-40GB": Card(*_A100, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Card(*_A100, 2.039e12),
    "NVIDIA A100 80GB PCIe": Card(*_A100, 1.935e12),
    "NVIDIA H100 80GB HBM3": Card(*_H100, 3.35e12),
    "NVIDIA H100 PCIe": Card(756e12, 378e12, 51e12, 2.0e12),
    "NVIDIA H100 NVL": Card(835e12, 417e12, 60e12, 3.9e12),
    "NVIDIA H200": Card(*_H100, 4.8e12),
    "NVIDIA L40S": Card(362e12, 183e12, 91.6e12, 0.864e12),
}
