"""Which kind of source a path is."""

from pathlib import Path

from pipeline.shards.errors import ShardError
from pipeline.shards.sources import Source
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.sources.insightface import open_records
from pipeline.shards.sources.list_file import read_list
from pipeline.shards.sources.parquet import open_parquet
from pipeline.shards.sources.remote import list_remote
from pipeline.shards.sources.tar_folder import open_tars


def open_source(place: str | Path) -> Source:
    """Open and list a source: a folder (RecordIO, tars, Parquet, identities), a Parquet or a list file, or a URL.

    Raises:
        ShardError: it is none of these, or holds no usable image.
    """
    if "://" in str(place):
        return list_remote(str(place))
    path = Path(place)
    if (path / "train.rec").is_file():
        return open_records(path)
    if next(path.glob("*.tar"), None):
        return open_tars(path)
    if path.suffix == ".parquet" or next(path.glob("*.parquet"), None):
        return open_parquet(path)
    if path.is_file():
        return read_list(path)
    if not path.exists():
        raise ShardError(
            f"{path}: not found, wanted identity folders, tars, Parquet, a folder with train.rec, or a list file"
        )
    return scan_folder(path)
