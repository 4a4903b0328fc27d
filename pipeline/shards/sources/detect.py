"""Which kind of source a path or a URL is: the table of all kinds."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.shards.manifest import ShardError
from pipeline.shards.sources import Source
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.sources.insightface import open_records
from pipeline.shards.sources.list_file import read_list
from pipeline.shards.sources.parquet import HUGGING_FACE, Columns, open_parquet
from pipeline.shards.sources.remote import copy_large, list_remote
from pipeline.shards.sources.tar_folder import open_tars
from pipeline.shards.stores import is_url


class Options(NamedTuple):
    """What a user may say about a source; each kind takes what concerns it."""

    columns: Columns = HUGGING_FACE
    workers: int = 1


class Kind(NamedTuple):
    """A kind of source that is made of large files.

    `files` are patterns of their names: a file of the first pattern, or a folder that holds one, is of this kind. At a
    URL the files of all patterns are copied first, since a shuffled set reads them in random places.
    """

    files: tuple[str, ...]
    open: Callable[[Path, Options], Source]


# The first kind that fits counts. Images that are files of their own need no line: they are the rest.
KINDS = (
    Kind(("train.rec", "train.idx", "property"), lambda path, _: open_records(path)),
    Kind(("*.tar", "identities.txt"), lambda path, options: open_tars(path, workers=options.workers)),
    Kind(("*.parquet",), lambda path, options: open_parquet(path, options.columns)),
)


def open_source(place: str | Path, *, copies: Path | None = None, options: Options | None = None) -> Source:
    """Open and list a source: one of `KINDS`, identity folders or a list file, on this machine or at a URL.

    Args:
        place: path or URL.
        copies: folder for copies of a URL's large files, as large as the source; the caller removes it.
        options: about the source.

    Raises:
        ShardError: it is none of these, or holds no usable image.
    """
    if is_url(place):
        path = copy_large(str(place), copies, [kind.files for kind in KINDS])
        return list_remote(str(place)) if path is None else _open_local(path, options or Options())
    return _open_local(Path(place), options or Options())


def _open_local(path: Path, options: Options) -> Source:
    for kind in KINDS:
        is_one = path.is_file() and PurePosixPath(path.name).match(kind.files[0])
        if is_one or (path.is_dir() and next(path.glob(kind.files[0]), None)):
            return kind.open(path, options)
    if path.is_file():
        return read_list(path)
    if not path.exists():
        wanted = ", ".join(kind.files[0] for kind in KINDS)
        raise ShardError(f"{path}: not found, wanted identity folders, a list file, or a folder that holds {wanted}")
    return scan_folder(path)
