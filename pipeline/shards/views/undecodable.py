"""A list of samples that training could not decode, which later starts and `clean` leave out.

A line has the digest of the set's manifest, the sample's number in that set, and where it lies. The digest is that of
one set only: a line says nothing of another. To have a sample tried again, delete its line, or the file.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.files import append
from pipeline.shards.format.manifest import Manifest

HEADER = "set\tsample\twhere\n"


def read_undecodable(path: Path, manifest: Manifest) -> list[int]:
    """The listed samples of a set, ascending; none of other sets, nor of a line that a kill has torn.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    found = set()
    for line in path.read_bytes().decode(errors="replace").split("\n"):
        digest, _, rest = line.partition("\t")
        number, tab, _ = rest.partition("\t")
        if digest == manifest.digest and tab and number.isdecimal() and int(number) < manifest.samples:
            found.add(int(number))
    return sorted(found)


def note_undecodable(path: Path, manifest: Manifest, samples: Iterable[int], describe: Callable[[int], str]) -> None:
    """Append samples of a set to the list, which is made if it is not there.

    Raises:
        NotWrittenError: naming the file.
    """
    lines = [f"{manifest.digest}\t{sample}\t{' '.join(describe(sample).split())}\n" for sample in samples]
    append(path, ("" if path.is_file() else HEADER) + "".join(lines))
