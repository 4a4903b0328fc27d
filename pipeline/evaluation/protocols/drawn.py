"""Pairs drawn by a seed from identity folders of one's own: people split over the folds, as many pairs of each kind."""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate, chain, combinations, islice, product
from math import comb
from pathlib import Path

from pipeline.evaluation.protocols.pairs import frames_of
from pipeline.evaluation.protocols.pairs_file import Row

LFW_PAIRS = 300  # of each kind in a fold


def folder_rows(images: Path, folds: int, pairs_of_a_kind: int, seed: int) -> list[Row]:
    """Draw pairs from identity folders: in each fold `pairs_of_a_kind` same and as many different, none twice.

    No identity appears in two folds, so that a threshold is never chosen on the people it is judged on. The same folder
    and seed give the same pairs. Raises ValueError when there is no such folder, or a fold cannot hold so many.
    """
    if not images.is_dir():
        raise ValueError(f"{images}: got no such folder, wanted one with a folder for each person")
    generator = random.Random(seed)
    people = {folder.name: frames_of(images, folder.name) for folder in images.iterdir() if folder.is_dir()}
    names = sorted(name for name, files in people.items() if files)
    generator.shuffle(names)
    rows = []
    for fold in range(folds):
        mine = [people[name] for name in names[fold::folds]]
        ends = list(accumulate(comb(len(files), 2) for files in mine))  # of each person's pairs, if all were listed
        same = ends[-1] if ends else 0
        if same < pairs_of_a_kind:
            raise ValueError(
                f"{images}: fold {fold + 1}: got {same} same pairs, wanted {pairs_of_a_kind}; "
                "ask for fewer pairs (--size) or fewer folds (--folds)"
            )
        drawn = (_pair_at(place, ends, mine) for place in generator.sample(range(same), pairs_of_a_kind))
        rows += [Row(str(fold + 1), a, b, True) for a, b in drawn]
        rows += [Row(str(fold + 1), a, b, False) for a, b in _strangers(mine, pairs_of_a_kind, generator, images)]
    return rows


def _pair_at(place: int, ends: list[int], people: list[list[str]]) -> tuple[str, str]:
    """The pair at a place in the list of each person's pairs, one person after another, which is not made."""
    person = bisect_right(ends, place)
    before = ends[person - 1] if person else 0
    return next(islice(combinations(people[person], 2), place - before, None))


def lfw_like(people: int, images: int, folds: int) -> int:
    """Pairs of a kind for each fold: LFW's 300, or as many as the smallest fold has, for people with `images` each.

    Raises ValueError if a fold has no pair of a kind.
    """
    in_fold = people // folds
    same, different = in_fold * comb(images, 2), comb(in_fold, 2) * images**2
    if not (same and different):
        raise ValueError(
            f"pairs: got {people} people with {images} images each, wanted {2 * folds} people with 2 images at least: "
            f"each of {folds} folds has people of its own"
        )
    return min(LFW_PAIRS, same, different)


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
