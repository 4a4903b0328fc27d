"""What a checkpoint does not fit is refused in words: people, sizes, another backbone, margin, optimizer or format."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.stop import EXIT_UNSAVED, code_of
from pipeline.files import NotWrittenError
from pipeline.run import checkpoint
from pipeline.run.checkpoint import CheckpointError, State
from pipeline.run.folder import RunFolder
from pipeline.run.saver import Saver
from pipeline.run.tensor_file import TensorFile
from tests.unit.run.saved import meta, save_steps, state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"identities_sha256": "cd"},
            "identities_sha256: got cd, wanted ab as saved: the shards name other identities; start another run",
        ),
        ({"num_classes": 12}, "num_classes: got 12, wanted 5 as saved: other shards"),
        ({"embedding_dim": 3}, "embedding_dim: got 3, wanted 2 as saved: another backbone.embedding_dim"),
    ],
)
def test_other_facts_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_steps(tmp_path, 4)
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load(tmp_path, 4, state(), replace(meta(4), **changes))
    assert message in str(refused.value)


def other_backbone(live: State) -> None:
    live.backbone["other.weight"] = torch.zeros(2)


def other_size(live: State) -> None:
    live.backbone["conv.weight"] = torch.zeros(2)


def other_margin(live: State) -> None:
    live.head_state["deviation"] = torch.zeros(2)


def other_optimizer(live: State) -> None:
    live.row_slots = {"exp_avg": live.rows_SD, "exp_avg_sq": live.rows_SD}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_backbone, "another backbone: missing ['backbone.other.weight'], not wanted nothing"),
        (other_size, "another backbone: backbone.conv.weight: got [2], wanted [64] as saved"),
        (other_margin, "another margin: missing ['head.deviation'], not wanted nothing"),
        (
            other_optimizer,
            "slots: got ['exp_avg', 'exp_avg_sq'], wanted ['momentum'] as saved: another optimizer; start",
        ),
    ],
)
def test_another_state_is_refused(tmp_path: Path, change: Callable[[State], None], message: str) -> None:
    save_steps(tmp_path, 4)
    live = state()
    change(live)
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load(tmp_path, 4, live, meta(4))
    assert message in str(refused.value)


def test_a_parameter_frozen_since_needs_no_slots_and_one_trained_since_does(tmp_path: Path) -> None:
    saver, trained = Saver(tmp_path, None, 1), state({"conv.weight": torch.full((64,), 7.0), "bn.num": torch.tensor(7)})
    trained.backbone_slots = {"momentum": {"conv.weight": torch.ones(64)}}
    saver.begin(trained, meta(4))
    saver.wait()
    frozen = state({name: torch.zeros_like(tensor) for name, tensor in trained.backbone.items()})
    checkpoint.load(tmp_path, 4, frozen, meta(4))
    assert torch.equal(frozen.backbone["conv.weight"], trained.backbone["conv.weight"])
    trained.backbone_slots["momentum"]["bn.num"] = torch.tensor(0)
    with pytest.raises(CheckpointError, match=r"another backbone: missing \['momentum.bn.num'\], not wanted nothing"):
        checkpoint.load(tmp_path, 4, trained, meta(4))


@pytest.mark.parametrize(("number", "message"), [(1, "got 1"), (4, "got 4"), (None, "got None")])
def test_another_format_is_refused_with_those_that_are_read(tmp_path: Path, number: object, message: str) -> None:
    folder = RunFolder(tmp_path).checkpoint(3)
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"format": number}))
    with pytest.raises(CheckpointError, match=f"meta.json: format: {message}, wanted 2 or 3"):
        checkpoint.read_meta(folder)


def test_a_disk_that_does_not_answer_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_steps(tmp_path, 4)

    def fail(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(TensorFile, "read", fail)
    with pytest.raises(NotWrittenError, match="step-00000004: not read: Stale file handle") as unread:
        checkpoint.load(tmp_path, 4, state(), meta(4))
    assert code_of(unread.value) == EXIT_UNSAVED
