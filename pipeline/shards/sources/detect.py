"""Which kind of source a path or a URL is: the table of all kinds."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.shards.manifest import FILE_NAME as MANIFEST
from pipeline.shards.manifest import ShardError
from pipeline.shards.sources import Source
from pipeline.shards.sources.columns import HUGGING_FACE, Columns
from pipeline.shards.sources.finished import open_set
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.sources.insightface import open_records
from pipeline.shards.sources.list_file import read_list
from pipeline.shards.sources.parquet import open_parquet
from pipeline.shards.sources.remote import copy_large, list_remote
from pipeline.shards.sources.splits import EVERYTHING, Choice
from pipeline.shards.sources.tar_folder import open_tars
from pipeline.shards.stores import is_url


class Options(NamedTuple):
    """What a user may say about a source; each kind takes what concerns it."""

    columns: Columns = HUGGING_FACE
    choice: Choice = EVERYTHING
    workers: int = 1


class Kind(NamedTuple):
    """A kind of source that is made of large files.

    A file that matches one of `marks`, or a folder that holds one, is of this kind. At a URL these files and those that
    match `others` are copied first, since a shuffled set reads them in random places. Patterns are relative to the
    source, with at most one folder.
    """

    marks: tuple[str, ...]
    others: tuple[str, ...]
    open: Callable[[Path, Options], Source]


# The first kind that fits counts. Images that are files of their own need no line: they are the rest.
KINDS = (
    Kind(("*.rec",), ("*.idx", "property"), lambda path, options: open_records(path, options.choice)),
    Kind(("*.tar",), ("identities.txt",), lambda path, options: open_tars(path, options.choice, options.workers)),
    Kind(
        ("*.parquet", "data/*.parquet", "*.arrow", "dataset_dict.json"),
        ("train/*.arrow", "validation/*.arrow", "test/*.arrow"),
        lambda path, options: open_parquet(path, options.columns, options.choice),
    ),
)


def open_source(place: str | Path, *, copies: Path | None = None, options: Options | None = None) -> Source:
    """Open and list a source: one of `KINDS`, identity folders or a list file, on this machine or at a URL.

    Args:
        place: path or URL; of large files also a pattern of names, `folder/train-*.parquet`.
        copies: folder for copies of a URL's large files, as large as the source; the caller removes it.
        options: about the source.

    Raises:
        ShardError: it is none of these, or holds no usable image.
    """
    options = options or Options()
    folder, _, name = str(place).rpartition("/")
    if "*" in name and not Path(place).exists():
        options, place = options._replace(choice=options.choice._replace(pattern=name)), folder or "."
    if is_url(place):
        path = copy_large(str(place), copies, [kind.marks + kind.others for kind in KINDS])
        return list_remote(str(place), options.columns) if path is None else _open_local(path, options)
    return _open_local(Path(place), options)


def _open_local(path: Path, options: Options) -> Source:
    for kind in KINDS:
        if any(_shows(path, mark) for mark in kind.marks):
            return kind.open(path, options)
    if path.is_file():
        return read_list(path, options.columns)
    if not path.exists():
        wanted = ", ".join(kind.marks[0] for kind in KINDS)
        raise ShardError(f"{path}: not found, wanted identity folders, a list file, or a folder that holds {wanted}")
    if (path / MANIFEST).is_file():  # over the tars of other sets: it holds none
        return open_set(path, options.workers)
    return scan_folder(path)


def _shows(path: Path, mark: str) -> bool:
    """Whether a path is a file, or a folder that holds a file, of this pattern."""
    if path.is_file():
        return PurePosixPath(path.name).match(mark)
    return path.is_dir() and next(path.glob(mark), None) is not None
