"""A run's backbone for use elsewhere: backbone.onnx, backbone.safetensors, and backbone.json on how to feed it.

Needs the export extra: pip install -e '.[export]'.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

from pathlib import Path

from cluster.stop import exit_with, faults_in_one_line
from cluster.versions import how_to_install
from pipeline.evaluation.embedding.trained import load_trained
from stages.arguments import add_step, parser_of


@faults_in_one_line("export")
def main() -> int:
    """Load the checkpoint and write the three files; a fault is one line (65, or 74 for the disk)."""
    parser = parser_of(__doc__)
    parser.add_argument("out", type=Path, metavar="FOLDER", help="where the files go")
    add_step(parser)
    args = parser.parse_args()
    try:
        from pipeline.export.onnx import export  # here, since the extra may be missing

        for file in export(load_trained(args.run, args.step), args.out):
            print(f"{file}: {file.stat().st_size / 1e6:,.1f} MB")
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}, wanted: {how_to_install('export')}") from error
    return 0


if __name__ == "__main__":
    exit_with(main)
