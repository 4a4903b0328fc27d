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
from itertools import chain, combinations, islice, product
from pathlib import Path

from pipeline.evaluation.protocols.pairs import COLUMNS, Row, frames_of
from pipeline.files import write_file


def lfw_rows(file: Path, suffix: str = ".jpg") -> list[Row]:
    """The pairs of LFW's ``pairs.txt``; raises ValueError naming the line that does not fit the protocol."""
    header, *lines = file.read_text(encoding="utf-8").splitlines()
    try:
        folds, size = map(int, header.split())
    except ValueError:
        raise ValueError(
            f"{file}, line 1: got {header!r}, wanted the folds and pairs of a kind, such as 10 300"
        ) from None
    lines = [line for line in lines if line.strip()]
    if len(lines) != folds * size * 2:
        raise ValueError(f"{file}: got {len(lines)} pairs, wanted {folds * size * 2} ({folds} folds of 2 × {size})")
    rows = []
    for i, line in enumerate(lines):
        fold, place = divmod(i, 2 * size)
        rows.append(_lfw_row(line.split(), fold + 1, same=place < size, where=f"{file}, pair {i + 1}", suffix=suffix))
    return rows


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
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()[1:], start=2):
        fields = list(map(str.strip, line.split(",")))
        if fields == [""]:
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
    people = {folder.name: frames_of(images, folder.name) for folder in images.iterdir() if folder.is_dir()}
    names = sorted(name for name, files in people.items() if files)
    generator.shuffle(names)
    rows = []
    for fold in range(folds):
        mine = [people[name] for name in names[fold::folds]]
        same = list(chain.from_iterable(combinations(files, 2) for files in mine))
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
    sizes = list(map(len, people))
    possible = (sum(sizes) ** 2 - sum(size**2 for size in sizes)) // 2
    if possible < count:
        raise ValueError(
            f"{images}: got {possible} different pairs in a fold, wanted {count}; ask for fewer folds (--folds)"
        )
    if possible < 4 * count:  # few enough to list, and too few to find by drawing
        every = chain.from_iterable(product(one, other) for one, other in combinations(people, 2))
        return generator.sample(list(every), count)
    drawn: dict[tuple[str, str], None] = {}
    while len(drawn) < count:
        one, other = generator.sample(people, 2)
        a, b = sorted((generator.choice(one), generator.choice(other)))
        drawn[a, b] = None
    return list(islice(drawn, count))


def write_rows(rows: list[Row], file: Path) -> None:
    """Write a pairs file that `pairs.read_pairs` reads, whole or not at all.

    Raises NotWrittenError naming the file, for a full disk.
    """
    lines = ["\t".join(COLUMNS), *(f"{row.fold}\t{row.path_a}\t{row.path_b}\t{int(row.same)}" for row in rows)]
    write_file(file, ("\n".join(lines) + "\n").encode())
