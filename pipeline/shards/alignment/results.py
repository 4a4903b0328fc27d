"""What became of photographs: a table of the crops, which is a source of shards, and a list of what was not simple.

`out.csv` has a row for each crop: its path, its person, the photograph's key, the box and the five landmarks that were
found in the photograph (pixels, left eye first), and what the photograph's source knew of it. `out.tsv` lists the
photographs that gave no crop, or had several faces.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.files import LONGEST_NAME, remove_asides
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.sources.list_rows import of_cell, to_cell, write_table

ALIGNED, SEVERAL, NO_FACE, TINY = "aligned", "several faces, the nearest the centre taken", "no face", "tiny face"

COLUMNS = ("path", "identity", "key", "photo_box", "photo_landmarks")
ESCAPED = str.maketrans({"/": "%2F", "%": "%25"})


class Result(NamedTuple):
    """What became of one photograph; `crop` is a path in the folder of crops, empty if there is no crop.

    Processes send each other results, and write them as JSON: `fields` is a `dict`.
    """

    key: str
    what: str
    fields: dict[str, Any]
    crop: str = ""
    identity: str = ""
    box: Sequence[float] = ()
    landmarks: Sequence[Sequence[float]] = ()


def crop_path(key: str, identity: str) -> str:
    """Where the crop of a photograph lies: `identity/file.jpg`, whatever its source calls it.

    Of a key that is not `identity/file`, slashes are escaped, so that no two keys have one path; what is too long for a
    name ends in a digest of all of it.
    """
    name = _escaped(key.removeprefix(f"{identity}/"))
    name = name if name.lower().endswith((".jpg", ".jpeg")) else f"{name}.jpg"
    return f"{_shortened(_escaped(identity))}/{_shortened(name, '.jpg')}"


def _escaped(name: str) -> str:
    """A name that is no path and is not hidden."""
    name = name.translate(ESCAPED)
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _shortened(name: str, ending: str = "") -> str:
    """A name that the system takes, with that of the file aside."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) <= LONGEST_NAME:
        return name
    end = f"-{hashlib.sha256(encoded).hexdigest()[:16]}{ending}"
    return encoded[: LONGEST_NAME - len(end)].decode("utf-8", "ignore") + end


def write_lists(
    out: Path,
    results: Callable[[], Iterable[Result]],
    new: Collection[str],
    set_aside: Iterable[SetAside],
    keys: Collection[str],
) -> None:
    """Write `out.csv` and `out.tsv`, with what they have of photographs before; one process at a time may.

    Of all results one is in memory at a time.

    Args:
        out: the folder of the crops.
        results: gives those of the photographs that were looked at now, each time that it is called.
        new: keys of these photographs.
        set_aside: what the listing of their source left out.
        keys: of all photographs of their source. A crop of any other stays, other lines of it do not.
    """

    def before() -> Iterator[dict[str, str]]:
        return (row for row in _rows(_table(out), ",") if _key(row) not in new)

    def now() -> Iterator[dict[str, str]]:
        left = set(new)
        for result in results():
            if result.crop and result.key in left:  # a photograph that is listed twice has one row
                left.remove(result.key)
                yield _row(out, result)

    others = {name for row in before() for name in row}
    others |= {name for result in results() if result.crop for name in result.fields}
    _write(_table(out), ",", [*COLUMNS, *sorted(others.difference(COLUMNS))], chain(before(), now()))
    listed = [row for row in _rows(_list(out), "\t") if row["path"] in keys and row["path"] not in new]
    what_of = {result.key: result.what for result in results() if result.what != ALIGNED}
    listed += [{"path": path, "what": what} for path, what in what_of.items()]
    listed += [{"path": one.path, "what": one.reason} for one in set_aside]
    _write(_list(out), "\t", ["path", "what"], sorted(listed, key=lambda row: (row["path"], row["what"])))


def _row(out: Path, result: Result) -> dict[str, str]:
    found = map(to_cell, (result.key, result.box, result.landmarks))
    own = (f"{out.name}/{result.crop}", result.identity, *found)
    return {name: to_cell(value) for name, value in result.fields.items()} | dict(zip(COLUMNS, own, strict=True))


def done_keys(out: Path) -> set[str]:
    """Keys of the photographs that the lists know."""
    return {_key(row) for row in _rows(_table(out), ",")} | {row["path"] for row in _rows(_list(out), "\t")}


def counted(out: Path, keys: Collection[str]) -> Counter[str]:
    """How many photographs with these keys had which result."""
    ends = Counter(kind_of(row["what"]) for row in _rows(_list(out), "\t") if row["path"] in keys)
    crops = sum(_key(row) in keys for row in _rows(_table(out), ","))
    return ends + Counter({ALIGNED: crops - ends[SEVERAL]})


def _key(row: Mapping[str, str]) -> str:
    return str(of_cell(row["key"]))


def kind_of(what: str) -> str:
    """A result without its numbers."""
    return what.partition(":")[0]


def _table(out: Path) -> Path:
    return out.with_name(f"{out.name}.csv")


def _list(out: Path) -> Path:
    return out.with_name(f"{out.name}.tsv")


def _rows(path: Path, delimiter: str) -> Iterator[dict[str, str]]:
    """Rows of a table with a header; none if it is not there."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield from csv.DictReader(file, delimiter=delimiter)


def _write(path: Path, delimiter: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    remove_asides(path.parent, path.name)
    write_table(path, columns, rows, delimiter)
