"""Stage 1: aligned faces to shards. `python stages/shard.py SRC OUT`."""

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm

from pipeline.shards.build import make_shards
from pipeline.shards.manifest import Manifest, ShardError
from pipeline.shards.plan import make_plan
from pipeline.shards.sources.detect import open_source


def main() -> int:
    """Parse, list, plan, write; every fault of the input is one line and exit code 1."""
    args = _parser().parse_args()
    # The progress bar's monitor thread must not be there when the workers are forked.
    tqdm.monitor_interval = 0
    try:
        manifest = _shard(args)
    except ShardError as error:
        print(f"shard: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"shard: stopped; run the same command again to go on in {args.out}", file=sys.stderr)
        return 130
    if manifest is None:
        print(f"{args.out}: part {args.part[0]}/{args.part[1]} is done, the set is not: wanted the other parts too")
        return 0
    size = sum(tar.bytes for tar in manifest.tars) / 1e6
    print(
        f"{args.out}: {manifest.samples:,} samples of {manifest.identities:,} identities, "
        f"{manifest.image_height}x{manifest.image_width}, in {len(manifest.tars):,} tars ({size:,.1f} MB); "
        f"{manifest.set_aside:,} files set aside" + (" (rejected.tsv)" if manifest.set_aside else "")
    )
    return 0


def _shard(args: argparse.Namespace) -> Manifest | None:
    if args.out.resolve().is_relative_to(args.src.resolve()):
        raise ShardError(f"{args.out}: lies inside {args.src}, wanted a folder outside it")
    source = open_source(args.src)
    plan = make_plan(source, args.out, seed=args.seed, samples_per_tar=args.samples_per_tar, size=args.size)
    with tqdm(total=len(source.labels), unit=" images", smoothing=0.1, disable=None) as bar:
        return make_shards(plan, workers=args.workers, part=args.part, progress=bar.update)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "src",
        type=Path,
        help="aligned faces: a folder of identity folders, of tars or with train.rec, or a list file",
    )
    parser.add_argument("out", type=Path, help="folder for the shards; an unfinished one is gone on with")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle over the whole set (default 0)")
    parser.add_argument("--samples-per-tar", type=int, default=10_000, help="the most a tar holds (default 10000)")
    parser.add_argument("--size", type=_size, metavar="HxW", help="wanted image size (default: the first image's)")
    parser.add_argument(
        "--workers", type=_count, default=len(os.sched_getaffinity(0)), help="processes (default: one a CPU)"
    )
    parser.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        default=(0, 1),
        help="write part I of N (from 0), on machines that share OUT: "
        "srun bash -c 'python stages/shard.py SRC OUT --part $SLURM_PROCID/$SLURM_NTASKS'",
    )
    return parser


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted I/N with I from 0 to N - 1")
    return int(number), int(parts)


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted HEIGHTxWIDTH such as 112x96") from None
    return height, width


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
