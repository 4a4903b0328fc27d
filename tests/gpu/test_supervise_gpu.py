"""Ranks that a supervisor's agent forks can use the GPU: its imports of DeepSpeed and DALI must not have opened it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from cluster.marks import AGENT_VARIABLE
from cluster.supervision.connection import Connection
from tests.faces import ROOT

RANK = """
import json, sys
import_of_agent = "deepspeed" in sys.modules
import torch
from pathlib import Path
device = sys.argv[2]
ones = torch.ones(64, 64, device=device)
place = Path(sys.argv[1], "answer")
place.with_suffix(".part").write_text(json.dumps([import_of_agent, (ones @ ones).sum().item()]))
place.with_suffix(".part").rename(place)
"""


def test_a_forked_rank_computes_on_the_device(device: torch.device, tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, "-m", "cluster.supervision.host_agent", "--import", "pipeline.training.loop"]
    command += [str(tmp_path / "rank.py"), str(tmp_path), device.type]
    marks = {AGENT_VARIABLE: str(tmp_path), "PYTHONPATH": str(ROOT)}
    agent = Connection(command, os.environ | marks, prefix=None)
    try:
        agent.start([{"RANK": "0"}])
        deadline = time.monotonic() + 300
        while not agent.codes:
            assert time.monotonic() < deadline and not agent.is_lost
            time.sleep(0.05)
        assert agent.codes == {0: 0}
        assert json.loads((tmp_path / "answer").read_text()) == [True, 64.0**3]
    finally:
        agent.close(60)
