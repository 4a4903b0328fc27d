"""A folder of faces to a Parquet of embeddings (image and mirror, concatenated; compare by cosine).

  python stages/embed.py runs/casia faces embeddings.parquet
  deepspeed --num_gpus 8 stages/embed.py runs/casia faces embeddings/     one part file a rank

Columns: path, identity (the image's folder), embedding. Needs the export extra: pip install -e '.[export]'.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import os
import sys
from pathlib import Path

from cluster.ranks.process_group import device_of
from cluster.ranks.topology import Topology, split_range
from cluster.stop import exit_with, faults_in_one_line
from cluster.versions import how_to_install
from pipeline.evaluation.embedding.source import How, image_files, reasons, shown
from pipeline.evaluation.protocols.pairs import list_images
from stages.arguments import add_source, add_step, parser_of, sources_of
from stages.shard_arguments import count_of

FEATURES = "image and mirror concatenated, compare by cosine"


@faults_in_one_line("embed")
def main() -> int:
    """Embed this rank's share of the folder; a fault is one line (65, or 74 for the disk)."""
    args = _parser().parse_args()
    try:
        return _embed(args, Topology.from_environment(os.environ))
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}, wanted: {how_to_install('export')}") from error


def _embed(args: argparse.Namespace, topology: Topology) -> int:
    from pipeline.evaluation.embedding.parquet import write_embeddings  # here, since the extra may be missing

    # Ranks need not speak to each other: each takes its run of the sorted list and writes a file of its own.
    every = list_images(args.images)
    paths = [every[i] for i in split_range(len(every), topology.num_ranks, topology.rank)]
    out = args.out / f"part-{topology.rank:05d}.parquet" if topology.num_ranks > 1 else args.out
    if not paths:
        print(f"{out}: not written: no images for rank {topology.rank}")
        return 0
    args.device = device_of(topology)
    (source,) = sources_of(args, results=False)
    how = How(args.batch_size, args.threads, args.device)
    images = image_files(args.images, paths)
    crop = source.crop(images)
    if crop and crop.words:
        print(f"embed: {crop.words}", file=sys.stderr)
    rows = shown(source, images, how, "" if topology.rank == 0 else None)
    facts = {"network": source.name, "step": str(source.step), "weights_sha256": source.digest, "features": FEATURES}
    width, left_out = write_embeddings(out, paths, rows, facts)
    print(f"{out}: {len(paths) - len(left_out):,} embeddings of {width} numbers")
    if left_out:
        place = {path: position for position, path in enumerate(paths)}
        why = reasons(source, images, [place[path] for path in left_out])
        print(f"embed: {len(left_out):,} of {len(paths):,} images left out: {why}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("images", type=Path, metavar="FOLDER", help="aligned faces, at any depth")
    parser.add_argument("out", type=Path, metavar="OUT", help="Parquet file; with several ranks, a folder of parts")
    add_step(parser)
    add_source(parser)
    parser.add_argument("--batch-size", type=count_of, default=64, help="images embedded together (default 64)")
    parser.add_argument("--threads", type=count_of, default=2, help="threads that decode images, a rank (default 2)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    return parser


if __name__ == "__main__":
    exit_with(main)
