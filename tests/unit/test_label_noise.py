"""label_noise.py tells a list without suspects from no list."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.reading.tars import ShardSet
from pipeline.run.angles import write_suspects
from pipeline.run.folder import RunFolder
from tests.faces import ROOT, write_shards
from tests.warm_stage import run_warm

RECIPE = """
data: {{shards: {shards}, global_batch: 12, decode_threads: 1}}
backbone: {{name: sphereface4, embedding_dim: 8}}
optimizer: {{steps: 1, learning_rate: 0.02}}
"""


def test_a_run_without_a_list_of_suspects_says_what_makes_one(tmp_path: Path) -> None:
    shards, run = write_shards(tmp_path), tmp_path / "run"
    recipe = tmp_path / "night.yaml"
    recipe.write_text(RECIPE.format(shards=shards))
    assert run_warm(ROOT / "stages/train.py", "--recipe", recipe, "--run", run).returncode == 0

    def said() -> str:
        done = run_warm(ROOT / "stages/label_noise.py", run)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("; suspects: ")[2]

    none_yet = "no list yet: log.suspect_degrees makes one after each epoch"
    assert said() == f"{none_yet}\n"
    assert none_yet in (run / "label_noise/label_noise.html").read_text()
    samples = ShardSet(shards).manifest.samples
    write_suspects(RunFolder(run).suspects, ShardSet(shards), np.ones(samples, np.float32), 75)
    assert said() == "0\n"
