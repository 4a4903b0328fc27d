"""Photographs of people to aligned crops, folder for folder, with a list of what was not plain."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline.shards.alignment.detector import detect, nearest_centre
from pipeline.shards.alignment.similarity import crop, reference_points
from pipeline.shards.errors import SetAsideError, ShardError
from pipeline.shards.files import write_file
from pipeline.shards.plan import PROGRESS
from pipeline.shards.sources import Source
from pipeline.shards.workers import each_done

BATCH = 64  # photographs after which progress is on the disk
JPEG_QUALITY = 95

ALIGNED, SEVERAL, NO_FACE, TINY = "aligned", "several faces, the nearest the centre taken", "no face", "tiny face"


def align_photos(
    source: Source,
    out: Path,
    *,
    size: tuple[int, int] = (112, 96),
    min_face: int = 32,
    workers: int = 1,
    progress: Callable[[int], object] = lambda _photos: None,
) -> Counter[str]:
    """Write `out/<key of the photograph>.jpg` for every photograph with a face; go on where an earlier run stopped.

    What was not plain (no face, a tiny one, several, unreadable) is listed in `out` + `.tsv`: path and what.

    Args:
        source: photographs, named `identity/file`.
        out: folder of identity folders for the crops.
        size: (height, width) of a crop: 112x96 or 112x112.
        min_face: a face whose box has a shorter side than this, in pixels, is listed and not written.
        workers: processes; the result does not depend on it.
        progress: called with the number of photographs of each batch.

    Returns:
        How many photographs came to which end.

    Raises:
        ShardError: `out` holds crops of other photographs, the disk is full, or the detector is not installed.
    """
    reference_points(*size)
    records = out / PROGRESS
    facts = {"source": source.digest(), "size": list(size), "min_face": min_face}
    _claim(out, records, facts)
    batches = range(-(-len(source.labels) // BATCH))
    for photos in each_done(partial(_align_batch, source, out, size, min_face), batches, workers):
        progress(photos)
    ends = [json.loads((records / f"{batch}.json").read_bytes()) for batch in batches]
    found = [(path, what) for batch in ends for path, what in batch]
    listed = sorted([*source.set_aside, *((path, what) for path, what in found if what != ALIGNED)])
    text = "".join(["path\twhat\n", *(f"{path}\t{what}\n" for path, what in listed)])
    write_file(out.with_name(out.name + ".tsv"), text.encode("utf-8", "backslashreplace"))
    shutil.rmtree(records)
    return Counter(what.partition(":")[0] for _, what in found)


def align_photo(data: bytes, size: tuple[int, int], min_face: int) -> tuple[bytes, str]:
    """The aligned crop as JPEG (empty when there is none) and what became of the photograph."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            photo = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return b"", f"unreadable: {error}"
    faces = detect(np.asarray(photo))
    if not faces:
        return b"", NO_FACE
    face = nearest_centre(faces, photo.height, photo.width)
    if face.side < min_face:
        return b"", f"{TINY}: got {face.side:.0f} pixels, wanted {min_face}"
    buffer = io.BytesIO()
    crop(photo, face.landmarks, *size).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), f"{SEVERAL}: {len(faces)}" if len(faces) > 1 else ALIGNED


def _align_batch(source: Source, out: Path, size: tuple[int, int], min_face: int, batch: int) -> int:
    """Align one batch unless it is done; returns its photographs."""
    record = out / PROGRESS / f"{batch}.json"
    photos = range(batch * BATCH, min((batch + 1) * BATCH, len(source.labels)))
    if not record.is_file():
        write_file(record, json.dumps([_align_one(source, out, size, min_face, photo) for photo in photos]).encode())
    return len(photos)


def _align_one(source: Source, out: Path, size: tuple[int, int], min_face: int, photo: int) -> tuple[str, str]:
    key = source.key(photo)
    try:
        image, what = align_photo(source.read(photo), size, min_face)
    except SetAsideError as error:
        return key, str(error)
    if image:
        path = out / (key if key.lower().endswith((".jpg", ".jpeg")) else f"{key}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, image)
    return key, what


def _claim(out: Path, records: Path, facts: dict[str, object]) -> None:
    plan = records / "plan.json"
    if plan.is_file():
        there = json.loads(plan.read_bytes())
        names = [name for name in facts if there.get(name) != facts[name]]
        if names:
            raise ShardError(f"{out}: holds crops with another {', '.join(names)}; choose another folder or remove it")
        return
    if out.exists() and (not out.is_dir() or any(path != records for path in out.iterdir())):
        raise ShardError(f"{out}: is not empty, wanted a new folder")
    records.mkdir(parents=True, exist_ok=True)
    write_file(plan, json.dumps(facts).encode())
