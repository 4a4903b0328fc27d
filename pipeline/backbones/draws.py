"""Random numbers of a network in training, a function of (seed, step, sample): the same on any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.hashing import hash64, uniform


class BySample(nn.Module):
    """A part of a network that needs `count` random numbers for each sample of a forward pass in training."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self._drawn_Bn: torch.Tensor | None = None

    def drawn(self, x: torch.Tensor) -> torch.Tensor:
        """Numbers uniform in [0, 1) for the samples of x, [B, count]: what `draw` gave, else torch's generator's."""
        if self._drawn_Bn is None:
            return torch.rand(len(x), self.count, device=x.device)
        return self._drawn_Bn


class DropPath(BySample):
    """Stochastic depth (Huang et al., ECCV 2016): in training a residual branch is left out of some samples.

    What is kept is divided by the share that is, so that the mean is what evaluation computes.
    """

    def __init__(self, rate: float) -> None:
        super().__init__(1)
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """The branch's output [B, …], or zeros, each with its probability."""
        if not self.training or self.rate == 0:
            return branch
        kept = (self.drawn(branch) >= self.rate).to(branch.dtype) / (1 - self.rate)
        return branch * kept.view(-1, *(1 for _ in branch.shape[1:]))


def draw(network: nn.Module, seed: int, step: int, samples_B: NDArray[Any], device: torch.device) -> None:
    """Give every `BySample` of the network its numbers for the next forward pass, and for what is computed again of it.

    A hash of seed, step, the sample's number in the set, and the module's place in the network.
    """
    modules = [module for module in network.modules() if isinstance(module, BySample)]
    if not modules:
        return
    counts = [module.count for module in modules]
    hashes_Bn = hash64(seed, step, samples_B[:, None], np.arange(sum(counts)))
    drawn_Bn = torch.from_numpy(uniform(hashes_Bn).astype(np.float32))
    if device.type == "cuda":  # from pinned memory the host need not wait for the copy
        drawn_Bn = drawn_Bn.pin_memory()
    for module, part_Bn in zip(modules, drawn_Bn.to(device, non_blocking=True).split(counts, dim=1), strict=True):
        module._drawn_Bn = part_Bn
