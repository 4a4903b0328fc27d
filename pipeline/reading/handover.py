"""Batches from the thread that decodes to the one that trains: made on a stream of their own, handed over by event."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class Handover:
    """Passes tensors on a GPU between two threads so that neither host nor device waits for more than the tensors.

    Without it both threads would queue on the same stream: the decoding thread's copies would wait behind a whole step
    of training, and its synchronisation with them. On a CPU there is nothing to pass: tensors are there when made.

    Args:
        device: on which the tensors are made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def making(self) -> AbstractContextManager[Any]:
        """In the thread that makes tensors: the stream of this handover is the current one meanwhile."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def made(self) -> Any:
        """In that thread: what to give to `take` with the tensors made so far."""
        return None if self._stream is None else self._stream.record_event()

    def take(self, made: Any, *tensors: torch.Tensor) -> None:
        """In the thread that uses the tensors: its current stream waits until they are made; the host does not."""
        if made is None:
            return
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(made)
        for tensor in tensors:
            tensor.record_stream(stream)  # their memory is not the making stream's again before this one is done
