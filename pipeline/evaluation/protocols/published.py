"""The published verification protocols, each turned into the rows of a pairs file.

- LFW (Huang et al., UMass TR 07-49, 2007): ``pairs.txt``, "10 300", then for each of 10 folds 300 lines
  ``name n m`` of one person and 300 lines ``name n other m`` of two; images are ``name/name_0001.jpg``.
- YTF (Wolf, Hassner, Maoz, CVPR 2011): ``splits.txt``, comma-separated ``split, first, second, same`` after a header;
  videos are folders ``name/0`` of frames, whose features are averaged.
- A folder of one's own: identity folders, pairs drawn by a seed, identities split over the folds.

InsightFace's ``.bin`` sets have a file of their own, `insightface_bin`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate, combinations, islice
from pathlib import Path

from pipeline.evaluation.protocols.pairs import COLUMNS, PEOPLE, SUFFIXES, Row, folder_of
from pipeline.files import write_file

DEV_FOLDS = 10


def lfw_rows(file: Path, suffix: str = ".jpg") -> list[Row]:
    """The pairs of LFW's ``pairs.txt``, ``pairsDevTrain.txt`` or ``pairsDevTest.txt``, with or without its first line.

    The development sets have no folds: each kind is cut into `DEV_FOLDS` consecutive ones. Raises ValueError naming the
    line that does not fit the protocol.
    """
    lines = [line for line in read_lines(file) if line.strip()]
    header = _lfw_header(lines[0]) if lines else None
    if header is not None:
        folds, size = header
        lines = lines[1:]
        if len(lines) != folds * size * 2:
            raise ValueError(f"{file}: got {len(lines)} pairs, wanted {folds * size * 2} ({folds} folds of 2 × {size})")
        kinds = [i % (2 * size) < size for i in range(len(lines))]
    else:
        kinds = [len(line.split()) == 3 for line in lines]
    return [
        _lfw_row(line.split(), fold, same, where=f"{file}, pair {i + 1}", suffix=suffix)
        for i, (line, fold, same) in enumerate(zip(lines, _folds_of(kinds), kinds, strict=True))
    ]


def _lfw_header(line: str) -> tuple[int, int] | None:
    """Folds and pairs of a kind, if the first line has them; one number is the pairs of a kind in one fold."""
    words = line.split()
    if len(words) > 2 or not all(word.isdecimal() for word in words):
        return None
    return (1, int(words[0])) if len(words) == 1 else (int(words[0]), int(words[1]))


def _folds_of(kinds: Sequence[bool]) -> list[int]:
    """The fold of each pair, 1, 2, ...: one begins where same pairs follow different ones."""
    starts = [bool(i) and same and not kinds[i - 1] for i, same in enumerate(kinds)]
    folds = [1 + number for number in accumulate(map(int, starts))]
    if folds and folds[-1] > 1:
        return folds
    place = {True: 0, False: 0}
    for i, same in enumerate(kinds):
        folds[i] = place[same] * DEV_FOLDS // kinds.count(same) + 1
        place[same] += 1
    return folds


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, UTF-8 with or without a byte order mark; raises ValueError naming another encoding."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: got byte {error.object[error.start]:#04x} at {error.start}, wanted UTF-8") from None


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
        fields = [field.strip() for field in line.split(",")]
        if fields == [""] or (number == 1 and fields[-1] not in {"0", "1"}):  # nothing, or the names of columns
            continue
        if len(fields) != 4 or fields[3] not in {"0", "1"}:
            raise ValueError(f"{file}, line {number}: got {line!r}, wanted: split, first video, second video, 0 or 1")
        rows.append(Row(fields[0], fields[1], fields[2], fields[3] == "1"))
    return rows


def folder_rows(images: Path, folds: int, pairs_of_a_kind: int, seed: int) -> list[Row]:
    """Draw pairs from identity folders: in each fold `pairs_of_a_kind` same and as many different, none twice.

    No identity appears in two folds, so that a threshold is never chosen on the people it is judged on. The same folder
    and seed give the same pairs. Raises ValueError when a fold cannot hold so many.
    """
    generator = random.Random(seed)
    people = {
        folder.name: sorted(
            f"{folder.name}/{file.name}" for file in folder.iterdir() if file.suffix.lower() in SUFFIXES
        )
        for folder in sorted(images.iterdir())
        if folder.is_dir()
    }
    names = sorted(name for name, files in people.items() if files)
    generator.shuffle(names)
    rows = []
    for fold in range(folds):
        mine = [people[name] for name in names[fold::folds]]
        same = [pair for files in mine for pair in combinations(files, 2)]
        if len(same) < pairs_of_a_kind:
            raise ValueError(
                f"{images}: fold {fold + 1}: got {len(same)} same pairs, wanted {pairs_of_a_kind}; "
                "ask for fewer pairs (--size) or fewer folds (--folds)"
            )
        rows += [Row(str(fold + 1), a, b, True) for a, b in generator.sample(same, pairs_of_a_kind)]
        rows += [Row(str(fold + 1), a, b, False) for a, b in _strangers(mine, pairs_of_a_kind, generator, images)]
    return rows


def _strangers(people: list[list[str]], count: int, generator: random.Random, images: Path) -> list[tuple[str, str]]:
    """`count` distinct pairs of two people, every couple of people equally likely at each draw."""
    sizes = [len(files) for files in people]
    possible = (sum(sizes) ** 2 - sum(size**2 for size in sizes)) // 2
    if possible < count:
        raise ValueError(
            f"{images}: got {possible} different pairs in a fold, wanted {count}; ask for fewer folds (--folds)"
        )
    if possible < 4 * count:  # few enough to list, and too few to find by drawing
        every = [(a, b) for one, other in combinations(people, 2) for a in one for b in other]
        return generator.sample(every, count)
    drawn: dict[tuple[str, str], None] = {}
    while len(drawn) < count:
        one, other = generator.sample(people, 2)
        a, b = sorted((generator.choice(one), generator.choice(other)))
        drawn[a, b] = None
    return list(islice(drawn, count))


def write_rows(rows: list[Row], file: Path) -> None:
    """Write a pairs file that `pairs.read_pairs` reads, whole or not at all.

    Its two columns of people are written if any row has them. Raises NotWrittenError naming the file, for a full disk.
    """
    named = any(row.person_a or row.person_b for row in rows)
    lines = ["\t".join([*COLUMNS, *(PEOPLE if named else ())])]
    for row in rows:
        people = [row.person_a or folder_of(row.path_a), row.person_b or folder_of(row.path_b)] if named else []
        lines.append("\t".join([row.fold, row.path_a, row.path_b, str(int(row.same)), *people]))
    write_file(file, ("\n".join(lines) + "\n").encode())
