"""A folder of files to a repository of the Hugging Face Hub (``hf://owner/name``), or to any URL that fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cluster.versions import how_to_install
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.stores.urls import open_store, send

HUB = "hf://"


class PushError(ValueError):
    """A place that takes nothing; the message is one line for the user."""


def check_url(url: str) -> None:
    """Refuse, before anything is made, what is no place to push to.

    Raises:
        PushError: naming the URL; what speaks to its store may not be installed.
    """
    if url.startswith(HUB) and not re.fullmatch(r"hf://[\w.-]+/[\w.-]+", url):
        raise PushError(f"{url}: got no repository, wanted hf://owner/name")
    if "://" not in url:
        raise PushError(f"{url}: got no URL, wanted hf://owner/name, s3://bucket/folder, file:///folder, …")
    if not url.startswith(HUB):
        try:
            open_store(url)
        except ShardError as error:
            raise PushError(str(error)) from error


def push(files: Sequence[Path], url: str, *, message: str, public: bool = False) -> str:
    """Send files, each under its own name, over what may be there; the address to look at.

    Args:
        files: to send, in this order; the Hub takes them as one commit.
        url: where to; a repository that is not there is made, and is private unless `public`.
        message: of the commit, for the Hub.

    Raises:
        PushError: the place cannot be reached, or refuses.
    """
    check_url(url)
    try:
        if url.startswith(HUB):
            return _to_hub(files, url.removeprefix(HUB), message, public)
        store, root = open_store(url)
        store.makedirs(root, exist_ok=True)
        for file in files:
            send(file, store, f"{root}/{file.name}")
    except ModuleNotFoundError as error:
        raise PushError(f"{url}: {error}, wanted: {how_to_install('hub')}") from error
    except Exception as error:  # each store has its own
        reason = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
        raise PushError(f"{url}: {reason}") from error
    return url


def _to_hub(files: Sequence[Path], repository: str, message: str, public: bool) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi  # noqa: PLC0415 - an extra

    hub = HfApi()
    hub.create_repo(repository, private=not public, exist_ok=True)
    added = [CommitOperationAdd(file.name, str(file)) for file in files]
    hub.create_commit(repository, added, commit_message=message)
    return f"https://huggingface.co/{repository}"
