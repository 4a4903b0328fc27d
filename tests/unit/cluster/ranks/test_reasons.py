"""Why ranks end: said once on each host, by whoever has the reason."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

import pytest
import torch.distributed as dist

from cluster.ranks.reasons import Reasons
from cluster.ranks.topology import Topology


class Gone(dist.HashStore):
    """A store whose server has ended."""

    def add(self, key: str, amount: int) -> int:
        raise dist.DistNetworkError(f"{key}: {amount}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


def said(reasons: Sequence[tuple[int, str]], store: dist.Store | None, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What two of four ranks, on one host, print of these reasons, each with the rank that has it."""
    for rank, reason in reasons:
        rank_of_host = Reasons("train.py", Topology(rank, 4, rank, 2))
        if store is not None:
            rank_of_host.met(store)
        rank_of_host.say(reason)
    return capsys.readouterr().err.splitlines()


def test_before_ranks_have_met_one_of_a_host_speaks_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    host = socket.gethostname()
    assert said([(1, "no recipe"), (0, "no recipe")], None, capsys) == [f"train.py on {host}: no recipe"]
    Reasons("train.py", Topology(0, 2, 0, 2)).say("no recipe")
    assert capsys.readouterr().err == "train.py: no recipe\n"


def test_a_reason_of_one_rank_is_said_by_it_and_one_of_all_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(socket, "gethostname", lambda: "alpha")
    assert said([(1, "a tar was cut")], store, capsys) == ["train.py on alpha: a tar was cut"]
    assert said([(1, "not finite"), (0, "not finite")], store, capsys) == ["train.py on alpha: not finite"]
    monkeypatch.setattr(socket, "gethostname", lambda: "beta")
    assert said([(0, "not finite")], store, capsys) == ["train.py on beta: not finite"]


def test_without_the_store_the_first_of_a_host_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(said([(1, "not finite"), (0, "not finite")], Gone(), capsys)) == 1
