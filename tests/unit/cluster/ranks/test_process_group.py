"""The device of a rank, where a host has GPUs."""

from __future__ import annotations

import pytest
import torch

from cluster.ranks.process_group import device_of
from cluster.ranks.rendezvous import StartError
from cluster.ranks.topology import Topology


def test_a_host_with_more_ranks_than_gpus_is_refused_by_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """So also by its first, which speaks for the host."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_of(Topology(rank, 2, rank, 2)).index for rank in range(2)] == [0, 1]
    for rank in range(3):
        with pytest.raises(StartError, match="got 3 ranks on this host, wanted at most one for each of the 2 GPUs"):
            device_of(Topology(rank, 3, rank, 3))
