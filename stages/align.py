"""Before stage 1: photographs of people to aligned crops. `python stages/align.py SRC OUT`.

MTCNN finds the faces; the five points of the one nearest the centre are mapped to SphereFace's. OUT.csv lists the crops
with their landmarks, OUT.tsv the photographs without a face, with a tiny one or with several. If OUT is finished, those
that are new are added. Needs `pip install -e '.[align]'`.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import os
import shutil
import sys
from pathlib import Path

from cluster.progress import progress_bar
from cluster.stop import exit_with, faults_in_one_line
from pipeline.shards.alignment.photos import FINISHED, align_photos
from pipeline.shards.alignment.similarity import SHIFTS
from pipeline.shards.format.manifest import PROGRESS, ShardError
from stages.shard_arguments import add_part, add_source, count_of, open_named, refuse_inside


@faults_in_one_line("align", (ShardError, OSError))
def main() -> int:
    """Parse, list, align; a fault is one line (65, or 74 for the disk)."""
    sizes = {f"{height}x{width}": (height, width) for height, width in SHIFTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", help="photographs: identity folders, a list, tars, Parquet, an archive, or a URL")
    parser.add_argument("out", type=Path, help="folder for the crops; one that is there is resumed, or added to")
    parser.add_argument("--size", choices=sizes, default="112x96", help="height x width of a crop (112x96)")
    parser.add_argument(
        "--min-face", type=count_of, default=32, help="shorter side of the smallest face, in pixels (32)"
    )
    parser.add_argument("--workers", type=count_of, default=len(os.sched_getaffinity(0)), help="processes (one a CPU)")
    add_part(parser, "align part I of N (from 0), on machines that share OUT")
    add_source(parser)
    args = parser.parse_args()
    was_complete = (args.out / FINISHED).is_file()
    copies = args.out.with_name(f"{args.out.name}.copies")
    looked_at: list[int] = []
    try:
        refuse_inside(args.out, args.src)
        source = open_named(args, copies)
        with progress_bar(len(source.labels), "photos") as advance:

            def look(photos: int) -> None:
                looked_at.append(photos)
                advance(photos)

            ends = align_photos(
                source,
                args.out,
                size=sizes[args.size],
                min_face=args.min_face,
                workers=args.workers,
                part=args.part,
                progress=look,
            )
    except KeyboardInterrupt:
        print("align: stopped; run the same command again to resume", file=sys.stderr)
        return 130
    if (args.out / FINISHED).is_file() and not (args.out / PROGRESS).is_dir():  # by all parts
        shutil.rmtree(copies, ignore_errors=True)
    if was_complete and not looked_at:
        print(f"align: {args.out}: already complete, nothing done", file=sys.stderr)
    print(f"{args.out}: " + ", ".join(f"{photos:,} {what}" for what, photos in ends.most_common()))
    return 0


if __name__ == "__main__":
    exit_with(main)
