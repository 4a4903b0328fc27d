"""Which kind of source a path or a URL is: the table of all kinds."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.images import SUFFIXES
from pipeline.shards.sources import Source
from pipeline.shards.sources.archive import ZIP, open_person_tars, open_zips
from pipeline.shards.sources.columns import HUGGING_FACE, Columns
from pipeline.shards.sources.finished import open_set
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.sources.insightface import open_records
from pipeline.shards.sources.list_file import read_list
from pipeline.shards.sources.parquet import open_parquet
from pipeline.shards.sources.remote import copy_large, list_remote
from pipeline.shards.sources.splits import EVERYTHING, Choice, matches, split_pattern
from pipeline.shards.sources.tar_files import TARS, find_tars
from pipeline.shards.sources.tar_folder import list_tars
from pipeline.shards.sources.tar_layout import FOLDER, TAR, layout_of
from pipeline.shards.stores.urls import is_url

logger = logging.getLogger(__name__)

LOOKED_INTO = 8  # folders, to see whether they hold tars


class Options(NamedTuple):
    """What a user may say about a source; each kind takes what concerns it."""

    columns: Columns = HUGGING_FACE
    choice: Choice = EVERYTHING
    workers: int = 1
    copies: Path | None = None  # a folder for what cannot be read where it is


class Kind(NamedTuple):
    """A kind of source that is made of large files.

    A file that matches one of `marks`, or a folder that holds one, is of this kind. At a URL these files and those that
    match `others` are copied first, since a shuffled set reads them in random places. Patterns are relative to the
    source, with at most one folder.
    """

    marks: tuple[str, ...]
    others: tuple[str, ...]
    open: Callable[[Path, Options], Source]


def _open_tars(path: Path, options: Options) -> Source:
    """Tars of samples, or of identity folders: their first members show which."""
    tars = find_tars(path, options.choice.pattern, options.copies)
    layout = layout_of(tars, options.columns)
    if layout.label in {FOLDER, TAR}:
        return open_person_tars(tars, options.choice, by_folder=layout.label == FOLDER)
    return list_tars(tars.chosen(options.choice), layout, options.workers)


# The first kind that fits counts. Images that are files of their own need no line: they are the rest.
KINDS = (
    Kind(("*.rec",), ("*.idx", "property"), lambda path, options: open_records(path, options.choice)),
    Kind(TARS, ("identities.txt",), _open_tars),
    Kind((ZIP,), (), lambda path, options: open_zips(path, options.choice)),
    Kind(
        ("*.parquet", "data/*.parquet", "*.arrow", "dataset_dict.json"),
        ("train/*.arrow", "validation/*.arrow", "test/*.arrow"),
        lambda path, options: open_parquet(path, options.columns, options.choice),
    ),
)


def open_source(place: str | Path, *, copies: Path | None = None, options: Options | None = None) -> Source:
    """Open and list a source: one of `KINDS`, identity folders or a list file, on this machine or at a URL.

    Args:
        place: path or URL, also with wildcards or braces: `folder/train-*.parquet`, `folder/{000..009}.tar`.
        copies: folder for copies of a URL's large files and of what is compressed; the caller removes it.
        options: about the source.

    Raises:
        ShardError: it is none of these, or holds no usable image.
    """
    options = options or Options()
    if not Path(place).exists():
        root, pattern = split_pattern(str(place))
        options, place = options._replace(choice=options.choice._replace(pattern=pattern)), root
    options = options._replace(copies=copies and copies / ".unpacked")
    if is_url(place):
        path = copy_large(str(place), copies, [kind[:2] for kind in KINDS], options.choice.pattern)
        if path is None:
            _refuse_splits(str(place), options.choice)
            return list_remote(str(place), options.columns, options.choice.pattern)
        return _open_local(path, options)
    return _open_local(Path(place), options)


def _open_local(path: Path, options: Options) -> Source:
    for kind in KINDS:
        if mark := next((mark for mark in kind.marks if _shows(path, mark, options.choice.pattern)), None):
            if path.is_dir() and options.choice.pattern == "*" and _has_images(_in_folders(path)):
                logger.warning("%s: its %s is read, its folders of images are not", path, mark)
            return kind.open(path, options)
    if not path.exists():
        wanted = ", ".join(kind.marks[0] for kind in KINDS)
        raise ShardError(f"{path}: not found, wanted identity folders, a list file, or a folder that holds {wanted}")
    is_set = (path / MANIFEST).is_file()  # over the tars of other sets: it holds none
    if path.is_dir() and not is_set and _has_folders_of_tars(path):
        return _open_tars(path, options)
    _refuse_splits(str(path), options.choice)
    if path.is_file():
        return read_list(path, options.columns)
    return open_set(path, options.workers) if is_set else scan_folder(path, options.choice.pattern)


def _refuse_splits(place: str, choice: Choice) -> None:
    """Refuse a choice among splits where there are none, rather than read everything."""
    if choice.splits:
        wanted = "wanted the folder or the list of one"
        raise ShardError(f"{place}: has no splits: got --split {' --split '.join(choice.splits)}, {wanted}")


def _shows(path: Path, mark: str, pattern: str) -> bool:
    """Whether a path is a file, or a folder that holds a file, of this mark; in a folder of the pattern, too."""
    if path.is_file():
        return PurePosixPath(path.name).match(mark)
    there = (file.relative_to(path).as_posix() for file in path.glob(mark))
    return path.is_dir() and any(matches(name, pattern) or "*" not in mark for name in there)


def _has_folders_of_tars(path: Path) -> bool:
    """Whether the first folders in a folder hold tars and no images."""
    names = _in_folders(path)
    are_tars = [any(PurePosixPath(name).match(ending) for ending in TARS) for name in names]
    return any(are_tars) and not _has_images(names)


def _in_folders(path: Path) -> list[str]:
    """The names in the first folders in a folder."""
    with os.scandir(path) as entries:
        folders = list(islice((entry.path for entry in entries if Path(entry).is_dir()), LOOKED_INTO))
    names: list[str] = []
    for folder in folders:
        with suppress(PermissionError):  # as of ext4's lost+found: reported when it is read
            names += [file.name for file in Path(folder).iterdir()]
    return names


def _has_images(names: Sequence[str]) -> bool:
    return any(name.lower().endswith(SUFFIXES) for name in names)
