"""A folder of faces to a Parquet of embeddings (image and mirror, concatenated; compare by cosine).

  python stages/embed.py runs/casia faces embeddings.parquet
  deepspeed --num_gpus 8 stages/embed.py runs/casia faces embeddings/     one part file a rank

Columns: path, identity (the image's folder), embedding. Needs the export extra: pip install -e '.[export]'.
"""

import argparse
import os
import sys
from pathlib import Path

from cluster.process_group import device_of
from cluster.stop import exit_with
from cluster.topology import Topology, split_range
from cluster.versions import how_to_install
from pipeline.evaluation.embedding.embed import embed_files
from pipeline.evaluation.embedding.trained import load_trained
from pipeline.evaluation.protocols.pairs import list_images
from pipeline.reading.dali import Decoder
from stages.arguments import add_step, parser_of


def main() -> int:
    """Embed this rank's share of the folder; a fault is one line and exit code 1."""
    args = _parser().parse_args()
    try:
        return _embed(args, Topology.from_environment(os.environ))
    except ModuleNotFoundError as error:
        print(f"embed: {error}, wanted: {how_to_install('export')}", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"embed: {error}", file=sys.stderr)
    return 1


def _embed(args: argparse.Namespace, topology: Topology) -> int:
    from pipeline.evaluation.embedding.parquet import write_embeddings  # here, since the extra may be missing

    # Ranks need not speak to each other: each takes its run of the sorted list and writes a file of its own.
    every = list_images(args.images)
    paths = [every[i] for i in split_range(len(every), topology.num_ranks, topology.rank)]
    out = args.out / f"part-{topology.rank:05d}.parquet" if topology.num_ranks > 1 else args.out
    trained = load_trained(args.run, args.step)
    device = device_of(topology)
    decoder = Decoder(args.batch_size, *trained.image_size, device, args.threads)
    batches = embed_files(trained.module.to(device), args.images, paths, decoder, progress=topology.rank == 0)
    facts = {
        "backbone": trained.name,
        "step": str(trained.step),
        "weights_sha256": trained.weights_sha256,
        "features": "image and mirror concatenated, compare by cosine",
    }
    write_embeddings(out, paths, batches, 2 * trained.embedding_dim, facts)
    print(f"{out}: {len(paths):,} embeddings of {2 * trained.embedding_dim} numbers")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("images", type=Path, metavar="FOLDER", help="aligned faces, at any depth")
    parser.add_argument("out", type=Path, metavar="OUT", help="Parquet file; with several ranks, a folder of parts")
    add_step(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="images embedded together (default 64)")
    parser.add_argument("--threads", type=int, default=2, help="that decode images, a rank (default 2)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    return parser


if __name__ == "__main__":
    exit_with(main)
