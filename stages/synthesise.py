"""Faces of people who do not exist, rendered to shards or to identity folders: training data that is nobody's.

  python stages/synthesise.py rendered --people 500 --images 20 --seed 1
  python stages/synthesise.py rendered --people 500 --images 20 --seed 1 --pairs 200
  python stages/synthesise.py rendered --people 10000 --images 20 --fewer 500 2000
  python stages/synthesise.py others --people 100 --images 10 --first 10500 --as folder

The first writes the set `rendered`, which training reads as it is: 500 people, numbers 0 to 499 of seed 1. The second
also writes `rendered.pairs`: 200 people more, numbers 500 to 699, as folders with `pairs.tsv` in them, ten folds in
LFW's way, for

  python stages/evaluate.py runs/mine --images rendered.pairs --pairs rendered.pairs/pairs.tsv

The third also writes the sets `rendered.500` and `rendered.2000` of the first people, over the same tars. The fourth
is of none of these: who a number is depends on the seed alone, so other numbers, or another seed, are other people.

A photograph is a function of the seed, its person's number, its own number, --size and the switches: the same bytes on
any machine and for any number of workers. The same command resumes what was stopped or killed, and says so if nothing
is left to do; with other arguments it refuses the folder. Each sample keeps its landmarks and attributes, in its JSON
or in `faces.csv`; README.md in each folder says what it holds. Needs `pip install -e '.[rendered]'`.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from cluster.progress import progress_bar
from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.protocols.drawn import folder_rows, lfw_like
from pipeline.evaluation.protocols.pairs_file import write_rows
from pipeline.files import LOCK
from pipeline.rendering import Model, Variation
from pipeline.rendering.exact.compiling import is_kept
from pipeline.rendering.pixels.sensor import developed
from pipeline.rendering.sets.card import CARD, write_card
from pipeline.rendering.sets.folder import MADE, TABLE, make_people
from pipeline.rendering.sets.source import RenderedSource, refuse_others
from pipeline.shards.alignment.similarity import SHIFTS
from pipeline.shards.format.index import sound_index
from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import PROGRESS, Manifest, ShardError
from pipeline.shards.making.plan import make_plan
from pipeline.shards.making.sequential import make_set
from pipeline.shards.sources.finished import open_set
from pipeline.shards.sources.list_file import read_list
from pipeline.shards.views.select import refuse_in_the_way, select
from stages.shard_arguments import count_of

PAIRS = "pairs.tsv"
FOLDS = 10  # as LFW has
FEWER = "subset"  # the kind of a set of --fewer

SIZES = {f"{height}x{width}": (height, width) for height, width in SHIFTS}
SWITCHES = {
    "pose": "scale of the head's angles",
    "expression": "scale of the face's movements and of the gaze",
    "light": "lights and colours of their own, or one plain light",
    "camera": "distance, exposure, tones and grain of their own, or a plain camera",
    "alignment": "standard deviation of the landmarks that a crop is aligned by, in pixels: a detector's",
    "background": "a scene, or grey",
    "styling": "how often the hair is worn another way",
    "glasses": "scale of how often glasses are worn",
    "hats": "how often a hat, a scarf or a band is worn",
    "masks": "how often a mask is worn",
    "hands": "how often a hand is before the face",
    "resolution": "scale of how often, and how far, an image is unsharp or small",
    "jpeg": "how often an image has been compressed before",
}

Progress = Callable[[int], object]


@faults_in_one_line("synthesise", (ValueError, OSError, ModuleNotFoundError))
def main() -> int:
    """Render what is missing; a fault is one line and exit code 65, or 74 for the disk."""
    parser = _parser()
    args = parser.parse_args()
    _check(parser, args)
    source = open_rendered(args)
    held_out = replace(source, first=source.first + source.people, people=args.pairs)
    was_complete = all(path.is_file() for path in _written_last(args))
    if not was_complete and not is_kept(developed):  # the last that a photograph passes through
        print("synthesise: compiling the renderer, once: the first photograph takes longer", file=sys.stderr)
    try:
        shards = args.form == "shards"
        # Shards are written twice: person by person, and then shuffled.
        with progress_bar(len(source.labels) * (2 if shards else 1) + len(held_out.labels)) as advance:
            write = _write_shards if shards else _write_folder
            write(args, source, args.out, advance)
            for people in args.fewer:
                _write_fewer(args.out, people)
            if args.pairs:
                _write_pairs(args, held_out, _beside(args.out, "pairs"), advance)
    except KeyboardInterrupt:
        print("synthesise: stopped; run the same command again to resume", file=sys.stderr)
        return 130
    if was_complete:
        print(f"synthesise: {args.out}: already complete, nothing done", file=sys.stderr)
    return 0


def open_rendered(args: argparse.Namespace) -> RenderedSource:
    """The people of the set that the arguments ask for."""
    model = Model.load()
    size = SIZES[args.size]
    return RenderedSource(model, args.seed, args.first, args.people, args.images, size, variation_of(args))


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what does not go together before anything is rendered."""
    if args.form == "folder" and args.fewer:
        parser.error("--fewer: got --as folder, wanted --as shards: these sets lie over the tars of one")
    for people in args.fewer:
        if people >= args.people:
            parser.error(f"--fewer: got {people}, wanted fewer than the {args.people} of --people")
    if args.pairs:
        lfw_like(args.pairs, args.images, FOLDS)
    for out in (args.out, *([_beside(args.out, "pairs")] if args.pairs else [])):
        _refuse_in_the_way(out)
    for people in args.fewer:
        refuse_in_the_way(_beside(args.out, str(people)), FEWER)


def _refuse_in_the_way(out: Path) -> None:
    """Refuse what holds something else now: the folder of a set is not looked at before its last photograph."""
    if out.exists() and not out.is_dir():
        raise ShardError(f"{out}: is a file, wanted a new or an empty folder")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if found and not found & {PROGRESS, LOCK, MANIFEST, MADE}:
        raise ShardError(f"{out}: is not empty and holds no rendered people, wanted a new or an empty folder")


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}.{ending}")


def _written_last(args: argparse.Namespace) -> list[Path]:
    """A file of each folder that the arguments ask for: if all are there, so is everything."""
    fewer = [_beside(args.out, str(people)) / MANIFEST for people in args.fewer]
    return [args.out / CARD, *fewer, *([_beside(args.out, "pairs") / PAIRS] if args.pairs else [])]


def _write_shards(args: argparse.Namespace, source: RenderedSource, out: Path, progress: Progress) -> None:
    if (out / MANIFEST).is_file():
        refuse_others(out, Manifest.load(out).made.source, source.kind)
    plan = make_plan(source, out, seed=args.seed, samples_per_tar=args.samples_per_tar, size=source.size)
    manifest = make_set(plan, workers=args.workers, progress=lambda written: progress(written.samples))
    assert manifest is not None  # all parts are here
    if not (out / CARD).is_file():
        write_card(source, open_set(out, args.workers), out, [command_of(args, source, "shards")])
    _say(out, manifest)


def _write_fewer(out: Path, people: int) -> None:
    """The set of the first people of another."""
    labels = sound_index(out, Manifest.load(out))["label"]
    _say(_beside(out, str(people)), select(out, _beside(out, str(people)), labels < people, kind=FEWER))


def _say(out: Path, manifest: Manifest) -> None:
    size = sum(tar.bytes for tar in manifest.tars) / 1e6
    print(
        f"{out}: {manifest.identities:,} people, {manifest.samples:,} images of {manifest.image_height}x"
        f"{manifest.image_width}, in {len(manifest.tars):,} tars ({size:,.1f} MB)"
    )


def _write_folder(args: argparse.Namespace, source: RenderedSource, out: Path, progress: Progress) -> None:
    make_people(source, out, workers=args.workers, progress=progress)
    if not (out / CARD).is_file():
        write_card(source, read_list(out / TABLE), out, [command_of(args, source, "folder")])
    _say_folder(out, source)


def _write_pairs(args: argparse.Namespace, held_out: RenderedSource, out: Path, progress: Progress) -> None:
    """The folder of others, and then their pairs."""
    make_people(held_out, out, workers=args.workers, progress=progress)
    of_a_kind = lfw_like(held_out.people, held_out.images, FOLDS)
    if not (out / CARD).is_file():
        pairs = f"python stages/pairs.py folder OUT OUT/{PAIRS} --folds {FOLDS} --size {of_a_kind} --seed {args.seed}"
        write_card(held_out, read_list(out / TABLE), out, [command_of(args, held_out, "folder"), pairs])
    if not (out / PAIRS).is_file():
        write_rows(folder_rows(out, FOLDS, of_a_kind, args.seed), out / PAIRS)
    _say_folder(out, held_out)
    print(f"{out / PAIRS}: {FOLDS} folds of {of_a_kind} same and {of_a_kind} different pairs")


def _say_folder(out: Path, source: RenderedSource) -> None:
    height, width = source.size
    print(f"{out}: {source.people:,} people, {len(source.labels):,} images of {height}x{width}, in folders")


def variation_of(args: argparse.Namespace) -> Variation:
    """What differs between the images of a person."""
    return Variation(**{switch.name: getattr(args, switch.name) for switch in fields(Variation)})


def command_of(args: argparse.Namespace, source: RenderedSource, form: str) -> str:
    """The command that makes a set again, into a folder OUT."""
    words = ["python stages/synthesise.py OUT"]
    words += [f"--people {source.people} --images {source.images} --seed {source.seed} --first {source.first}"]
    words += [f"--size {args.size}"]
    words += ["--as folder"] if form == "folder" else [f"--samples-per-tar {args.samples_per_tar}"]
    for switch in fields(Variation):
        value = getattr(source.variation, switch.name)
        if value != switch.default:
            words.append(f"--{switch.name} {value}" if value is not False else f"--no-{switch.name}")
    return " ".join(words)


def number_of(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a whole number of at least 0")
    return int(text)


def scale_of(text: str) -> float:
    """How much of something: a number from 0."""
    try:
        scale = float(text)
    except ValueError:
        scale = -1.0
    if not 0 <= scale < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a number of at least 0")
    return scale


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the set; an unfinished one is resumed")
    parser.add_argument("--people", type=count_of, required=True, metavar="N", help="how many people")
    parser.add_argument("--images", type=count_of, required=True, metavar="K", help="of each of them")
    parser.add_argument("--seed", type=number_of, default=0, metavar="S", help="of who they are, and of the order (0)")
    parser.add_argument(
        "--first", type=number_of, default=0, metavar="NUMBER", help="of the first person: test people are others (0)"
    )
    parser.add_argument("--size", choices=SIZES, default="112x112", help="height x width of an image (112x112)")
    parser.add_argument(
        "--as", dest="form", choices=("shards", "folder"), default="shards", help="tars, or a folder a person (shards)"
    )
    parser.add_argument(
        "--pairs", type=count_of, default=0, metavar="P", help="also P people more in OUT.pairs, with pairs.tsv"
    )
    parser.add_argument(
        "--fewer", type=count_of, nargs="+", default=[], metavar="N", help="also sets of the first N people, in OUT.N"
    )
    switches = parser.add_argument_group("switches", "what differs between the images of a person: 0 or no is never")
    for switch in fields(Variation):
        name, text = f"--{switch.name}", f"{SWITCHES[switch.name]} ({switch.default})"
        if isinstance(switch.default, bool):
            switches.add_argument(name, action=argparse.BooleanOptionalAction, default=switch.default, help=text)
        else:
            switches.add_argument(name, type=scale_of, default=switch.default, metavar="X", help=text)
    parser.add_argument(
        "--samples-per-tar", type=count_of, default=1000, metavar="N", help="the most a tar holds (1000)"
    )
    parser.add_argument(
        "--workers", type=count_of, default=len(os.sched_getaffinity(0)), metavar="W", help="processes (one a CPU)"
    )
    return parser


if __name__ == "__main__":
    exit_with(main)
