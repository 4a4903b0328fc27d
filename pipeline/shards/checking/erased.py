"""Proof that nothing of some people is in a set: no name, no sample, and no bytes in its tars that are no sample.

A set over the tars of others fails it: their tars hold the images of everybody. A copy of it passes.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.names import IDENTITIES_NAME, read_identities
from pipeline.shards.format.rejected import REJECTED_NAME, read_rejected
from pipeline.shards.sources.tar_folder import keys_of
from pipeline.shards.sources.tar_walk import Member

BESIDE_IMAGE = ("cls", "json")
SHOWN = 3  # places in a line


def names_left(folder: Path, manifest: Manifest, people: Collection[str]) -> Iterator[tuple[str, str]]:
    """File and fault where a set names some of the people, or has tars besides its own.

    In a set that was joined from others, `ms1mv3/ann` is ann too.
    """
    try:
        for name in read_identities(folder, manifest):
            if name in people or name.rpartition("/")[2] in people:
                yield IDENTITIES_NAME, f"has {name!r}"
    except ShardError as error:
        yield IDENTITIES_NAME, str(error)
    for one in read_rejected(folder):
        if one.path in people or _is_of(one.path, people):
            yield REJECTED_NAME, f"has {one.path!r}"
    own = {tar.name for tar in manifest.tars}
    for path in sorted(folder.iterdir()):
        if path.name not in own and ".tar" in path.name:
            yield path.name, "is no tar of manifest.json: wanted no others, which may hold anybody's images"


def images_left(tar: Path, members: Iterable[Member], rows: Collection[int], people: Collection[str]) -> Iterator[str]:
    """Faults of one tar: files that belong to no sample of the set, and samples whose key is of one of the people.

    Args:
        tar: a file.
        members: all that it holds.
        rows: offsets of those images that the set's index has.
        people: names.
    """
    members = list(members)
    images = [member for member in members if member.offset in rows]
    stems = {image.stem for image in images}
    beside = [member for member in members if member.stem in stems and member.extension in BESIDE_IMAGE]
    others = [f"{stem}.{extension}" for stem, extension, *_ in sorted({*members} - {*images, *beside})]
    if others:
        yield f"{len(others):,} files in it are of no sample of the set, and may be anybody's: {_some(others)}"
    keys = [key for key in keys_of(tar, sorted(rows)) if _is_of(key, people)]
    if keys:
        yield f"{len(keys):,} samples have the key of somebody who should not be there: {_some(keys)}"


def _is_of(key: str, people: Collection[str]) -> bool:
    """Whether a key, `identity/file name`, has the name of one of the people as a folder."""
    return any(part in people for part in PurePosixPath(key).parts[:-1])


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
