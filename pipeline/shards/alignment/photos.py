"""Photographs of people to aligned crops, with a table of the crops and a list of what was not simple."""

import hashlib
import io
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import NotWrittenError, locked, make_folder, named, remove_asides, write_file
from pipeline.shards.alignment.detector import Face, detect, nearest_centre
from pipeline.shards.alignment.results import (
    ALIGNED,
    NO_FACE,
    SEVERAL,
    TINY,
    Result,
    counted,
    crop_path,
    done_keys,
    kind_of,
    write_lists,
)
from pipeline.shards.alignment.similarity import crop, reference_points
from pipeline.shards.decode import decoded
from pipeline.shards.format.manifest import PROGRESS, ShardError
from pipeline.shards.images import SetAsideError
from pipeline.shards.sources import Read, Source
from pipeline.shards.sources.loss import refuse_lost
from pipeline.shards.workers import each_done

logger = logging.getLogger(__name__)

# Written last, into the folder of the crops: how they were made, and when that began.
FINISHED = ".aligned.json"
BATCH = 64  # photographs after which progress is on the disk
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Alignment:
    """What is to be done: photographs `todo` of a source to crops of a size in a folder; `keys` are of all of them."""

    source: Source
    keys: Sequence[str]
    out: Path
    size: tuple[int, int]
    min_face: int
    todo: NDArray[np.int64]

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-len(self.todo) // BATCH)

    def plan(self) -> dict[str, object]:
        """What must be equal for two processes to work on it: the same photographs, after the same crops."""
        return {"source": self.source.digest(), **self.facts(), "after": _mark(self.out)}

    def facts(self) -> dict[str, object]:
        """How crops are made."""
        return {"size": list(self.size), "min_face": self.min_face}


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
    """Write `out/<identity>/<photograph>.jpg` for every photograph with a face; resume an earlier run.

    In a finished folder, photographs that are new or that changed are added. As soon as all parts are done, `out` +
    `.csv` and `.tsv` list the crops and what was not simple, as in `results`.

    Args:
        source: photographs.
        out: folder of identity folders for the crops.
        size: (height, width) of a crop: 112x96 or 112x112.
        min_face: a face whose box has a shorter side than this, in pixels, is listed and not written.
        workers: processes; the result does not depend on it.
        part: (number, parts): every `parts`-th batch only, the others being aligned elsewhere at any time.
        progress: called with the number of photographs of each batch.

    Returns:
        How many photographs of the part had which result; of all parts and before, if there is nothing to do.

    Raises:
        ShardError: `out` holds crops of other photographs or of another size, or the detector is not installed.
        NotWrittenError: the disk is full or read-only.
    """
    reference_points(*size)
    keys = [source.key(photo) for photo in range(len(source.labels))]
    _check_paths(source, keys)
    todo = _left_to_do(source, keys, out, {"size": list(size), "min_face": min_face})
    work = Alignment(source, keys, out, size, min_face, todo)
    plan = work.plan()
    if not len(work.todo):
        _remove_records(out)
        return counted(out, frozenset(keys))
    if _claim(out, plan):
        return counted(out, frozenset(keys))
    ends: Counter[str] = Counter()
    try:
        for results in each_done(partial(_align_batch, work), range(part[0], work.batches, part[1]), workers):
            ends.update(kind_of(result.what) for result in results)
            progress(len(results))
        _join(work)
    except NotWrittenError:
        # Another process may have finished, and removed the folder with the locks.
        if _mark(out) == plan["after"]:
            raise
    return ends


def _check_paths(source: Source, keys: Sequence[str]) -> None:
    """Refuse two photographs that would have one crop, or two crops that would have one row in the table.

    A photograph that is listed twice is one.
    """
    photo_of: dict[str, int] = {}
    for photo, (key, label) in enumerate(zip(keys, source.labels.tolist(), strict=True)):
        path = crop_path(key, source.identities[label])
        other = photo_of.setdefault(path, photo)
        if other != photo and not (keys[other] == key and _are_one(source, photo, other)):
            raise ShardError(f"{keys[other]} and {key}: got one crop, {path}, for two photographs; rename one")
    crops = Counter(map(keys.__getitem__, photo_of.values()))
    if shared := [key for key, count in crops.items() if count > 1]:
        others = f" and {len(shared) - 1:,} more" if len(shared) > 1 else ""
        raise ShardError(f"{shared[0]}{others}: got several people of one photograph, wanted one")


def _are_one(source: Source, photo: int, other: int) -> bool:
    try:
        return source.read(photo) == source.read(other)
    except SetAsideError:  # neither has a crop then
        return True


def _left_to_do(source: Source, keys: Sequence[str], out: Path, facts: dict[str, object]) -> NDArray[np.int64]:
    """Numbers of the photographs that `out` does not have the results of, or has those of before they changed."""
    everything = np.arange(len(source.labels))
    if not (out / FINISHED).is_file():
        return everything
    there = json.loads((out / FINISHED).read_bytes())
    _refuse_other(out, there, facts)
    done = done_keys(out)
    is_done = np.array([key in done for key in keys])
    if done and not is_done.any():
        raise ShardError(f"{out}: holds crops of other photographs; choose another folder or remove it")
    if gone := len(done - {*keys, *(one.path for one in source.set_aside)}):
        logger.warning("%s: %d photographs are not in the source any more; their crops stay", out, gone)
    return everything[~is_done | (source.modified(everything) > there["began"])]


def _join(work: Alignment) -> None:
    """Write the lists if all batches are done and no other part did; two parts may finish at the same time."""
    out, records = work.out, work.out / PROGRESS
    with locked(records / "lock"):
        if not all(_record(out, batch).is_file() for batch in range(work.batches)):
            return
        for folder in (out, *out.iterdir()):
            remove_asides(folder)
        new = frozenset(work.keys[photo] for photo in work.todo.tolist())
        write_lists(out, partial(_all_results, work), new, work.source.set_aside, frozenset(work.keys))
        # A photograph that changes from the beginning on is looked at again.
        began = (records / "plan.json").stat().st_mtime
        write_file(out / FINISHED, json.dumps({**work.facts(), "began": began}).encode())
        _remove_records(out)


def _remove_records(out: Path) -> None:
    """Remove the records of a plan that is finished; a run killed between its last two steps has them still."""
    if _plan_in(out / PROGRESS).get("after") != _mark(out):
        with named(out / PROGRESS, "not removed"):
            shutil.rmtree(out / PROGRESS, ignore_errors=True)


def align_photo(data: bytes, size: tuple[int, int], min_face: int) -> tuple[bytes, str, Face | None]:
    """The aligned crop as JPEG (empty if there is none), the result for the photograph, and the face that was taken."""
    try:
        photo = decoded(data, upright=True).convert("RGB")
    except SetAsideError as error:
        return b"", f"unreadable: {error}", None
    faces = detect(np.asarray(photo))
    if not faces:
        return b"", NO_FACE, None
    face = nearest_centre(faces, photo.height, photo.width)
    if face.side < min_face:
        return b"", f"{TINY}: got {face.side:.0f} pixels, wanted {min_face}", face
    try:
        aligned = crop(photo, face.landmarks, *size)
    except ValueError as error:
        return b"", f"{NO_FACE}: {error}", face
    buffer = io.BytesIO()
    aligned.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), f"{SEVERAL}: {len(faces)}" if len(faces) > 1 else ALIGNED, face


def _align_batch(work: Alignment, batch: int) -> list[Result]:
    """Align one batch unless it is done; returns what became of each photograph."""
    record = _record(work.out, batch)
    # Of two processes on one part, the second waits and then finds the record.
    with locked(record.with_suffix(".lock")):
        if not record.is_file():
            photos = work.todo[batch * BATCH : (batch + 1) * BATCH]
            people = [work.source.identities[label] for label in work.source.labels[photos].tolist()]
            results, images = [], []
            for one, identity in zip(work.source.read_many(photos), people, strict=True):
                results.append(_align_one(work, one, identity))
                images.append(one.image if isinstance(one.image, SetAsideError) else b"")
            refuse_lost(work.source, [result.key for result in results], images)
            write_file(record, json.dumps(results).encode())
            return results
        return _results(work.out, batch)


def _record(out: Path, batch: int) -> Path:
    return out / PROGRESS / f"{batch}.json"


def _results(out: Path, batch: int) -> list[Result]:
    """Of a finished batch: what became of each photograph."""
    return [Result(*fields) for fields in json.loads(_record(out, batch).read_bytes())]


def _all_results(work: Alignment) -> Iterator[Result]:
    return chain.from_iterable(_results(work.out, batch) for batch in range(work.batches))


def _align_one(work: Alignment, photo: Read, identity: str) -> Result:
    path = crop_path(photo.key, identity)
    if isinstance(photo.image, SetAsideError):
        image, what, face = b"", str(photo.image), None
    else:
        image, what, face = align_photo(photo.image, work.size, work.min_face)
    if not image or face is None:
        with named(work.out / path, "not removed"):
            (work.out / path).unlink(missing_ok=True)  # of the photograph before it changed
        return Result(photo.key, what, {})
    make_folder((work.out / path).parent)
    write_file(work.out / path, image)
    box, landmarks = face.box.round(2).tolist(), face.landmarks.round(2).tolist()
    return Result(photo.key, what, dict(photo.fields), path, identity, box, landmarks)


def _mark(out: Path) -> str:
    """What stands for the crops that `out` holds; the empty string if it holds no finished ones."""
    path = out / FINISHED
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _claim(out: Path, plan: dict[str, object]) -> bool:
    """Prepare `out` for writing; it must be new, finished, or hold unfinished crops of the same plan.

    Returns:
        Whether another process has finished the plan by now.
    """
    records = out / PROGRESS
    is_ours = records.is_dir() or (out / FINISHED).is_file()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not is_ours)):
        raise ShardError(f"{out}: is not empty, wanted a new folder")
    try:
        make_folder(records)
        with locked(records / "lock"):  # several machines may begin at once
            if _mark(out) != plan["after"]:
                return True
            there = _plan_in(records)
            if there and there.get("after") == plan["after"]:
                _refuse_other(out, there, plan)
            else:
                # A run killed between its last two steps has the records of a plan that is finished still.
                for record in records.glob("*.json"):
                    record.unlink()
                write_file(records / "plan.json", json.dumps(plan).encode())
    except NotWrittenError:
        # It may have removed the folder with the lock just now.
        if _mark(out) == plan["after"]:
            raise
        return True
    return False


def _plan_in(records: Path) -> dict[str, object]:
    path = records / "plan.json"
    plan: dict[str, object] = json.loads(path.read_bytes()) if path.is_file() else {}
    return plan


def _refuse_other(out: Path, there: dict[str, object], facts: dict[str, object]) -> None:
    names = [name for name in facts if there.get(name) != facts[name]]
    if names:
        raise ShardError(f"{out}: holds crops with another {', '.join(names)}; choose another folder or remove it")
