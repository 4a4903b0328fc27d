"""Rendered people as a source of shards: a photograph is a function of the seed, its person's number and its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.people.model import Model
from pipeline.rendering.people.person import Person, person
from pipeline.rendering.photo import Photo, jpeg, photo
from pipeline.rendering.variation import Variation
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.sources import OneByOne, Read

# Counted up when a release renders other pixels than the one before, by the digest in test_photo.py: sets of two looks
# are not mixed.
LOOK = 1
DECIMALS = 3  # of landmarks, in pixels
SEEDS, PEOPLE = 2**63, 10**8  # there are so many; names have eight digits


@dataclass(frozen=True)
class RenderedSource(OneByOne):
    """`images` photographs of each of `people` people, the first of whom has the number `first`.

    Which person a number is depends on the seed alone, and a photograph on nothing but seed, numbers, size and
    variation. So sets of one seed share no person if their numbers do not overlap, and a set of more people begins
    with that of fewer.
    """

    model: Model
    seed: int
    first: int
    people: int
    images: int
    size: tuple[int, int]  # height and width of the crop in pixels
    variation: Variation
    sequential: bool = True  # a person takes longer than a photograph
    set_aside: Sequence[SetAside] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed: got {self.seed}, wanted 0 to {SEEDS - 1}")
        if self.first < 0 or self.first + self.people > PEOPLE:
            last = self.first + self.people - 1
            raise ValueError(f"people: got numbers {self.first} to {last}, wanted 0 to {PEOPLE - 1}")

    @property
    def renderer(self) -> str:
        """What renders, with its version."""
        return f"anny {version('anny')}, look {LOOK}"

    @property
    def kind(self) -> str:
        """All that the bytes depend on, for the manifest and for what is refused."""
        height, width = self.size
        switches = ", ".join(f"{one.name} {getattr(self.variation, one.name)}" for one in fields(self.variation))
        return (
            f"rendered by {self.renderer}, seed {self.seed}, people {self.first} to {self.first + self.people - 1}, "
            f"{self.images} images each, {height}x{width}, {switches}"
        )

    @cached_property
    def identities(self) -> list[str]:
        """Names with seed and number: two seeds have no name in common, and names sort as the numbers do."""
        return [f"r{self.seed}-{number:08d}" for number in range(self.first, self.first + self.people)]

    @cached_property
    def labels(self) -> NDArray[np.uint32]:
        """[samples] person by person."""
        return np.repeat(np.arange(self.people, dtype=np.uint32), self.images)

    def digest(self) -> str:
        """SHA-256 of `kind`, which says what the listing is."""
        return hashlib.sha256(self.kind.encode()).hexdigest()

    def key(self, sample: int) -> str:
        """`identity/image.jpg`: where the folder form has it."""
        one, image = divmod(sample, self.images)
        return f"{self.identities[one]}/{image:04d}.jpg"

    def read(self, sample: int) -> bytes:
        """The JPEG."""
        return jpeg(self.photo(sample))

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[Read]:
        """Each as it is rendered; fields are its landmarks ([5, 2] x and y in the crop) and attributes, by name."""
        for sample in samples.tolist():
            rendered = self.photo(sample)
            attributes = {**self.person(sample // self.images).attributes, **rendered.attributes}
            # An empty word has no cell in a table.
            fields: dict[str, Any] = {name: "none" if value == "" else value for name, value in attributes.items()}
            fields["landmarks"] = np.round(rendered.landmarks, DECIMALS).tolist()
            yield Read(self.key(sample), jpeg(rendered), dict(sorted(fields.items())))

    def photo(self, sample: int) -> Photo:
        """One photograph."""
        one, image = divmod(sample, self.images)
        return photo(self.model, self.person(one), image, size=self.size, variation=self.variation)

    @cached_property
    def person(self) -> Callable[[int], Person]:
        """Gives the person of a label, and keeps the last."""
        return lru_cache(1)(lambda one: person(self.model, self.seed, self.first + one))


def refuse_others(out: Path, there: str, wanted: str) -> None:
    """Make sure that the people of a folder are those that are wanted, both as `RenderedSource.kind` says it.

    Raises:
        ShardError: they are not; names what differs.
    """
    if there != wanted:
        is_rendered = there.count(", ") == wanted.count(", ")
        pairs = zip(there.split(", "), wanted.split(", "), strict=True) if is_rendered else [(there, wanted)]
        got, want = (", ".join(side) for side in zip(*((a, b) for a, b in pairs if a != b), strict=True))
        raise ShardError(f"{out}: holds others: got {got}, wanted {want}; choose another folder or remove it")
