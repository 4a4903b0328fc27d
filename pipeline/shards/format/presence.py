"""Whether the tars of a set are there, and still those that it was made of: by their sizes, with no byte read."""

from pathlib import Path, PurePosixPath

from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import Manifest, ShardError


def check_tars(folder: Path, manifest: Manifest) -> None:
    """Make sure that the tars of the set in `folder` are there.

    A set over the tars of another has the digests that they had: they are compared with what the manifest beside them
    says now, since a set that was made anew may have tars of the same names and sizes.

    Raises:
        ShardError: naming the first tar that is missing, has another size, or was made anew.
    """
    for tar in manifest.tars:
        check_size(folder / tar.name, tar.bytes)
    elsewhere: dict[str, dict[str, str]] = {}
    for tar in manifest.tars:
        place = PurePosixPath(tar.name)
        if place.parent.name:
            elsewhere.setdefault(str(place.parent), {})[place.name] = tar.sha256
    for parent, wanted in elsewhere.items():
        if (folder / parent / MANIFEST).is_file():
            _compare(folder, (folder / parent).resolve(), wanted)


def _compare(folder: Path, parent: Path, wanted: dict[str, str]) -> None:
    now = {tar.name: tar.sha256 for tar in Manifest.load(parent).tars}
    for name, sha256 in wanted.items():
        if now.get(name) != sha256:
            raise ShardError(
                f"{folder}: made of {parent}, which was made anew: {name}: sha256: got {now.get(name, 'no such tar')}, "
                f"wanted {sha256}; make {folder} again"
            )


def check_size(path: Path, wanted: int) -> None:
    """Make sure that a tar is there with so many bytes; a map past its end would kill the process that reads it.

    Raises:
        ShardError: it is not.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ShardError(f"{path}: missing tar, wanted {wanted} bytes as in manifest.json") from None
    if size != wanted:
        raise ShardError(
            f"{path}: got {size} bytes, wanted {wanted} as in manifest.json; truncated or "
            "replaced: copy it again or shard again"
        )
