"""Which column of a table holds the image, and which the identity."""

from collections.abc import Sequence
from typing import NamedTuple

# How columns are called if nobody names one; the first that is there counts.
USUAL = {
    "image": ("image", "path", "file", "filename", "file_name", "image_path", "img", "img_path"),
    "label": ("label", "identity", "person", "subject", "class", "identity_id", "person_id", "subject_id", "class_id"),
}


class Columns(NamedTuple):
    """Names of the columns that are read."""

    image: str = "image"
    label: str = "label"


HUGGING_FACE = Columns()


def place_of(wanted: str, header: Sequence[str]) -> int | None:
    """The place of a column in a header, by its name or one that is usual in its stead; None if it is not there."""
    there = [column.strip().lower() for column in header]
    names = [name.lower() for name in USUAL.get(wanted, (wanted,))]
    return next((there.index(name) for name in names if name in there), None)
