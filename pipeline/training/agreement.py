"""What all ranks agree on in a step, before anything is changed: one vector, so one all-reduce (max)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cluster.ranks.collectives import Group, max_over_ranks, num_ranks, rank_in


class Agreed(NamedTuple):
    """Of a step, the same on every rank: float64 scalars on the device.

    Attributes:
        severity: the worst rank's.
        stopping: whether any rank is asked to stop: 0 or 1.
        slowest_seconds: of the slowest rank's own work in the step before.
        backbone_square, rows_square: of the norms of the whole gradients.
        undecodable: samples of all ranks that could not be decoded.
        found: those of them that were not known to be so.
    """

    severity: torch.Tensor
    stopping: torch.Tensor
    slowest_seconds: torch.Tensor
    backbone_square: torch.Tensor
    rows_square: torch.Tensor
    undecodable: torch.Tensor
    found: torch.Tensor


def agree(flags: torch.Tensor, parts: torch.Tensor, group: Group) -> Agreed:
    """One all-reduce (max) of 3 + 4N numbers.

    Args:
        flags: severity, stopping and seconds of own work of this rank [3].
        parts: this rank's part of each sum, in the order of `Agreed` [4]; none is negative.
        group: all ranks.
    """
    # A maximum gives a sum too if every rank has a place of its own: and it is the same for any order of the ranks.
    places_4N = parts.new_zeros(len(parts), num_ranks(group))
    places_4N[:, rank_in(group)] = parts
    found = max_over_ranks(torch.cat([flags, places_4N.flatten()]), group).double()
    return Agreed(*found[:3], *found[3:].view_as(places_4N).sum(1))
