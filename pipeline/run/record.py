"""What a run's folder says of the run, beside its checkpoints: recipe.yaml, identities.txt and run.json."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import time
from pathlib import Path

import torch

from cluster.versions import versions
from pipeline.files import write_file
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Recipe


def restarts_of(run: Path) -> int:
    """How often the run in this folder was started before."""
    try:
        return int(json.loads((run / "run.json").read_text()).get("restarts", 0)) + 1
    except (OSError, ValueError):
        return 0


def record_run(
    run: Path, recipe: Recipe, shards: ShardSet, command: str, num_ranks: int, device: torch.device, restarts: int
) -> None:
    """Write what it takes to repeat the run from its folder; on one rank.

    Args:
        run: the folder, made if need be.
        recipe, shards: resolved, and what is trained on.
        command: that started it.
        num_ranks, device: where it runs.
        restarts: how often it was started before.
    """
    run.mkdir(parents=True, exist_ok=True)
    write_file(run / "recipe.yaml", recipe.to_yaml().encode())
    # which row of the head is whom: a later run may start from this one with other people
    shutil.copyfile(shards.folder / "identities.txt", run / "identities.txt")
    facts = {
        "command": command,
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "ranks": num_ranks,
        "restarts": restarts,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "image_size": [shards.manifest.image_height, shards.manifest.image_width],
        "shards": {"samples": shards.manifest.samples, "identities": shards.manifest.identities}
        | {"digest": shards.manifest.digest},
        "versions": versions(),
    }
    write_file(run / "run.json", (json.dumps(facts, indent=2) + "\n").encode())
