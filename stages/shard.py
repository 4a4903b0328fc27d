"""Stage 1: aligned faces to shards; and checks, choices and copies of shards.

python stages/shard.py SRC OUT              write the shards of SRC (the same as `make SRC OUT`)
python stages/shard.py verify SET           compare a set with its manifest
python stages/shard.py subset SET OUT ...   some people or fewer images, without copying
python stages/shard.py merge SET ... OUT    several sets as one, without copying
python stages/shard.py copy SET OUT         the samples of a subset, merged or cleaned set in tars of its own
python stages/shard.py make --help          the options of SRC OUT; those of every other command in the same way

SRC and OUT may be URLs of any store that fsspec knows, such as s3://bucket/faces (which needs s3fs).
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import difflib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cluster.ports import port_of
from cluster.progress import progress_bar
from cluster.stop import EXIT_REFUSED, exit_with, faults_in_one_line
from pipeline.reading.mixing import mixing_by_default
from pipeline.shards.checking.page import write_page
from pipeline.shards.checking.verify import verify
from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.names import read_names
from pipeline.shards.format.rejected import SetAside, read_rejected
from pipeline.shards.making.plan import make_plan, samples_in
from pipeline.shards.making.progress import Endpoint, progress_of
from pipeline.shards.making.sequential import make_set
from pipeline.shards.making.to_store import make_in_store
from pipeline.shards.sources import Source
from pipeline.shards.sources.finished import open_set
from pipeline.shards.sources.fitted import WAYS, DecodedSource, FittedSource
from pipeline.shards.sources.loss import TooManyRejectedError, amount, summary
from pipeline.shards.stores.transfer import pull, push
from pipeline.shards.stores.urls import is_url
from pipeline.shards.views.hygiene import clean
from pipeline.shards.views.select import merge
from pipeline.shards.views.subset import subset
from stages.shard_arguments import add_part, add_source, count_of, open_named, refuse_inside

CPUS = len(os.sched_getaffinity(0))
TOO_MANY_REJECTED = 3  # exit code


@faults_in_one_line("shard", (ShardError, OSError))
def main() -> int:
    """Run one command; a fault is one line and exit code 65, 74 for the disk, 3 for too many rejected samples."""
    logging.basicConfig(format="shard: %(message)s")
    words = sys.argv[1:]
    # `SRC OUT` alone is the common case; a source with the name of a command is given as ./verify.
    if meant := _meant(words):
        print(f"shard: {words[0]}: not found, and no command; did you mean {meant}?", file=sys.stderr)
        return EXIT_REFUSED
    if not words:
        _parser().print_help(sys.stderr)
        return 2
    args = _parser().parse_args(words if words[0] in {*COMMANDS, "-h", "--help"} else ["make", *words])
    was_complete = "out" in args and not is_url(args.out) and (Path(args.out) / MANIFEST).is_file()
    try:
        code: int = args.run(args)
    except TooManyRejectedError as error:
        print(f"shard: {error}", file=sys.stderr)
        return TOO_MANY_REJECTED
    except KeyboardInterrupt:
        print("shard: stopped; run the same command again to resume", file=sys.stderr)
        return 130
    if was_complete:
        print(f"shard: {args.out}: already complete, nothing done", file=sys.stderr)
    return code


def _meant(words: Sequence[str]) -> str | None:
    """The command that the first word may be a slip of, if it is neither one nor a source that there is."""
    first = words[0] if words else ""
    if first.startswith("-") or first in COMMANDS or is_url(first) or Path(first).exists():
        return None
    return next(iter(difflib.get_close_matches(first, COMMANDS, n=1)), None)


def _make(args: argparse.Namespace) -> int:
    copies = _folder(args).with_name(f"{_folder(args).name}.copies")
    source = open_named(args, copies)
    if args.fit:
        if not args.size:
            raise ShardError(f"--fit {args.fit}: wanted --size HxW, the size to fit images to")
        height, width = args.size
        source = FittedSource(source, height, width, args.fit)
    if args.decode:
        source = DecodedSource(source)
    if _write(args, source, args.size):
        shutil.rmtree(copies, ignore_errors=True)
    return 0


def _copy(args: argparse.Namespace) -> int:
    _folder(args)
    manifest = Manifest.load(args.src)
    _write(args, open_set(args.src, args.workers), (manifest.image_height, manifest.image_width))
    return 0


def _folder(args: argparse.Namespace) -> Path:
    """Where tars are written: a set for a store is here first, tar by tar."""
    folder = Path(f"{PurePosixPath(args.out).name}.sending") if is_url(args.out) else Path(args.out)
    refuse_inside(folder, args.src)
    return folder


def _write(args: argparse.Namespace, source: Source, size: tuple[int, int] | None) -> bool:
    """Write the shards of a source, and say what they are; whether they are complete."""
    folder = _folder(args)
    samples_per_tar = samples_in(source, args.tar_mb * 1_000_000) if args.tar_mb else args.samples_per_tar
    plan = make_plan(
        source,
        folder,
        seed=args.seed,
        samples_per_tar=samples_per_tar,
        size=size,
        max_rejected=args.max_rejected,
        where=str(args.src),
    )
    endpoint = None
    if args.metrics_port is not None:
        endpoint = Endpoint(args.metrics_port, args.metrics_address, PurePosixPath(args.out).name, args.part[0])
    with progress_of(len(source.labels) * (2 if source.sequential else 1), endpoint) as progress:
        make = partial(make_set, workers=args.workers, part=args.part, progress=progress)
        manifest = make_in_store(plan, args.out, make) if is_url(args.out) else make(plan)
    if manifest is None:
        print(f"{args.out}: part {args.part[0]}/{args.part[1]} is done, the set is not: wanted the other parts too")
        return False
    # What a store keeps of it is not read again for the reasons.
    _say(args.out, manifest, [] if is_url(args.out) else read_rejected(folder))
    return True


def _verify(args: argparse.Namespace) -> int:
    manifest = Manifest.load(args.set)
    without = read_names(args.without) if args.without else []
    with progress_bar(manifest.samples) as advance:
        faults = verify(
            args.set, decode_every=args.decode_every, without=without, workers=args.workers, progress=advance
        )
    for file, what in faults:
        print(f"{file}: {what}")
    nobody = f"; nothing of the {len(set(without)):,} people of {args.without}" if without and not faults else ""
    there = f"{amount(manifest.samples, 'sample')} in {amount(len(manifest.tars), 'tar')}"
    print(f"{args.set}: {there}, {amount(len(faults), 'fault')}{nobody}")
    return 1 if faults else 0


def _inspect(args: argparse.Namespace) -> int:
    page = args.page or Path(f"{args.set.resolve().name}.html")
    mixing = str(mixing_by_default(args.set))
    write_page(args.set, page, mixing, _augmented(args.set, args.augmented) if args.augmented else None)
    print(f"{page}: written; {mixing}")
    return 0


def _augmented(folder: Path, recipe_file: Path) -> NDArray[np.uint8]:
    """What training with a recipe sees of a set."""
    from pipeline.reading.sheet import augmented_sheet
    from pipeline.reading.tars import ShardSet
    from pipeline.recipe.file import load_recipe
    from pipeline.recipe.schema import RecipeError

    try:
        recipe = load_recipe(recipe_file, [f"data.shards={folder}"])
    except RecipeError as error:
        raise ShardError(str(error)) from None
    return augmented_sheet(ShardSet(folder), recipe.data.augment, recipe.seed)


def _push(args: argparse.Namespace) -> int:
    with progress_bar(Manifest.load(args.set).samples) as advance:
        push(args.set, args.url, progress=advance)
    print(f"{args.url}: complete")
    return 0


def _pull(args: argparse.Namespace) -> int:
    with progress_bar(None) as advance:
        manifest = pull(args.url, args.out, progress=advance)
    _say(args.out, manifest)
    return 0


def _subset(args: argparse.Namespace) -> int:
    choices = ("keep", "drop", "people", "min_images", "max_images", "seed")
    manifest = subset(args.set, args.out, **{choice: getattr(args, choice) for choice in choices})
    if args.people and manifest.identities < args.people:
        print(f"shard: --people: got {manifest.identities:,} people, wanted {args.people:,}", file=sys.stderr)
    _say(args.out, manifest)
    return 0


def _merge(args: argparse.Namespace) -> int:
    _say(args.out, merge(args.sets, args.out, same_people=args.same_people))
    return 0


def _clean(args: argparse.Namespace) -> int:
    with progress_bar(Manifest.load(args.set).samples) as advance:
        cleaned = clean(
            args.set,
            args.out,
            min_images=args.min_images,
            drop_grey=args.drop_grey,
            drop_swapped=args.drop_swapped,
            drop_near=args.drop_near,
            undecodable=args.undecodable,
            suspects=args.suspects,
            workers=args.workers,
            progress=advance,
        )
    for counter, fate in ((cleaned.left_out, "left out"), (cleaned.only_counted, "kept")):
        for reason, samples in counter.most_common():
            print(f"{samples:>12,}  {fate}: {reason}")
    _say(args.out, cleaned.manifest)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "make": _make,
    "verify": _verify,
    "inspect": _inspect,
    "subset": _subset,
    "merge": _merge,
    "clean": _clean,
    "copy": _copy,
    "push": _push,
    "pull": _pull,
}


def _say(out: Path | str, manifest: Manifest, set_aside: Sequence[SetAside] = ()) -> None:
    size = sum(tar.bytes for tar in manifest.tars) / 1e6
    print(
        f"{out}: {amount(manifest.samples, 'sample')} of {amount(manifest.identities, 'identity', 'identities')}, "
        f"{manifest.image_height}x{manifest.image_width}, in {amount(len(manifest.tars), 'tar')} ({size:,.1f} MB); "
        f"{amount(manifest.set_aside, 'file')} set aside" + (" (rejected.tsv)" if manifest.set_aside else "")
    )
    if set_aside:
        print(f"set aside: {summary(set_aside)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=summary, description=summary)
        one.set_defaults(run=COMMANDS[name])
        return one

    _add_make(command("make", "write the shards of a source"))

    one = command("verify", "compare a set with its manifest: digests, indexes, labels, pixels")
    one.add_argument("set", type=Path)
    one.add_argument("--decode-every", type=count_of, default=100, help="decode each N-th image, 1 for all (100)")
    one.add_argument(
        "--without", type=Path, metavar="FILE", help="prove that nothing of these people is there: names, one a line"
    )
    one.add_argument("--workers", type=count_of, default=CPUS, help="processes (one a CPU)")

    one = command("inspect", "write an HTML page about a set")
    one.add_argument("set", type=Path)
    one.add_argument("page", type=Path, nargs="?", help="the file to write (the set's name with .html, here)")
    one.add_argument("--augmented", type=Path, metavar="RECIPE", help="show what training with this recipe sees")

    one = command("subset", "write a set of some people or fewer images over the same tars")
    one.add_argument("set", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--keep", type=Path, metavar="FILE", help="identities to keep, one a line")
    one.add_argument("--drop", type=Path, metavar="FILE", help="identities to leave out, such as test people")
    one.add_argument("--people", type=count_of, help="number of identities, drawn by the seed")
    one.add_argument("--min-images", type=count_of, help="leave out identities with fewer images")
    one.add_argument("--max-images", type=count_of, help="at most so many images of each identity")
    one.add_argument("--seed", type=int, default=0)

    one = command("merge", "write one set over the tars of several")
    one.add_argument("sets", type=Path, nargs="+")
    one.add_argument("out", type=Path)
    one.add_argument(
        "--same-people",
        action="store_true",
        help="equal names are one person (default: folder/name)",
    )

    one = command("clean", "write a set without copies, shared images, and cut or broken files")
    one.add_argument("set", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument(
        "--min-images", type=count_of, default=1, help="leave out identities with fewer images after all else"
    )
    one.add_argument("--drop-grey", action="store_true", help="leave out grey images (else counted)")
    one.add_argument("--drop-swapped", action="store_true", help="leave out images bluer than red (else counted)")
    one.add_argument("--drop-near", action="store_true", help="look for near copies and leave them out (imagehash)")
    one.add_argument(
        "--undecodable", type=Path, metavar="FILE", help="leave out what training could not decode: RUN/undecodable.tsv"
    )
    one.add_argument(
        "--suspects", type=Path, metavar="FILE", help="leave out what training made doubtful: RUN/suspects.tsv"
    )
    one.add_argument("--workers", type=count_of, default=CPUS, help="processes (one a CPU)")

    one = command("copy", "write the samples of a set, and no others, to tars of its own, shuffled")
    one.add_argument("src", type=Path, help="a set: of tars, or over those of others (subset, merge, clean)")
    _add_writing(one, max_rejected=0.0)

    one = command("push", "copy a set to an object store or another machine")
    one.add_argument("set", type=Path)
    one.add_argument("url", help="of a folder, in any form that fsspec knows: s3://bucket/set")

    one = command("pull", "copy a set from an object store or another machine")
    one.add_argument("url")
    one.add_argument("out", type=Path)
    return parser


def _add_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "src",
        help="aligned faces: a folder (of identity folders, tars, Parquet, or a .rec), an archive, a list, or a URL",
    )
    _add_writing(parser, max_rejected=0.01)
    parser.add_argument("--size", type=_size, metavar="HxW", help="wanted image size (the first image's)")
    parser.add_argument("--fit", choices=WAYS, help="fit images of other sizes to --size (else they are set aside)")
    parser.add_argument("--decode", action="store_true", help="decode every image, and set aside what does not decode")
    add_source(parser)


def _add_writing(parser: argparse.ArgumentParser, max_rejected: float) -> None:
    """Options of the commands that write tars."""
    parser.add_argument(
        "out", help="folder (or URL) for the shards; an unfinished one is resumed, one at a URL in ./NAME.sending"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle over the whole set (0)")
    parser.add_argument("--samples-per-tar", type=int, default=10_000, help="the most a tar holds (10000)")
    parser.add_argument("--tar-mb", type=count_of, help="size of a tar in MB, instead of --samples-per-tar")
    parser.add_argument(
        "--max-rejected",
        type=_percent,
        metavar="PERCENT",
        default=max_rejected,
        help=f"the set is not finished, and the exit code is 3, if more samples are set aside ({max_rejected:.0%}%)",
    )
    parser.add_argument("--workers", type=count_of, default=CPUS, help="processes (one a CPU)")
    add_part(
        parser,
        "write part I of N (from 0), on machines that share OUT, a folder or a URL: "
        "srun bash -c 'python stages/shard.py SRC OUT --part $SLURM_PROCID/$SLURM_NTASKS'",
    )
    parser.add_argument("--metrics-port", type=port_of, help="serve progress to Prometheus there (0: any free port)")
    parser.add_argument("--metrics-address", default="127.0.0.1", help="address to serve on (127.0.0.1)")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted HEIGHTxWIDTH such as 112x96")
    return int(height), int(width)


def _percent(text: str) -> float:
    """A share from 0 to 1, given as 1 or 1%."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted 0 to 100 percent")
    return share


if __name__ == "__main__":
    exit_with(main)
