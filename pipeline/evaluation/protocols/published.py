"""The published verification protocols with files of their own, each turned into the rows of a pairs file.

- LFW (Huang et al., UMass TR 07-49, 2007): ``pairs.txt``, "10 300", then for each of 10 folds 300 lines ``name n m`` of
  one person and 300 lines ``name n other m`` of two; images are ``name/name_0001.jpg``. The development sets have one
  number on the first line and no folds; RFW (Wang et al., ICCV 2019) has LFW's lines without a first one.
- YTF (Wolf, Hassner, Maoz, CVPR 2011): ``splits.txt``, comma-separated ``split, first, second, same`` after a header;
  videos are folders ``name/0`` of frames, whose features are averaged.
- CFP (Sengupta et al., WACV 2016): the folder ``Protocol``, whose ``Split/FP/01/same.txt`` and ``diff.txt`` name images
  by their numbers in ``Pair_list_F.txt`` (frontal) and ``Pair_list_P.txt`` (profile).

Lists of paths are read by `path_lists`, and InsightFace's ``.bin`` sets by `insightface_bin`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.evaluation.protocols.folds import folds_of
from pipeline.evaluation.protocols.lines import read_lines
from pipeline.evaluation.protocols.pairs_file import Row
from pipeline.evaluation.protocols.path_lists import fields_of

CFP_SPLITS = ("FP", "FF")  # their letters name the lists of the first and of the second image of a pair


def lfw_rows(file: Path, suffix: str = ".jpg") -> list[Row]:
    """The pairs of a file in LFW's form, with or without its first line.

    Raises ValueError naming the line that does not fit the protocol.
    """
    lines = list(filter(str.strip, read_lines(file)))
    header = _lfw_header(lines[0]) if lines else None
    if header is not None:
        count, size = header
        lines = lines[1:]
        if len(lines) != count * size * 2:
            raise ValueError(f"{file}: got {len(lines)} pairs, wanted {count * size * 2} ({count} folds of 2 × {size})")
        same = [i % (2 * size) < size for i in range(len(lines))]
    else:
        same = [len(fields_of(line)) == 3 for line in lines]
    folds = folds_of(same) if header is None or count == 1 else [i // (2 * size) + 1 for i in range(len(lines))]
    rows = []
    for number, (line, fold, flag) in enumerate(zip(lines, folds, same, strict=True), start=1):
        rows.append(_lfw_row(fields_of(line), fold, flag, where=f"{file}, pair {number}", suffix=suffix))
    return rows


def _lfw_header(line: str) -> tuple[int, int] | None:
    """Folds and pairs of a kind in each, as the first line says; None if it is a pair. One number is of one fold."""
    words = line.split()
    if len(words) > 2 or not all(map(str.isdecimal, words)):
        return None
    return (1, int(words[0])) if len(words) == 1 else (int(words[0]), int(words[1]))


def _lfw_row(fields: list[str], fold: int, same: bool, where: str, suffix: str) -> Row:
    if len(fields) != (3 if same else 4):
        raise ValueError(f"{where}: got {len(fields)} fields, wanted {'name n m' if same else 'name n other m'}")
    name, other = fields[0], fields[0] if same else fields[2]
    try:
        first, second = int(fields[1]), int(fields[-1])
    except ValueError:
        raise ValueError(f"{where}: got numbers {fields[1]!r} and {fields[-1]!r}, wanted whole ones") from None
    return Row(str(fold), f"{name}/{name}_{first:04d}{suffix}", f"{other}/{other}_{second:04d}{suffix}", same)


def ytf_rows(file: Path) -> list[Row]:
    """The pairs of YTF's ``splits.txt``, each path a folder of frames; raises ValueError naming a bad line."""
    rows = []
    for number, line in enumerate(read_lines(file), start=1):
        fields = list(map(str.strip, line.split(",")))
        names_of_columns = number == 1 and fields[-1] not in {"0", "1"}
        if fields == [""] or names_of_columns:
            continue
        if len(fields) != 4 or fields[3] not in {"0", "1"}:
            raise ValueError(f"{file}, line {number}: got {line!r}, wanted: split, first video, second video, 0 or 1")
        rows.append(Row(fields[0], fields[1], fields[2], fields[3] == "1"))
    return rows


def cfp_rows(protocol: Path, split: str) -> list[Row]:
    """The pairs of CFP's folder ``Protocol``, FP (frontal and profile) or FF; paths are ``001/frontal/01.jpg``.

    Raises ValueError naming the file that is missing, or the line that is no pair.
    """
    first, second = (_cfp_images(protocol / f"Pair_list_{kind}.txt") for kind in split)
    folders = sorted(folder for folder in (protocol / "Split" / split).glob("*") if folder.is_dir())
    rows = []
    for folder in folders:
        for name, same in (("same.txt", True), ("diff.txt", False)):
            for a, b, where in _cfp_pairs(folder / name):
                if a not in first or b not in second:
                    raise ValueError(f"{where}: got {a},{b}, wanted numbers of {protocol}'s Pair_list files")
                (path_a, person_a), (path_b, person_b) = first[a], second[b]
                rows.append(Row(folder.name, path_a, path_b, same, person_a, person_b))
    if not rows:
        raise ValueError(f"{protocol}: got no pairs, wanted CFP's folder Protocol with Split/{split}/01/same.txt, ...")
    return rows


def _cfp_images(file: Path) -> dict[str, tuple[str, str]]:
    """Number to path (``001/frontal/01.jpg``) and person of the images that a ``Pair_list`` numbers."""
    images = {}
    for line in filter(str.strip, read_lines(file)):
        number, _, path = line.strip().partition(" ")
        parts = PurePosixPath(path.strip()).parts[-3:]
        if len(parts) != 3:
            raise ValueError(
                f"{file}: got {line!r}, wanted a number and a path such as ../Data/Images/001/frontal/01.jpg"
            )
        images[number] = "/".join(parts), parts[0]
    return images


def _cfp_pairs(file: Path) -> Iterator[tuple[str, str, str]]:
    """The two numbers of each line, and where it stands."""
    for number, line in enumerate(read_lines(file), start=1):
        if line.strip():
            a, _, b = line.partition(",")
            yield a.strip(), b.strip(), f"{file}, line {number}"
