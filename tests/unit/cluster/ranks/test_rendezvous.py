"""Ranks that meet, that do not join, and that do not agree: in bounded time, and named on every rank that joined."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.ranks.rendezvous import DisagreeError, StartError, differences, meet, refusals
from cluster.ranks.topology import Topology
from tests.ports import free_port

SECONDS = 5.0  # of a machine busy with other tests: those that join must do so in this time
HOST = socket.gethostname()


def gather(
    ranks: list[int],
    num_ranks: int,
    facts: Callable[[int], dict[str, str]] = lambda _: {},
    refusal: Callable[[int], str] = lambda _: "",
) -> list[str]:
    """The error of each of `ranks` at a rendezvous of `num_ranks`, two on a host; empty if the rank joined."""
    port = free_port()
    stores = []

    def go(rank: int) -> str:
        try:
            topology = Topology(rank, num_ranks, rank % 2, min(2, num_ranks))
            stores.append(meet(topology, "127.0.0.1", port, SECONDS, facts(rank), refusal(rank)))
        except DisagreeError as error:
            return f"disagree: {error}"
        except StartError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(go, ranks))


def test_all_join_and_agree() -> None:
    assert gather([0, 1, 2], 3, lambda _: {"version of torch": "2"}) == ["", "", ""]


def test_a_rank_that_does_not_join_is_named_on_all_that_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPHERESCALE_HOSTS", "alpha,beta")
    errors = gather([0, 1, 3], 4)
    for text in errors:
        assert text.startswith("did not join within 5 s: rank 2 (beta); is that host up")
    monkeypatch.setenv("SPHERESCALE_HOSTS", "alpha,beta,beta")  # of every rank: hosts need not have as many
    assert "rank 2 (beta)" in gather([0, 1], 3)[1]
    monkeypatch.delenv("SPHERESCALE_HOSTS")
    assert "rank 2 (host 2)" in gather([0, 1], 3)[1]


def test_a_difference_is_named_on_all() -> None:
    errors = gather([0, 1, 2], 3, lambda rank: {"recipe seed": "5" if rank == 2 else "4", "code": "ab"})
    for text in errors:
        assert text == (f"disagree: rank 2 on {HOST}: recipe seed: got 5, wanted 4 as on rank 0 ({HOST})")


@pytest.mark.parametrize("refusing", [0, 2])
def test_a_refusal_is_reported_on_all_whatever_else_differs(refusing: int) -> None:
    errors = gather(
        [0, 1, 2], 3, lambda rank: {"seed": str(rank)}, lambda rank: "no such file" if rank == refusing else ""
    )
    assert errors == [f"disagree: rank {refusing} on {HOST} refuses: no such file"] * 3


def test_one_reason_of_one_host_is_reported_once() -> None:
    cards = {rank: {"host": "ab"[rank // 2], "refusal": "why" if rank else ""} for rank in range(4)}
    assert refusals(cards) == "rank 1 on a refuses: why; rank 2 on b refuses: why"


def test_differences_are_reported_once_a_host() -> None:
    def card(host: str, torch: str, more: dict[str, str]) -> dict[str, object]:
        return {"host": host, "facts": {"torch": torch} | more}

    cards = {0: card("a", "2", {}), 1: card("a", "2", {}), 2: card("b", "1", {"x": "y"}), 3: card("b", "1", {"x": "y"})}
    assert differences(cards) == (
        "rank 2 on b: torch: got 1, wanted 2 as on rank 0 (a); rank 2 on b: x: got y, wanted nothing as on rank 0 (a)"
    )


def test_a_wrong_address_ends_in_time() -> None:
    (text,) = gather([1], 2)
    assert text.startswith("rank 0 does not answer at 127.0.0.1:")
    assert "--master_addr" in text


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"cannot open the store at 127.0.0.1:{port}: .*--master_port"):
            meet(Topology(0, 2, 0, 1), "127.0.0.1", port, SECONDS, {})
