"""A run's backbone for use elsewhere: backbone.onnx, backbone.safetensors, and backbone.json on how to feed it.

Needs the export extra: pip install -e '.[export]'.
"""

import sys
from pathlib import Path

from cluster.stop import exit_with
from cluster.versions import how_to_install
from pipeline.evaluation.embedding.trained import load_trained
from stages.arguments import add_step, parser_of


def main() -> int:
    """Load the checkpoint and write the three files; a fault is one line and exit code 1."""
    parser = parser_of(__doc__)
    parser.add_argument("out", type=Path, metavar="FOLDER", help="where the files go")
    add_step(parser)
    args = parser.parse_args()
    try:
        from pipeline.export.onnx import export  # here, since the extra may be missing

        for file in export(load_trained(args.run, args.step), args.out):
            print(f"{file}: {file.stat().st_size / 1e6:,.1f} MB")
    except ModuleNotFoundError as error:
        print(f"export: {error}, wanted: {how_to_install('export')}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    exit_with(main)
