"""Sets made from sets without copying images: an index and a manifest of their own over the same tars.

Selecting samples, removing identities, joining sets and cleaning are all done so. The sets that a view is made from
do not change, so every step is undone by using the older set.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import ASIDE, LOCK, held, remove_asides, write_file
from pipeline.shards.format.index import FILE_NAME as INDEX
from pipeline.shards.format.index import open_index, sound_index, write_index
from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import Made, Manifest, ShardError, TarEntry
from pipeline.shards.format.names import IDENTITIES_NAME, identities_file, read_identities
from pipeline.shards.format.presence import check_tars
from pipeline.shards.format.rejected import REJECTED_NAME, SetAside, rejected_table
from pipeline.shards.making.claim import refuse_other
from pipeline.shards.making.plan import tool_version

# Kinds of `made.source`: the labels of such a set are those of its index, not those in its tars.
VIEWS = ("subset", "merge", "clean")


def select(
    folder: Path, out: Path, keep: NDArray[np.bool_], *, kind: str, set_aside: Sequence[SetAside] = ()
) -> Manifest:
    """Write to `out` the set of those samples of `folder` for which `keep` ([samples]) is true.

    Identities without a sample get no label; the others keep their order. Tars are named relative to `out`, so the
    folders must move together.

    Raises:
        ShardError: nothing is kept, `out` is not new, or a tar is not there or was made anew.
    """
    manifest = Manifest.load(folder)
    check_tars(folder, manifest)
    names = read_identities(folder, manifest)
    if not keep.any():
        raise ShardError(f"{folder}: nothing is left of {len(keep)} samples")
    rows = sound_index(folder, manifest)[keep]
    kept, rows["label"] = np.unique(rows["label"], return_inverse=True)
    counts = np.add.reduceat(keep, manifest.first_rows[:-1], dtype=np.int64).tolist()
    entries = zip(_entries(folder, manifest, out), counts, strict=True)
    tars = [replace(entry, samples=count) for entry, count in entries if count]
    choice = f"{manifest.digest} {hashlib.sha256(np.packbits(keep).tobytes()).hexdigest()}"
    return _write(out, [manifest], kind, choice, [rows], [names[label] for label in kept.tolist()], tars, set_aside)


def merge(folders: Sequence[Path], out: Path, *, same_people: bool) -> Manifest:
    """Write to `out` the set of all samples of several sets, one after the other.

    Equal names are one person when `same_people`; else each name gets its folder's as a prefix, `ms1mv3/0001`,
    since "0001" is another person in every set.

    Raises:
        ShardError: images differ in size, two folders have one name, two sets have samples in common, `out` is not new,
            or a tar is not there or was made anew.
    """
    manifests = list(map(Manifest.load, folders))
    for folder, manifest in zip(folders, manifests, strict=True):
        check_tars(folder, manifest)
    sizes = {(m.image_height, m.image_width) for m in manifests}
    if len(sizes) > 1:
        found = " and ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise ShardError(f"merge: got images of {found}, wanted one size")
    prefixes = ["" if same_people else f"{folder.resolve().name}/" for folder in folders]
    if not same_people and len(set(prefixes)) < len(prefixes):
        raise ShardError(f"merge: got folders named {', '.join(prefixes)} twice, wanted folders of different names")
    _refuse_shared(folders, manifests)
    names = []
    for prefix, folder, manifest in zip(prefixes, folders, manifests, strict=True):
        names.append([prefix + name for name in read_identities(folder, manifest)])
    identities = sorted(set().union(*names))
    label_of = {name: label for label, name in enumerate(identities)}
    pieces = []
    tars = []
    for folder, manifest, own in zip(folders, manifests, names, strict=True):
        labels = np.array([label_of[name] for name in own], np.uint32)
        rows = np.array(sound_index(folder, manifest))
        rows["label"] = labels[rows["label"]]
        pieces.append(rows)
        tars += _entries(folder, manifest, out)
    choice = " ".join([*(manifest.digest for manifest in manifests), *prefixes])
    return _write(out, manifests, "merge", choice, pieces, identities, tars, [])


def _refuse_shared(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Make sure that no sample is in two of the sets: it would count twice, or be two people's."""
    places = [_offsets_by_tar(folder, manifest) for folder, manifest in zip(folders, manifests, strict=True)]
    for (one, first), (other, second) in combinations(zip(folders, places, strict=True), 2):
        shared = sum(len(np.intersect1d(first[tar], second[tar])) for tar in first.keys() & second.keys())
        if shared:
            raise ShardError(f"merge: {one} and {other} have {shared:,} samples in common, wanted none")


def _offsets_by_tar(folder: Path, manifest: Manifest) -> dict[str, NDArray[np.uint64]]:
    """Digest of each tar, wherever it lies, to the offsets of the set's samples in it; a tar may be named twice."""
    pieces: defaultdict[str, list[NDArray[np.uint64]]] = defaultdict(list)
    offsets = np.split(open_index(folder, manifest)["offset"], manifest.first_rows[1:-1])
    for tar, piece in zip(manifest.tars, offsets, strict=True):
        pieces[tar.sha256].append(piece)
    return {tar: np.concatenate(parts) for tar, parts in pieces.items()}


def _entries(folder: Path, manifest: Manifest, out: Path) -> list[TarEntry]:
    """The set's tars, named relative to another folder."""
    place = os.path.relpath(folder.resolve(), out.resolve())
    return [replace(tar, name=os.path.normpath(f"{place}/{tar.name}")) for tar in manifest.tars]


def _write(
    out: Path,
    parents: Sequence[Manifest],
    kind: str,
    choice: str,
    pieces: Sequence[NDArray[np.void]],
    identities: Sequence[str],
    tars: Sequence[TarEntry],
    set_aside: Sequence[SetAside],
) -> Manifest:
    digest = hashlib.sha256(choice.encode()).hexdigest()
    made = replace(parents[0].made, source=kind, source_sha256=digest, tool=tool_version())
    if (there := _there(out, made)) is not None:
        return there
    with held(out):
        if (there := _there(out, made)) is not None:  # another process has made it meanwhile
            return there
        content = identities_file(identities)
        write_file(out / IDENTITIES_NAME, content)
        write_file(out / REJECTED_NAME, rejected_table(set_aside))
        samples = sum(map(len, pieces))
        manifest = replace(
            parents[0],
            samples=samples,
            identities=len(identities),
            tars=tuple(tars),
            identities_sha256=hashlib.sha256(content).hexdigest(),
            index_sha256=write_index(out, pieces, samples),
            set_aside=len(set_aside),
            made=made,
        )
        remove_asides(out)
        manifest.save(out)
    return manifest


def refuse_in_the_way(out: Path, kind: str) -> None:
    """Make sure, before hours of work for it, that a set of this kind may be written to a folder.

    Raises:
        ShardError: it holds something else, or a set of another kind.
    """
    if (there := _finished_in(out)) is not None:
        refuse_other(out, {"source": there.made.source}, {"source": kind})


def _there(out: Path, made: Made) -> Manifest | None:
    """The finished set in a folder, if there is one.

    Raises:
        ShardError: the folder holds another set, or something else.
    """
    if (there := _finished_in(out)) is not None:
        refuse_other(out, asdict(there.made) | {"tool": made.tool}, asdict(made))
    return there


def _finished_in(out: Path) -> Manifest | None:
    """The finished set in a folder, whatever it is.

    Raises:
        ShardError: the folder holds something else.
    """
    try:
        # One listing: between two looks another process can finish the set.
        found = {path.name for path in out.iterdir()}
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise ShardError(f"{out}: is a file, wanted a new folder") from None
    if MANIFEST in found:
        return Manifest.load(out)
    # An earlier run that was killed leaves nothing but these.
    own = {IDENTITIES_NAME, REJECTED_NAME, INDEX, LOCK}
    if any(name not in own and not name.endswith(ASIDE) for name in found):
        raise ShardError(f"{out}: is not empty, wanted a new folder")
    return None
