"""Small checkpoints of one process, for tests of what is done with them."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.run.checkpoint import Meta, State
from pipeline.run.saver import Saved, Saver

CLASSES, DIM = 5, 2


def state(backbone: dict[str, torch.Tensor] | None = None) -> State:
    """One process's tensors; the backbone's are ones, unless given."""
    rows = torch.arange(CLASSES * DIM, dtype=torch.float32).reshape(CLASSES, DIM)
    return State(rows, {"momentum": rows + 0.5}, 0, backbone or {"conv.weight": torch.ones(64)}, {"momentum": {}})


def meta(step: int) -> Meta:
    """What goes with `state` after `step` steps."""
    return Meta(step, CLASSES, DIM, "ab", 1)


def save(saver: Saver, step: int, **options: bool) -> Saved:
    """Save `state` and wait for it."""
    saver.begin(state(), meta(step), **options)
    saved = saver.finish()
    assert saved is not None
    return saved


def save_steps(run: Path, *steps: int, keep: int = 9, backbone: dict[str, torch.Tensor] | None = None) -> None:
    """A run's checkpoints after these steps, by a process that then ends."""
    saver = Saver(run, None, keep)
    for step in steps:
        saver.begin(state(backbone), meta(step))
        saved = saver.finish()
        assert saved is not None and saved.error is None, saved


def spoil(file: Path, size: int = 64) -> None:
    """Overwrite the last bytes of a file with others, its size unchanged."""
    content = bytearray(file.read_bytes())
    content[-size:] = bytes(byte ^ 0xFF for byte in content[-size:])
    file.write_bytes(content)
