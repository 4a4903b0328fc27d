"""Tensors passed between threads: on a fake GPU, whose streams write down what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from pipeline.reading.handover import Handover


class FakeStream:
    """A stream that only keeps a log; to wait for it on the host is what must not happen."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def record_event(self) -> str:
        self.log.append(f"event on {self.name}")
        return f"event of {self.name}"

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def synchronize(self) -> None:
        raise AssertionError("the host waits")


class FakeTensor:
    """Knows only which streams use it."""

    def __init__(self) -> None:
        self.users: list[str] = []

    def record_stream(self, stream: FakeStream) -> None:
        self.users.append(stream.name)


def test_on_a_gpu_the_training_stream_waits_for_the_tensors_and_no_host_does(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    current = [FakeStream(log, "training")]

    @contextmanager
    def use(stream: FakeStream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(log, f"reader on {device}"))
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    handover = Handover(torch.device("cuda", 1))
    with handover.making():
        assert current[-1].name == "reader on cuda:1"
        made = handover.made()
    tensors: Any = (FakeTensor(), FakeTensor())
    handover.take(made, *tensors)
    assert log == ["event on reader on cuda:1", "training waits for event of reader on cuda:1"]
    assert [tensor.users for tensor in tensors] == [["training"], ["training"]]


def test_on_a_cpu_there_is_nothing_to_wait_for() -> None:
    handover = Handover(torch.device("cpu"))
    with handover.making():
        made = handover.made()
    handover.take(made, torch.zeros(1))
    assert made is None
