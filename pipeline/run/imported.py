"""A run's folder of weights that were trained elsewhere: evaluated, exported and started from as a run of ours is.

Its only checkpoint is that of step 0, without an optimizer's state: the folder cannot be trained on, but `init.run` may
name it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from cluster.versions import versions
from pipeline.backbones import Backbone
from pipeline.files import make_folder, write_file
from pipeline.optim.sgd import SGD
from pipeline.recipe.schema import Data, Recipe
from pipeline.run.checkpoint import BACKBONE, META, CheckpointError, Meta, encoded, rows_file
from pipeline.run.folder import RunFolder
from pipeline.run.retention import discard, put_in_place
from pipeline.run.tensor_file import FileFacts, write_tensors

STEP = 0


def write_imported(
    run: Path,
    backbone: Backbone,
    weights: dict[str, torch.Tensor],
    image_size: tuple[int, int],
    facts: dict[str, Any],
    *,
    rows: Iterable[torch.Tensor] = (),
    identities: Sequence[str] = (),
) -> int:
    """Write the folder; the number of classes.

    Args:
        run: the folder; made if need be.
        backbone, weights: the network, and its parameters and buffers, which take our pixels.
        image_size: (H, W) of its faces.
        facts: of where it came from, for ``run.json``.
        rows: of the classifier, [n, D] each, in the order of the classes.
        identities: the name of each class. Rows beyond the names were never a person's, and are left out.

    Raises:
        CheckpointError: when the folder holds a run, or there are more names than rows.
        OSError: naming the file that cannot be written.
    """
    folder = RunFolder(run)
    if folder.saved_steps() or folder.history.exists():
        raise CheckpointError(f"{run}: holds a run; wanted a folder of another name")
    partial = folder.partial(STEP)
    make_folder(partial)
    try:
        files = {BACKBONE: write_tensors(partial / BACKBONE, {f"backbone.{n}": t for n, t in weights.items()})}
        files |= _write_rows(partial, rows, identities)
        names = "".join(f"{name}\n" for name in identities).encode()
        meta = Meta(
            step=STEP,
            num_classes=len(identities),
            embedding_dim=backbone.embedding_dim,
            identities_sha256=hashlib.sha256(names).hexdigest(),
            num_ranks=1,
            files=files,
        )
        write_file(partial / META, encoded(meta))
        write_file(folder.identities, names)
        write_file(folder.recipe, _recipe(run, backbone).encode())
        described = {"imported": facts, "image_size": list(image_size), "versions": versions()}
        write_file(folder.facts, (json.dumps(described, indent=2) + "\n").encode())
        put_in_place(partial, folder.checkpoint(STEP))
    except BaseException:
        discard(partial)
        raise
    return len(identities)


def _write_rows(folder: Path, rows: Iterable[torch.Tensor], identities: Sequence[str]) -> dict[str, FileFacts]:
    """A file for each block of rows, up to the last identity."""
    files: dict[str, FileFacts] = {}
    first = 0
    for block in rows:
        stop = min(first + len(block), len(identities))
        if stop > first:
            name = rows_file(first, stop)
            files[name] = write_tensors(folder / name, {"rows": block[: stop - first]})
            first = stop
    if first < len(identities):
        raise CheckpointError(f"identities: got {len(identities):,} names for {first:,} rows, wanted a row for each")
    return files


def _recipe(run: Path, backbone: Backbone) -> str:
    """The recipe of the folder: only its backbone means something, and nothing can be trained by it."""
    recipe = Recipe(
        data=Data(shards=run / "not-here", global_batch=1), backbone=backbone, optimizer=SGD(steps=1, learning_rate=1.0)
    )
    keys = recipe.model_dump(mode="json", exclude_defaults=True)
    head = "# Weights that were trained elsewhere (run.json): of this recipe only the backbone is theirs.\n"
    return head + yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
