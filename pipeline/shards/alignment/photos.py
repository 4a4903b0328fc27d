"""Photographs of people to aligned crops, in the same folders, with a list of every photograph that was not simple."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.files import NotWrittenError, locked, make_folder, named, remove_asides, write_file
from pipeline.shards.alignment.detector import detect, nearest_centre
from pipeline.shards.alignment.similarity import crop, reference_points
from pipeline.shards.decode import decoded
from pipeline.shards.images import SetAsideError
from pipeline.shards.manifest import ShardError
from pipeline.shards.plan import PROGRESS
from pipeline.shards.sources import Source
from pipeline.shards.workers import each_done

# Written last, into the folder of the crops: what they were made of, and how.
FINISHED = ".aligned.json"
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
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int], object] = lambda _photos: None,
) -> Counter[str]:
    """Write `out/<key of the photograph>.jpg` for every photograph with a face; resume an earlier run.

    Photographs with no face, a tiny one or several, and unreadable ones, are listed in `out` + `.tsv` with path and
    result as soon as all parts are done.

    Args:
        source: photographs, named `identity/file`.
        out: folder of identity folders for the crops.
        size: (height, width) of a crop: 112x96 or 112x112.
        min_face: a face whose box has a shorter side than this, in pixels, is listed and not written.
        workers: processes; the result does not depend on it.
        part: (number, parts): every `parts`-th batch only, the others being aligned elsewhere at any time.
        progress: called with the number of photographs of each batch.

    Returns:
        How many photographs of the part had which result; of all parts if `out` is finished already.

    Raises:
        ShardError: `out` holds crops of other photographs, or the detector is not installed.
        NotWrittenError: the disk is full or read-only.
    """
    reference_points(*size)
    facts = {"source": source.digest(), "size": list(size), "min_face": min_face}
    if is_aligned(out, facts) or _claim(out, facts):
        return _ends_of(source, out)
    batches = -(-len(source.labels) // BATCH)
    ends: Counter[str] = Counter()
    align = partial(_align_batch, source, out, size, min_face)
    try:
        for photos in each_done(align, range(part[0], batches, part[1]), workers):
            ends.update(what.partition(":")[0] for _, what in photos)
            progress(len(photos))
        _join(source, out, facts, batches)
    except NotWrittenError:
        # Another process may have finished, and removed the folder with the locks.
        if not is_aligned(out, facts):
            raise
    return ends


def is_aligned(out: Path, facts: dict[str, object]) -> bool:
    """Whether `out` holds the finished crops with these facts.

    Raises:
        ShardError: it holds those with others.
    """
    if not (out / FINISHED).is_file():
        return False
    _refuse_other(out, json.loads((out / FINISHED).read_bytes()), facts)
    # A run killed between its last two steps has its records still.
    shutil.rmtree(out / PROGRESS, ignore_errors=True)
    return True


def _ends_of(source: Source, out: Path) -> Counter[str]:
    """How many photographs of finished crops had which result, from the list of those that were not simple."""
    lines = _table(out).read_bytes().decode(errors="replace").split("\n")[1:-1]
    ends = Counter(line.partition("\t")[2].partition(":")[0] for line in lines)
    ends.subtract(one.reason.partition(":")[0] for one in source.set_aside)
    return +ends + Counter({ALIGNED: len(source.labels) - ends.total()})


def _join(source: Source, out: Path, facts: dict[str, object], batches: int) -> None:
    """Write the list if all batches are done and no other part did; two parts may finish at the same time."""
    with locked(out / PROGRESS / "lock"):
        if not all(_record(out, batch).is_file() for batch in range(batches)):
            return
        listed = [(one.path, one.reason) for one in source.set_aside]
        for batch in range(batches):
            listed += [(key, what) for key, what in _results(out, batch) if what != ALIGNED]
        text = "path\twhat\n" + "".join(f"{path}\t{what}\n" for path, what in sorted(listed))
        for folder in out.iterdir():
            remove_asides(folder)
        write_file(_table(out), text.encode("utf-8", "backslashreplace"))
        write_file(out / FINISHED, json.dumps(facts).encode())
        with named(out / PROGRESS, "not removed"):
            shutil.rmtree(out / PROGRESS)


def _table(out: Path) -> Path:
    """The list of what was not simple."""
    return out.with_name(out.name + ".tsv")


def align_photo(data: bytes, size: tuple[int, int], min_face: int) -> tuple[bytes, str]:
    """The aligned crop as JPEG (empty if there is none) and the result for this photograph."""
    try:
        photo = decoded(data, upright=True).convert("RGB")
    except SetAsideError as error:
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


def _align_batch(source: Source, out: Path, size: tuple[int, int], min_face: int, batch: int) -> list[tuple[str, str]]:
    """Align one batch unless it is done; returns the key and the result of each photograph."""
    record = _record(out, batch)
    # Of two processes on one part, the second waits and then finds the record.
    with locked(record.with_suffix(".lock")):
        if not record.is_file():
            photos = range(batch * BATCH, min((batch + 1) * BATCH, len(source.labels)))
            ends = [_align_one(source, out, size, min_face, photo) for photo in photos]
            write_file(record, json.dumps(ends).encode())
            return ends
        return _results(out, batch)


def _record(out: Path, batch: int) -> Path:
    return out / PROGRESS / f"{batch}.json"


def _results(out: Path, batch: int) -> list[tuple[str, str]]:
    """Of a finished batch: the key and the result of each photograph."""
    return [(key, what) for key, what in json.loads(_record(out, batch).read_bytes())]


def _align_one(source: Source, out: Path, size: tuple[int, int], min_face: int, photo: int) -> tuple[str, str]:
    key = source.key(photo)
    try:
        image, what = align_photo(source.read(photo), size, min_face)
    except SetAsideError as error:
        return key, str(error)
    if image:
        path = out / (key if key.lower().endswith((".jpg", ".jpeg")) else f"{key}.jpg")
        make_folder(path.parent)
        write_file(path, image)
    return key, what


def _claim(out: Path, facts: dict[str, object]) -> bool:
    """Prepare `out` for writing; it must be new, or hold unfinished crops with the same facts.

    Returns:
        Whether another process has finished it by now.
    """
    records = out / PROGRESS
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not records.is_dir())):
        raise ShardError(f"{out}: is not empty, wanted a new folder")
    plan = records / "plan.json"
    try:
        make_folder(records)
        with locked(records / "lock"):  # several machines may begin at once
            if is_aligned(out, facts):
                return True
            if plan.is_file():
                _refuse_other(out, json.loads(plan.read_bytes()), facts)
            write_file(plan, json.dumps(facts).encode())
    except NotWrittenError:
        # It may have removed the folder with the lock just now.
        if not is_aligned(out, facts):
            raise
        return True
    return False


def _refuse_other(out: Path, there: dict[str, object], facts: dict[str, object]) -> None:
    names = [name for name in facts if there.get(name) != facts[name]]
    if names:
        raise ShardError(f"{out}: holds crops with another {', '.join(names)}; choose another folder or remove it")
