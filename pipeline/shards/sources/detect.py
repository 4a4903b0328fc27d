"""Which kind of source a path is."""

from pathlib import Path

from pipeline.shards.errors import ShardError
from pipeline.shards.sources import Source
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.sources.insightface import open_records
from pipeline.shards.sources.list_file import read_list
from pipeline.shards.sources.parquet import HUGGING_FACE, Columns, open_parquet
from pipeline.shards.sources.remote import copy_large, list_remote
from pipeline.shards.sources.tar_folder import open_tars
from pipeline.shards.stores import is_url


def open_source(
    place: str | Path, *, copies: Path | None = None, columns: Columns = HUGGING_FACE, workers: int = 1
) -> Source:
    """Open and list a source: a folder (RecordIO, tars, Parquet, identities), a Parquet or a list file, or such a URL.

    Args:
        place: path or URL.
        copies: folder for copies of a URL's large files, as large as the source; the caller's to remove.
        columns: of Parquet.
        workers: processes that list tars.

    Raises:
        ShardError: it is none of these, or holds no usable image.
    """
    if is_url(place):
        path = copy_large(str(place), copies)
        return list_remote(str(place)) if path is None else _open_local(path, columns, workers)
    return _open_local(Path(place), columns, workers)


def _open_local(path: Path, columns: Columns, workers: int) -> Source:
    if (path / "train.rec").is_file():
        return open_records(path)
    if next(path.glob("*.tar"), None):
        return open_tars(path, workers=workers)
    if path.suffix == ".parquet" or next(path.glob("*.parquet"), None):
        return open_parquet(path, columns)
    if path.is_file():
        return read_list(path)
    if not path.exists():
        raise ShardError(
            f"{path}: not found, wanted identity folders, tars, Parquet, a folder with train.rec, or a list file"
        )
    return scan_folder(path)
