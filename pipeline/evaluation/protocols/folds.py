"""Folds of a list that names none, and people of a list that names none: what published lists leave to the reader."""

from __future__ import annotations

from collections.abc import Sequence

FOLDS = 10


def tenths(count: int) -> list[int]:
    """The fold, from 1, of each of `count` pairs: consecutive tenths, as InsightFace's ``verification.py`` has them."""
    return [i * FOLDS // count + 1 for i in range(count)]


def folds_of(same: Sequence[bool]) -> list[int]:
    """The fold, from 1, of each pair of a list that has no numbers of folds.

    If the list has `FOLDS` blocks, each of one kind and then the other, as LFW's has, they are the folds. Otherwise
    each kind is cut into consecutive tenths, as a list of all same and then all different pairs needs.
    """
    blocks, number = [], 0
    for i, flag in enumerate(same):
        number += i == 0 or (flag == same[0] and same[i - 1] != flag)
        blocks.append(number)
    if number == FOLDS:
        return blocks
    waiting = {kind: iter(tenths(list(same).count(kind))) for kind in (True, False)}
    return [next(waiting[flag]) for flag in same]


def people_by_flags(images: Sequence[str], same: Sequence[bool]) -> dict[str, str]:
    """A person for each image of ``2 * len(same)``, two for each pair: the first image among all that flags connect.

    Two people who are never compared as the same stay two, so that a bootstrap may take one person for several.
    """
    parent = {image: image for image in images}

    def root(image: str) -> str:
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    for i, flag in enumerate(same):
        if flag:
            parent[root(images[2 * i + 1])] = root(images[2 * i])
    return {image: root(image) for image in images}
