"""The indexes beside the tars: one binary index of the whole set, and one text index a tar for DALI's reader.

`index.npy` holds one row a sample, in tar order and then in order inside the tar. Every rank maps it:
42 million rows are 672 MB of page cache, shared by all processes of a machine.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import write_all, written_whole
from pipeline.shards.format.manifest import Manifest, ShardError

FILE_NAME = "index.npy"

# offset: byte offset of the image payload inside its tar; size: its bytes; label: line of identities.txt.
SAMPLE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<u4")])


def open_index(folder: Path, manifest: Manifest) -> NDArray[np.void]:
    """Map `folder/index.npy` read-only: [samples] of `SAMPLE`.

    Raises:
        ShardError: it is missing, is no index, or its rows are not the manifest's samples.
    """
    path = folder / FILE_NAME
    try:
        rows: NDArray[np.void] = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise ShardError(f"{path}: not found, wanted the index of {manifest.samples} samples") from error
    except OSError:
        raise
    except Exception as error:  # NumPy reads the header as Python's source, and raises what that raises
        raise ShardError(f"{path}: not an index ({error})") from error
    if rows.dtype != SAMPLE or rows.shape != (manifest.samples,):
        wanted = f"({manifest.samples},) of {SAMPLE}"
        raise ShardError(f"{path}: got {rows.shape} of {rows.dtype}, wanted {wanted} as in manifest.json")
    return rows


def sound_index(folder: Path, manifest: Manifest) -> NDArray[np.void]:
    """As `open_index`, with a look at every row, for what reads a whole set.

    Raises:
        ShardError: as `open_index`, or a row is of bytes outside its tar or of no identity; names the first.
    """
    rows = open_index(folder, manifest)
    for tar, first, stop in zip(manifest.tars, manifest.first_rows[:-1], manifest.first_rows[1:], strict=True):
        own = rows[first:stop]
        is_outside = (own["offset"] > tar.bytes) | (own["size"] > tar.bytes - np.minimum(own["offset"], tar.bytes))
        if (bad := np.flatnonzero(is_outside | (own["label"] >= manifest.identities))).size:
            offset, size, label = own[bad[0]].tolist()
            got = f"row {first + bad[0]}: got {size} bytes at {offset} of {tar.name}, label {label}"
            wanted = f"wanted them in its {tar.bytes} bytes, label less than {manifest.identities}"
            raise ShardError(f"{folder / FILE_NAME}: {got}, {wanted}; verify lists all faults")
    return rows


def write_index(folder: Path, pieces: Iterable[NDArray[np.void]], samples: int, *, synced: bool = True) -> str:
    """Write `folder/index.npy` from the rows of each tar in order and return its SHA-256.

    `samples` is the sum of their lengths. One piece is in memory at a time.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(SAMPLE), "fortran_order": False, "shape": (samples,)}
    )
    digest = hashlib.sha256(header.getvalue())
    with written_whole(folder / FILE_NAME, synced=synced) as file:
        write_all(file, header.getvalue())
        for rows in pieces:
            block = rows.astype(SAMPLE, copy=False).tobytes()
            digest.update(block)
            write_all(file, block)
    return digest.hexdigest()


def dali_lines(extensions: Sequence[str], offsets: Sequence[int], sizes: Sequence[int], names: Sequence[str]) -> str:
    """Lines of a DALI index (`wds2idx` v1.2), one a sample of three files; all arguments count files.

    After the line `v1.2 <samples>` they make the whole index of a tar.
    """
    files = zip(extensions, offsets, sizes, names, strict=True)
    line = " ".join(["%s %d %d %s"] * 3) + "\n"
    return line * (len(names) // 3) % tuple(chain.from_iterable(files))
