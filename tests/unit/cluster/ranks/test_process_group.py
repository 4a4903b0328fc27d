"""The device of a rank, where a host has GPUs; and how long groups wait."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.ranks.process_group import background_group, device_of, grid
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


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is called of torch: the time-outs of new groups, and barriers."""
    calls: list[Any] = []
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "barrier", lambda: calls.append("all"))
    monkeypatch.setattr(dist, "new_group", lambda *_, timeout=None, **__: calls.append(timeout))
    return calls


def test_the_groups_of_a_grid_have_the_runs_time_out(made: list[Any]) -> None:
    grid(4, 2, 7.0)
    assert made == [timedelta(seconds=7)] * 4


def test_ranks_come_together_before_they_wait_for_a_day(made: list[Any]) -> None:
    """A rank that hangs while it builds would hold up the others for as long."""
    background_group()
    assert made == ["all", timedelta(days=1)]
