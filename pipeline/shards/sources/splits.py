"""Splits in file names, as Hugging Face lays them out: train and test must not be mixed without a word of the user."""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import PurePosixPath
from typing import NamedTuple

from braceexpand import braceexpand

from pipeline.shards.format.manifest import ShardError

# `train-00000-of-00003.parquet`; in a saved dataset the files are called `data-...` and the split is their folder.
NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}$")
WILDCARDS = re.compile(r"[*?\[]")
KEYWORD_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class Choice(NamedTuple):
    """Which files of a folder to use: a pattern as `matches` takes it, and splits (none: there must be one only)."""

    pattern: str = "*"
    splits: tuple[str, ...] = ()


EVERYTHING = Choice()


def split_of(name: str) -> str:
    """The split that a path relative to the source names; empty if it names none."""
    path = PurePosixPath(name)
    numbered = NUMBERED.match(path.stem)
    if numbered and numbered[1] != "data":
        return KEYWORD_OF.get(numbered[1], numbered[1])
    for part in (path.stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in KEYWORD_OF:
                return KEYWORD_OF[word]
    return ""


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a name: with wildcards, and with braces as in webdataset, `{00..99}.tar`.

    A pattern without a folder is of the last part of a name.
    """
    exact, wild = _expanded(pattern)
    part = name if "/" in pattern else PurePosixPath(name).name
    return part in exact or any(fnmatch(part, one) for one in wild)


@cache
def _expanded(pattern: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """What braces mean: all names, and those of them that have wildcards."""
    patterns = frozenset(braceexpand(pattern))
    return patterns, tuple(one for one in patterns if WILDCARDS.search(one))


def matching(names: Sequence[str], pattern: str, where: str) -> list[str]:
    """Those of some names that a pattern means, in their order.

    Raises:
        ShardError: none is left.
    """
    found = [name for name in names if matches(name, pattern)]
    if not found:
        raise ShardError(f"{where}: got no file named {pattern}")
    return found


def choose(names: Sequence[str], choice: Choice, where: str) -> list[str]:
    """Those of some file names, relative to the source, that a choice names, in their order.

    Raises:
        ShardError: none is left, a wanted split is not there, or there are several and none is chosen.
    """
    named = matching(names, choice.pattern, where)
    splits = sorted(set(map(split_of, named)))
    known = ", ".join(split or "(no split)" for split in splits)
    if missing := [split for split in choice.splits if split not in splits]:
        raise ShardError(f"{where}: got splits {known}, wanted {', '.join(missing)}")
    if len(splits) > 1 and not choice.splits:
        raise ShardError(f"{where}: got splits {known}, wanted --split with those to use, or a pattern of file names")
    return [name for name in named if not choice.splits or split_of(name) in choice.splits]


def split_pattern(place: str) -> tuple[str, str]:
    """A path or URL up to its first part with a wildcard or a brace, and the rest; without one, all of it and `*`."""
    signs = "*[{" if "://" in place else "*?[{"  # a URL's query begins with a question mark
    parts = place.split("/")
    first = next((number for number, part in enumerate(parts) if any(sign in part for sign in signs)), None)
    if first is None:
        return place, "*"
    root = "/".join(parts[:first]) or ("/" if place.startswith("/") else ".")
    return root, "/".join(parts[first:])
