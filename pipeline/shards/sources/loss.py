"""How much of a source is lost: the limit on it, and the reasons in one line."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.rejected import ESCAPES, SetAside
from pipeline.shards.images import WRONG_SIZE, UnreadableError
from pipeline.shards.sources import Source

SHOWN = 3  # reasons in a line
MANY = 64  # samples, of which one at least can be read as long as the source is there

# What helps if images have several sizes.
OTHER_SIZES = "the size wanted is the first image's or --size; --fit crop or --fit stretch brings others to --size"


class TooManyRejectedError(ShardError):
    """More samples were set aside than the user allows. The set is not finished; a larger limit finishes it."""


def check_loss(where: str, kept: int, set_aside: Iterable[SetAside], limit: float) -> None:
    """Compare the share of samples that were set aside with a limit.

    Args:
        where: the source or the set, for the message.
        kept: samples that were not set aside.
        set_aside: what was.
        limit: the largest share, from 0 to 1.

    Raises:
        TooManyRejectedError: there were more; gives the share, the limit, and the first reasons with their counts.
    """
    lost = list(set_aside)
    count = sum(one.samples for one in lost)
    if count > limit * (kept + count):
        share = f"{count:,} of {kept + count:,} samples set aside ({count / (kept + count):.1%})"
        raise TooManyRejectedError(f"{where}: {share}, wanted at most {limit:.1%} (--max-rejected): {summary(lost)}")


def refuse_lost(source: Source, keys: Sequence[str], images: Sequence[object]) -> None:
    """Make sure that a source is still there, by samples of it that were read together.

    If it is not, each would be set aside, and stay so: a record of what is done says that they were looked at. They may
    also be those of a person whose folder is missing; so if none could be read, others are tried, all over the source.

    Args:
        source: the source.
        keys: [samples] how they are named.
        images: [samples] what reading gave: an image, or why there is none.

    Raises:
        ShardError: there are many, and neither one of them nor one of the others can be read.
    """
    if len(images) < MANY or not _are_unreadable(images):
        return
    others = np.linspace(0, len(source.labels) - 1, MANY).astype(np.int64)
    if _are_unreadable([image for _, image, _ in source.read_many(others)]):
        last = f"{keys[-1]}: {images[-1]}"
        raise ShardError(
            f"none of {len(images)} images could be read, the last is {last}; is their source still there?"
        )


def _are_unreadable(images: Iterable[object]) -> bool:
    return all(isinstance(image, UnreadableError) for image in images)


def summary(set_aside: Iterable[SetAside]) -> str:
    """Reasons with counts in one line, most first, each with the first path: `2 × empty file (ann/1.jpg)`.

    If images of other sizes are among them, the options that help are named last.
    """
    tally: Counter[str] = Counter()
    example: dict[str, str] = {}
    for path, reason, samples in set_aside:
        kind = kind_of(reason)
        tally[kind] += max(1, samples)
        name = path.translate(ESCAPES)
        example.setdefault(kind, f"{name}: {reason}" if kind != reason else name)
    parts = [f"{count:,} × {kind} ({example[kind]})" for kind, count in tally.most_common(SHOWN)]
    more = len(tally) - len(parts)
    parts += [f"and {amount(more, 'other reason')}"] if more else []
    parts += [OTHER_SIZES] if any(kind.startswith(WRONG_SIZE) for kind in tally) else []
    return "; ".join(parts)


def kind_of(reason: str) -> str:
    """A reason without its numbers: those that differ in numbers only are one."""
    return re.sub(r"got \S+|\(label [^)]*\)|\bat byte \d+( of \d+)?", "…", reason)


def amount(count: int, one: str, many: str = "") -> str:
    """A number of things in words: `1 tar`, `2,000 tars`; `many` if the plural takes more than an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
