"""What the members of a sample are called in the tars of a set, by a look at the first of them.

WebDataset leaves that to whoever reads a tar: `.jpg` and `.cls` are as common as `.image.jpg` and a field of `.json`.
"""

import logging
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.files import named
from pipeline.shards.format.fields import Fields, of_json
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.names import IDENTITIES_NAME
from pipeline.shards.sources.columns import USUAL, Columns
from pipeline.shards.sources.tar_files import TarFiles
from pipeline.shards.sources.tar_walk import KINDS, LONGEST_TEXT, DamagedError, Layout, Member, walk

logger = logging.getLogger(__name__)

FIRST_TARS, FIRST_MEMBERS = 8, 1000  # that are looked at, members in all of them

# Labels that are in no member: the folder that an image lies in, and the tar.
FOLDER, TAR = "folder", "tar"


class Looked(NamedTuple):
    """A member, and its text if it may hold a label."""

    member: Member
    text: bytes


def layout_of(tars: TarFiles, columns: Columns) -> Layout:
    """The layout of some tars; with `identities.txt` beside them, labels in `.cls` are its lines.

    Raises:
        ShardError: several members of a sample may be its image, or a named column is not there.
        NotWrittenError: a tar cannot be read.
    """
    count = min(FIRST_TARS, len(tars.names))
    looked: list[Looked] = []
    for number in range(count):
        looked += _look(tars.path(number), FIRST_MEMBERS // count)
    stems = {one.member.stem for one in looked if _is_image(one.member)}
    # A note that is beside no image, such as a README, says nothing of samples.
    there = dict.fromkeys(one.member.extension.lower() for one in looked if one.member.stem in stems)
    where = str(tars.folder / tars.names[0] if len(tars.names) == 1 else tars.folder)
    images = _images(there, columns.image, where)
    text = _ending("json", there) or "json"
    notes = next((of_json(one.text) for one in looked if one.member.extension.lower() == text), {})
    label, field = _label(there, notes, columns.label, where)
    if not label:
        label = FOLDER if any("/" in stem.removeprefix("./") for stem in stems) else "cls"
    texts = [one.text for one in looked if one.member.extension.lower() == label]
    is_number = label.endswith("cls") and (_has_list(tars) or not texts or any(map(_is_number, texts)))
    if not is_number:
        logger.warning("%s: labels are taken from %s (--label-column)", where, _in_words(label, field, text))
    return Layout(images, text if field else label, text, field, is_number)


def _look(tar: Path, count: int) -> list[Looked]:
    """The first members of a tar, as far as it is sound."""
    looked: list[Looked] = []
    with named(tar, "not read"), tar.open("rb") as file, suppress(DamagedError):
        for member in walk(file):
            if len(looked) == count:
                break
            size = 0 if _is_image(member) or member.size > LONGEST_TEXT else member.size
            looked.append(Looked(member, os.pread(file.fileno(), size, member.offset)))
    return looked


def _images(there: Collection[str], wanted: str, where: str) -> tuple[str, ...]:
    """Extensions of images: one that is named, plain ones, or those of one name as in `image.jpg`, `image.png`."""
    if wanted.lower() in there:
        return (wanted.lower(),)
    if any(kind in there for kind in KINDS):
        return KINDS
    names = {extension.rpartition(".")[0] for extension in there if extension.rpartition(".")[2] in KINDS}
    if "image" in names:
        names = {"image"}
    if len(names) > 1:
        found = ", ".join(extension for extension in there if extension.rpartition(".")[0] in names)
        raise ShardError(f"{where}: got images {found}, wanted --image-column with one of them")
    return tuple(f"{name}.{kind}" for name in names for kind in KINDS) or KINDS


def _label(there: Collection[str], notes: Fields, wanted: str, where: str) -> tuple[str, str]:
    """The extension of the label, or JSON and its field; two empty strings if nothing in a sample may be one.

    A text beside JSON is a caption more often than a name.
    """
    if wanted in {FOLDER, TAR} or wanted.lower() in there:
        return wanted.lower(), ""
    fields = [name for name in USUAL.get(wanted, (wanted,)) if name in notes]
    if wanted not in USUAL and not fields:
        found = [*there, *(f"{name} in .json" for name in notes)]
        raise ShardError(f"{where}: got members {', '.join(found)}, wanted {wanted} (--label-column)")
    plain = _ending("cls", there) or _ending("id", there)
    if plain and wanted in USUAL:
        return plain, ""
    if fields:
        return "json", fields[0]
    return (_ending("txt", there) if not notes else "") or "", ""


def _in_words(label: str, field: str, text: str) -> str:
    if label in {FOLDER, TAR}:
        return {FOLDER: "the folders that images lie in", TAR: "the names of tars"}[label]
    return f"{field} in .{text}" if field else f".{label}"


def _ending(kind: str, there: Iterable[str]) -> str:
    """The extension of this kind, alone or behind a name; empty if there is none."""
    return min((extension for extension in there if extension.rpartition(".")[2] == kind), key=len, default="")


def _is_image(member: Member) -> bool:
    return member.extension.lower().rpartition(".")[2] in KINDS


def _has_list(tars: TarFiles) -> bool:
    return (tars.folder / IDENTITIES_NAME).is_file()


def _is_number(text: bytes) -> bool:
    return text.strip().isdigit()
