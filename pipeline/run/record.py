"""What a run's folder says of the run, beside its checkpoints: recipe.yaml, identities.txt and run.json."""

from __future__ import annotations

import json
import platform
import socket
import time
from pathlib import Path

import torch

from cluster.versions import versions
from pipeline.files import named, write_file
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Recipe
from pipeline.run.folder import RunFolder
from pipeline.shards.format.names import IDENTITIES_NAME


def device_name(device: torch.device) -> str:
    """The GPU's name, or the kind of CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def restarts_of(run: Path) -> int:
    """How often the run in this folder was started before."""
    try:
        return int(json.loads(RunFolder(run).facts.read_text()).get("restarts", 0)) + 1
    except (OSError, ValueError, TypeError, AttributeError):
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

    Raises:
        OSError: naming the file that cannot be written, or read.
    """
    folder = RunFolder(run)
    with named(run):
        run.mkdir(parents=True, exist_ok=True)
    write_file(folder.recipe, recipe.to_yaml().encode())
    # which row of the head is which person: a later run may start from this one with other people
    write_file(folder.identities, (shards.folder / IDENTITIES_NAME).read_bytes())
    facts = {
        "command": command,
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "ranks": num_ranks,
        "restarts": restarts,
        "device": device_name(device),
        "image_size": [shards.manifest.image_height, shards.manifest.image_width],
        "shards": {"samples": shards.manifest.samples, "identities": shards.manifest.identities}
        | {"digest": shards.manifest.digest},
        "versions": versions(),
    }
    write_file(folder.facts, (json.dumps(facts, indent=2) + "\n").encode())
