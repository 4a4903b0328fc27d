"""One self-contained HTML page about a set of shards: images per identity, a sheet of faces, what was set aside."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.files import held, named, remove_asides, write_file
from pipeline.shards.format.index import sound_index
from pipeline.shards.format.manifest import Manifest
from pipeline.shards.format.names import read_identities
from pipeline.shards.format.presence import check_tars
from pipeline.shards.format.rejected import SetAside, read_rejected
from pipeline.shards.sources.loss import kind_of

FACES = 96  # on the contact sheet
REASONS = 40  # rows of the table of reasons


def write_page(folder: Path, out: Path, mixing: str, augmented: NDArray[np.uint8] | None = None) -> None:
    """Write the page about the set in `folder` to the file `out`.

    Args:
        folder, out: where.
        mixing: a line on how training mixes it.
        augmented: a picture [H, W, 3] of what training sees, a row a sample; None: the page has none.

    Raises:
        ShardError: there is no sound set in `folder`.
        OSError: a file cannot be read, or the page cannot be written.
    """
    manifest = Manifest.load(folder)
    check_tars(folder, manifest)
    names, rows = read_identities(folder, manifest), sound_index(folder, manifest)
    counts = np.bincount(rows["label"], minlength=len(names))
    environment = jinja2.Environment(loader=jinja2.PackageLoader("pipeline.shards.checking"), autoescape=True)
    page = environment.get_template("set.html").render(
        name=folder.resolve().name,
        facts=_facts(manifest, rows),
        spread=f"{counts.min():,} to {counts.max():,}, half of the identities have {np.median(counts):,.0f} or fewer.",
        histogram=histogram(counts),
        sheet=list(_sheet(folder, manifest, rows, names)),
        reasons=reasons(read_rejected(folder)),
        augmented=None if augmented is None else _png(augmented),
        mixing=mixing,
        made=[*asdict(manifest.made).items(), ("digest of the manifest", manifest.digest)],
    )
    with held(out.parent):
        remove_asides(out.parent, out.name)
        write_file(out, page.encode())


def _facts(manifest: Manifest, rows: NDArray[np.void]) -> list[tuple[str, str]]:
    tars = [tar.bytes for tar in manifest.tars]
    sizes = rows["size"][:: max(1, len(rows) // 100_000)]
    return [
        (f"{manifest.samples:,}", "samples"),
        (f"{manifest.identities:,}", "identities"),
        (f"{manifest.image_height} × {manifest.image_width}", "pixels, height × width"),
        (f"{manifest.set_aside:,}", "files set aside"),
        (f"{len(tars):,}", f"tars of {min(tars) / 1e6:,.1f} to {max(tars) / 1e6:,.1f} MB"),
        (f"{sum(tars) / 1e9:,.2f} GB", "in all tars"),
        (f"{sizes.mean() / 1e3:,.1f} KB", "an image on average"),
    ]


def histogram(counts: NDArray[np.integer]) -> list[tuple[str, int, float]]:
    """(images, identities, percent of the longest bar) in classes that double: 1, 2, 3–4, 5–8 and so on; 0 if any."""
    # The class of n is the exponent of the power of two that is not below it; frexp is exact, log2 rounds.
    exponents = np.where(counts > 0, np.frexp(np.maximum(counts, 1) - 0.5)[1].clip(0), -1)
    tally = Counter(exponents.tolist())
    longest = max(tally.values())
    bars = []
    for exponent in range(-1 if -1 in tally else 0, max(tally) + 1):
        low, high = (2**exponent // 2 + 1, 2**exponent) if exponent > 0 else (exponent + 1, exponent + 1)
        identities = tally[exponent]
        bars.append((f"{low:,}" if low == high else f"{low:,}–{high:,}", identities, 100 * identities / longest))
    return bars


def _sheet(folder: Path, manifest: Manifest, rows: NDArray[np.void], names: list[str]) -> Iterator[tuple[str, str]]:
    """Data URI and identity of samples that are evenly spaced in the set."""
    for row in np.unique(np.linspace(0, len(rows) - 1, FACES).astype(np.int64)).tolist():
        tar = int(np.searchsorted(manifest.first_rows, row, side="right")) - 1
        offset, size, label = rows[row].tolist()
        path = folder / manifest.tars[tar].name
        with named(path, "not read"), path.open("rb") as file:
            file.seek(offset)
            # Browsers detect the format from the bytes, whatever type is given.
            yield f"data:image/jpeg;base64,{base64.b64encode(file.read(size)).decode()}", names[label]


def _png(pixels: NDArray[np.uint8]) -> str:
    """The data URI of a picture [H, W, 3]."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def reasons(rejected: Iterable[SetAside]) -> list[tuple[int, str, str]]:
    """(files, reason, a path) of what was set aside, most first; numbers in a reason are one reason."""
    tally: Counter[str] = Counter()
    example: dict[str, str] = {}
    for path, reason, _ in rejected:
        kind = kind_of(reason)
        tally[kind] += 1
        example.setdefault(kind, path)
    return [(files, kind, example[kind]) for kind, files in tally.most_common(REASONS)]
