"""Names of identities: what may be one and how it is spelled, and lists of names, one a line."""

import hashlib
import logging
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from pipeline.shards.format.manifest import Manifest, ShardError

logger = logging.getLogger(__name__)

# A line for each label of a set.
IDENTITIES_NAME = "identities.txt"

BYTE_ORDER_MARK = "\ufeff"
# What editors and spreadsheets leave behind a name. A no-break or an ideographic space belongs to it.
BLANKS = " \t\r"
# Unicode's categories: control characters, line and paragraph separators, surrogates.
NOT_IN_NAMES = {"Cc", "Zl", "Zp", "Cs"}
UNUSABLE = "wanted a printable UTF-8 name; rename it"


@lru_cache(maxsize=1024)  # lists repeat a name in consecutive lines
def usable_name(identity: str) -> str | None:
    """An identity's name as it is kept; None if it does not fit a line of `identities.txt`.

    A byte-order mark before it and blanks behind it are left out, and letters have Unicode's composed form (NFC). Every
    letter and space is fine, also those of other scripts; not control characters, line breaks, or bytes that are no
    UTF-8 (surrogates here).
    """
    name = identity.removeprefix(BYTE_ORDER_MARK).rstrip(BLANKS)
    if not name or any(unicodedata.category(letter) in NOT_IN_NAMES for letter in name):
        return None
    return unicodedata.normalize("NFC", name)


def warn_respelled(where: Path | str, names: int) -> None:
    """Say that so many names are kept in another spelling than they have in a source or a list."""
    if names:
        logger.warning(
            "%s: %d names are kept without blanks behind them, without a byte-order mark, in Unicode's composed form",
            where,
            names,
        )


def read_names(path: Path) -> list[str]:
    """The names of a list, one a line, in the spelling in which sets keep them; empty lines are skipped.

    Raises:
        ShardError: no such file, not UTF-8, or a line that cannot be a name.
    """
    try:
        lines = path.read_bytes().decode().split("\n")
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not UTF-8 ({error})") from error
    names = []
    respelled = 0
    for number, line in enumerate(lines, start=1):
        text = line.removesuffix("\r")
        if not text.removeprefix(BYTE_ORDER_MARK).strip(BLANKS):
            continue
        name = usable_name(text)
        if name is None:
            raise ShardError(f"{path}: line {number}: got {text!r}, wanted a printable name")
        respelled += name != text
        names.append(name)
    warn_respelled(path, respelled)
    return names


def identities_file(names: Iterable[str]) -> bytes:
    """`identities.txt`: a line for each label."""
    return "".join(f"{name}\n" for name in names).encode()


def read_identities(folder: Path, manifest: Manifest) -> list[str]:
    """Names in label order.

    Raises:
        ShardError: the file is not the manifest's.
    """
    path = folder / IDENTITIES_NAME
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest.identities_sha256:
        raise ShardError(f"{path}: got {'other names' if content else 'no file'}, wanted those of manifest.json")
    return content.decode().split("\n")[:-1]
