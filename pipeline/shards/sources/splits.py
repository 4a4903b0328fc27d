"""Splits in file names, as Hugging Face lays them out: train and test must not be mixed without a word of the user."""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import NamedTuple

from pipeline.shards.manifest import ShardError

# `train-00000-of-00003.parquet`; in a saved dataset the files are called `data-...` and the split is their folder.
NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}$")
KEYWORD_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class Choice(NamedTuple):
    """Which files of a folder to use: a pattern of their names, and splits (none: there must be one only)."""

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


def choose(names: Sequence[str], choice: Choice, where: str) -> list[str]:
    """Those of some file names, relative to the source, that a choice names, in their order.

    Raises:
        ShardError: none is left, a wanted split is not there, or there are several and none is chosen.
    """
    named = [name for name in names if fnmatch(PurePosixPath(name).name, choice.pattern)]
    splits = sorted(set(map(split_of, named)))
    known = ", ".join(split or "(no split)" for split in splits)
    if missing := [split for split in choice.splits if split not in splits]:
        raise ShardError(f"{where}: got splits {known}, wanted {', '.join(missing)}")
    if len(splits) > 1 and not choice.splits:
        raise ShardError(f"{where}: got splits {known}, wanted --split with those to use, or a pattern of file names")
    if not named:
        raise ShardError(f"{where}: got no file named {choice.pattern}")
    return [name for name in named if not choice.splits or split_of(name) in choice.splits]
