"""Rendered people as identity folders, with a table beside the images: resumed as shards are, a person at a time.

`faces.csv` is written when all images are there, and `made.json` last: a folder that has it is complete. Sharding
`faces.csv` gives the tars that are rendered directly.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import LOCK, held, make_folder, remove_asides, write_file
from pipeline.rendering.sets.source import RenderedSource, refuse_others
from pipeline.shards.format.manifest import PROGRESS, ShardError
from pipeline.shards.images import SetAsideError
from pipeline.shards.sources.list_rows import to_cell, write_table
from pipeline.shards.workers import each_done

TABLE = "faces.csv"
MADE = "made.json"


def make_people(
    source: RenderedSource,
    out: Path,
    *,
    workers: int = 1,
    progress: Callable[[int], object] = lambda _images: None,
) -> None:
    """Write `out/identity/image.jpg` for every photograph of `source`, resuming an earlier run of it.

    Args:
        source: the people.
        out: a new folder, or one that this has begun or finished; another process that writes there is waited for.
        workers: processes that render; the result does not depend on it.
        progress: called with the number of images of each person that is done.

    Raises:
        ShardError: the folder holds something else or other people, or a worker died.
        NotWrittenError: the disk is full, read-only or broken.
    """
    with held(out):
        if (out / MADE).is_file():
            refuse_others(out, _source_in(out / MADE), source.kind)
        else:
            _claim(out, source)
            for _ in each_done(partial(_write_person, source, out), range(source.people), workers):
                progress(source.images)
            remove_asides(out)
            os.sync()  # all images by one call: to wait for each of a million would take as long as to render them
            _write_table(source, out)
            write_file(out / MADE, _facts(source))
        # A run killed between its last two steps has its records still.
        shutil.rmtree(out / PROGRESS, ignore_errors=True)


def _facts(source: RenderedSource) -> bytes:
    facts = {"source": source.kind, "samples": len(source.labels), "identities": source.people}
    return json.dumps(facts, indent=1).encode() + b"\n"


def _source_in(file: Path) -> str:
    """What a folder's facts say was rendered."""
    return str(json.loads(file.read_bytes())["source"])


def _claim(out: Path, source: RenderedSource) -> None:
    """Say in the folder which people are being written there, unless that is said already."""
    begun = out / PROGRESS / MADE
    if begun.is_file():
        refuse_others(out, _source_in(begun), source.kind)
    elif {path.name for path in out.iterdir()} - {LOCK, PROGRESS}:
        raise ShardError(f"{out}: is not empty and holds no rendered people, wanted a new or an empty folder")
    else:
        make_folder(begun.parent)
        write_file(begun, _facts(source))


def _record(source: RenderedSource, out: Path, one: int) -> Path:
    """What is known of a person's photographs; it comes after them."""
    return out / PROGRESS / f"{source.identities[one]}.json"


def _is_whole(source: RenderedSource, out: Path, one: int) -> bool:
    """Whether a person's record is there and whole, and so are the images: a power cut leaves empty files."""
    try:
        rows = json.loads(_record(source, out, one).read_bytes())
        return len(rows) == source.images and all((out / row["path"]).stat().st_size for row in rows)
    except (FileNotFoundError, ValueError):
        return False


def _write_person(source: RenderedSource, out: Path, one: int) -> int:
    record = _record(source, out, one)
    if _is_whole(source, out, one):
        return one
    folder = out / source.identities[one]
    make_folder(folder)
    remove_asides(folder)
    rows = []
    for key, image, fields in source.read_many(np.arange(one * source.images, (one + 1) * source.images)):
        if isinstance(image, SetAsideError):
            raise image
        write_file(out / key, image, synced=False)
        rows.append({"path": key, "identity": source.identities[one], **fields})
    write_file(record, json.dumps(rows).encode(), synced=False)
    return one


def _rows(source: RenderedSource, out: Path) -> Iterator[dict[str, Any]]:
    for one in range(source.people):
        yield from json.loads(_record(source, out, one).read_bytes())


def _write_table(source: RenderedSource, out: Path) -> None:
    """The table: path, identity, and a column for each field, by name; the cells are JSON."""
    names = dict.fromkeys(("path", "identity"))
    others = {name for row in _rows(source, out) for name in row}
    names |= dict.fromkeys(sorted(others))
    rows = ({name: to_cell(value) for name, value in row.items()} for row in _rows(source, out))
    write_table(out / TABLE, list(names), rows)
