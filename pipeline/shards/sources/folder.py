"""A folder of identity folders: `root/<identity>/<image>`, one person a folder."""

import os
from pathlib import Path

import numpy as np

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.names import UNUSABLE, usable_name, warn_respelled
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.images import NO_SUFFIX, SUFFIXES
from pipeline.shards.sources.files import FAULTS_OF_ONE_FILE, FileSource, Texts
from pipeline.shards.sources.loss import amount
from pipeline.shards.sources.splits import matching

# Files beside images that are none. Anything else that is not read may have been one, and counts as lost.
NO_IMAGES = (".txt", ".json", ".csv", ".tsv", ".xml", ".pts", ".mat", ".npy", ".md", ".db", ".ini", ".log", ".html")


# Of ext4, at the root of a disk; it may be listed by root only.
LOST_AND_FOUND = "lost+found"


def scan_folder(root: Path, pattern: str = "*") -> FileSource:
    """List the images of identity folders, both sorted by name; hidden names are skipped.

    An identity folder without images is set aside whole and gets no label. Folders whose names differ in spelling only
    are one person's. With a pattern, those that it means are listed.

    Raises:
        ShardError: no such folder, no identity folders, or no image in any.
    """
    if not root.is_dir():
        raise ShardError(f"{root}: got no folder, wanted a folder of identity folders")
    folders, set_aside = _entries(root, want_folders=True)
    if pattern != "*":
        folders = matching(folders, pattern, str(root))
    if not folders:
        raise ShardError(f"{root}: got no identity folders, wanted one folder of images a person")
    label_of: dict[str, int] = {}
    labels: list[int] = []
    respelled = 0
    counts: list[int] = []
    pieces: list[str] = []
    lengths: list[int] = []
    for folder in folders:
        images, others = _images(root, folder)
        set_aside += others
        identity = usable_name(folder)
        if images and identity is None:
            set_aside.append(SetAside(folder, UNUSABLE, len(images)))
        elif images and identity is not None:
            paths = [f"{folder}/{image}" for image in images]
            labels.append(label_of.setdefault(identity, len(label_of)))
            respelled += identity != folder
            counts.append(len(paths))
            pieces.append("".join(paths))
            lengths += map(len, paths)
    if not labels:
        unusable = next((f"; identity {one.path!r}: {one.reason}" for one in set_aside if one.reason == UNUSABLE), "")
        got = f"{amount(len(folders), 'identity folder')} without images"
        raise ShardError(f"{root}: got {got}, wanted .jpg or .png{unusable}")
    warn_respelled(root, respelled)
    of_images = np.repeat(np.array(labels, np.uint32), counts)
    ends = np.cumsum(lengths, dtype=np.int64)
    return FileSource("folder", str(root), list(label_of), of_images, set_aside, Texts("".join(pieces), ends))


def lost_by(name: str) -> int:
    """How many samples are lost if a file of this name is not read: none if it is no image by its name."""
    name = name.lower()
    return 0 if name.endswith(NO_IMAGES) or name.startswith(("readme", "license")) else 1


def _images(root: Path, folder: str) -> tuple[list[str], list[SetAside]]:
    """Sorted image names of one identity folder, and what else lies in it."""
    files, others = _entries(root / folder, want_folders=False)
    images = []
    for file in files:
        if file.lower().endswith(SUFFIXES):
            images.append(file)
        else:
            others.append(SetAside(file, NO_SUFFIX, lost_by(file)))
    others = [one._replace(path=f"{folder}/{one.path}") for one in others]
    if not images:
        others.append(SetAside(folder, "identity without images", 0))
    return images, others


def _entries(folder: Path, *, want_folders: bool) -> tuple[list[str], list[SetAside]]:
    """Sorted names of the folders (or files) in a folder, and its entries of the other kind."""
    is_wanted = os.DirEntry.is_dir if want_folders else os.DirEntry.is_file
    reason = "not in an identity folder" if want_folders else "not a file"
    try:
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if entry.name[0] != "." and entry.name != LOST_AND_FOUND]
    except OSError as error:
        raise ShardError(f"{folder}: not listed: {error.strerror}") from error
    wanted = []
    others = []
    for entry in entries:
        try:
            why = "" if is_wanted(entry) else reason
        except OSError as error:  # a link in a circle, or to a place that is forbidden
            if error.errno not in FAULTS_OF_ONE_FILE:
                raise
            why = f"unreadable: {error.strerror}"
        if why:
            others.append(SetAside(entry.name, why, lost_by(entry.name)))
        else:
            wanted.append(entry.name)
    return sorted(wanted), sorted(others)
