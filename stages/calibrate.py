#!/usr/bin/env python
"""Measure on these ranks what the planner cannot know: how fast they compute, read, exchange and save.

  deepspeed --num_gpus 8 stages/calibrate.py --recipe stages/recipes/casia_sphereface20.yaml --out rates.json \\
      --set data.shards=/data/casia-shards
  python stages/plan.py --recipe ... --set ... --rates rates.json --ranks 64

A minute: a few steps of the recipe on its own shards, then its parts alone. Every rank works as in training, also
on several hosts (--hostfile). Nothing is kept but --out; a folder beside it is trained in, and removed.
The rates are those of the recipe's backbone, optimizer and precision; the plan may be for other classes, batches and
ranks.
Exit code 65: recipe or shards are refused; 69: the ranks did not meet; 74: the disk takes nothing.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import dataclasses
import json
import logging
import os
import shutil
import socket
import sys
import time
from pathlib import Path

from cluster.algorithms import choose_algorithms, keep_compiled
from cluster.ranks.process_group import device_of, process_group
from cluster.ranks.rendezvous import DisagreeError, StartError
from cluster.ranks.topology import Topology, TopologyError
from cluster.stop import EXIT_LOST, EXIT_REFUSED, exit_with, faults_in_one_line
from cluster.stopwatch import STARTUP
from cluster.versions import versions
from pipeline.files import named, write_file
from pipeline.planning.of_recipe import network_of, whole_job_of
from pipeline.reading.tars import ShardSet
from pipeline.recipe.file import load_recipe
from pipeline.recipe.fit import check_against_set
from pipeline.recipe.schema import Recipe, RecipeError
from pipeline.run.checkpoint import CheckpointError
from pipeline.shards.format.manifest import ShardError


@faults_in_one_line("calibrate", (TopologyError, RecipeError, ShardError, CheckpointError, OSError))
def main() -> int:
    """Check what one rank can check, then meet the other ranks and measure; returns the exit code."""
    STARTUP.done("imports")
    args = _parser().parse_args()
    topology = Topology.from_environment(os.environ)
    os.environ.update(topology.to_environment())  # DeepSpeed reads them, also those of one rank without a launcher
    for noisy in ("DeepSpeed", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        recipe = load_recipe(args.recipe, args.set)
        shards = ShardSet(recipe.data.shards)
        manifest = shards.manifest
        check_against_set(
            recipe,
            samples=manifest.samples,
            identities=manifest.identities,
            image_size=(manifest.image_height, manifest.image_width),
            num_ranks=topology.num_ranks,
        )
        measure(recipe, shards, topology, args.out, args.steps)
    except StartError as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return EXIT_REFUSED if isinstance(error, DisagreeError) else EXIT_LOST
    return 0


def measure(recipe: Recipe, shards: ShardSet, topology: Topology, out: Path, steps: int) -> None:
    """Measure on all ranks; rank 0 writes the rates."""
    manifest, first = shards.manifest, topology.rank == 0
    size = manifest.image_height, manifest.image_width
    job = whole_job_of(recipe, manifest.identities, topology.num_ranks)
    network = network_of(recipe.backbone, size, job.bf16)
    folder = out.with_name(f"{out.name}.trained-in")
    if first:
        with named(out):
            folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    try:
        device = device_of(topology)
        with process_group(topology, device, recipe.timeout_seconds, {"recipe": recipe.to_yaml()}) as together:
            from pipeline.training.calibration import calibrate
            from pipeline.training.loop import Trainer

            if recipe.backbone.compile:
                keep_compiled()
            choose_algorithms(recipe.deterministic, recipe.backbone.compile)
            # as many steps as wanted, and no save or report in between
            endless = recipe.optimizer.model_copy(update={"steps": 10**9})
            longer = recipe.model_copy(update={"optimizer": endless})
            trainer = Trainer(longer, shards, folder, topology, together.group, device)
            rates = calibrate(trainer, job, network, steps, say if first else lambda _: None)
        if first:
            found = {"rates": dataclasses.asdict(rates), "measured": facts(recipe, size, topology, str(device))}
            write_file(out, (json.dumps(found, indent=1) + "\n").encode())
            say(f"{out} written")
    finally:
        if first:
            shutil.rmtree(folder, ignore_errors=True)


def facts(recipe: Recipe, image_size: tuple[int, int], topology: Topology, device: str) -> dict[str, object]:
    """On what the rates were measured."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "ranks": topology.num_ranks,
        "ranks_of_a_host": topology.ranks_of_node,
        "device": device,
        "backbone": recipe.backbone.name,
        "precision": recipe.precision,
        "zero_stage": recipe.zero_stage,
        "global_batch": recipe.data.global_batch,
        "image_size": list(image_size),
        "versions": versions(),
    }


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"calibrate: {text}", file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """An argument that counts something. Raises ValueError, which argparse words."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepspeed stages/calibrate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="YAML file; see stages/recipes/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key; repeatable")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file for stages/plan.py --rates")
    parser.add_argument("--steps", type=positive, default=10, help="that are measured (default %(default)s)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher passes it
    return parser


if __name__ == "__main__":
    exit_with(main)
