"""A run's folder from weights that were published elsewhere, for evaluate.py, export.py and init.run.

  python stages/import_weights.py backbone.pth runs/glint360k --network iresnet50
  python stages/import_weights.py checkpoint_gpu_0.pt runs/theirs --network iresnet100 \\
      --identities identities.txt --rows checkpoint_gpu_*.pt

Backbones are known by the names that arcface_torch, CVLface, AdaFace and opensphere give their weights. Pixels are fed
as here, RGB and (pixel - 127.5) / 128: what the network wants instead goes into its first convolution. A class matrix,
of one file or of each rank's, becomes rows by identity: --identities has the name of each class, a line each.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import time
from pathlib import Path

from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.embedding.class_matrix import read_class_matrix
from pipeline.evaluation.embedding.weights import Published, for_our_pixels, read_published
from pipeline.run.imported import write_imported
from pipeline.run.tensor_file import file_facts
from stages.arguments import add_input, given_of


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help=".pth, .pt or .safetensors with the backbone's weights")
    parser.add_argument("run", type=Path, metavar="OUT", help="folder that is written")
    parser.add_argument("--network", required=True, metavar="NAME", help="iresnet50, sphereface20, ...")
    parser.add_argument(
        "--rows",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="class matrix: one file, or one for each rank, whose number is in its name",
    )
    parser.add_argument("--identities", type=Path, metavar="FILE", help="the name of each class of --rows, a line each")
    add_input(parser)
    return parser.parse_args()


@faults_in_one_line("import_weights")
def main() -> int:
    """Read, convert, write; a fault is one line (65, or 74 for the disk)."""
    args = parse()
    if bool(args.rows) != (args.identities is not None):
        raise ValueError("--rows and --identities: got one without the other, wanted both: rows go by name")
    published = read_published(args.file, args.network, given_of(args))
    weights = for_our_pixels(published)
    identities = [] if args.identities is None else args.identities.read_text().splitlines()
    classes = write_imported(
        args.run,
        published.backbone,
        weights,
        published.feeding.size,
        _facts(args, published),
        rows=read_class_matrix(args.rows, published.backbone.embedding_dim) if args.rows else (),
        identities=identities,
    )
    height, width = published.feeding.size
    print(f"{args.run}: {args.network} of faces {height} x {width}, {classes:,} classes")
    print(f"  judge it: python stages/evaluate.py {args.run} --images FOLDER --pairs FILE")
    print(f"  train from it: --set init.run={args.run}, see stages/recipes/fine_tune.yaml")
    return 0


def _facts(args: argparse.Namespace, published: Published) -> dict[str, object]:
    """Where the weights came from, and how they were fed there."""
    return {
        "file": str(args.file.absolute()),
        "sha256": file_facts(args.file).sha256,
        "rows": [str(file.absolute()) for file in args.rows],
        "input_there": published.feeding.described(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


if __name__ == "__main__":
    exit_with(main)
