"""A run's backbone for use elsewhere: ONNX, safetensors, how to feed them, and a model card.

Needs the export extra: pip install -e '.[export]'.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.stop import exit_with, faults_in_one_line
from cluster.versions import how_to_install
from pipeline.evaluation.embedding.source import image_files
from pipeline.evaluation.embedding.trained import load_trained
from pipeline.evaluation.protocols.pairs import list_images
from pipeline.evaluation.sets import read_set
from stages.arguments import add_step, parser_of, size_in_words

if TYPE_CHECKING:
    from pipeline.export.package import Lower

CALIBRATION_IMAGES = 512

EXAMPLES = """\
examples:
  python stages/export.py runs/casia exported
  python stages/export.py runs/casia exported --raw-pixels --mirror
      pixels of 0 to 255 in, the embedding that is reported out; InsightFace's Python package feeds such a file rightly
  python stages/export.py runs/casia exported --precision fp16 int8 --images lfw --pairs lfw.tsv --calibration faces
      smaller files too, with what they lose on these pairs
"""


@faults_in_one_line("export")
def main() -> int:
    """Load the checkpoint and write the files; a fault is one line (65, or 74 for the disk)."""
    args = _parser().parse_args()
    try:
        from pipeline.export.description import Form  # here, since the extra may be missing
        from pipeline.export.package import export
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}, wanted: {how_to_install('export')}") from error
    form = Form(args.raw_pixels, args.mirror, args.opset)
    trained = load_trained(args.run, args.step)
    for file in export(trained, args.out, args.run, form, _lower(args), args.pt2):
        print(f"{file}: {size_in_words(file.stat().st_size)}")
    return 0


def _lower(args: argparse.Namespace) -> Lower | None:
    """The lower precisions that are wanted, with the set that says what they cost."""
    from pipeline.export.package import Lower

    if not args.precision:
        given = [f"--{name}" for name in ("images", "pairs", "calibration") if getattr(args, name)]
        if given:
            raise ValueError(f"{', '.join(given)}: got it without --precision, wanted both")
        return None
    if args.images is None or args.pairs is None:
        raise ValueError("--precision: got no --images and --pairs, wanted both: they measure what it costs")
    folder = args.calibration or args.images
    every = list_images(folder)
    some = every[:: -(-len(every) // CALIBRATION_IMAGES)]  # of all people, whose folders lie in a row
    chosen = read_set(args.pairs.stem, args.images, args.pairs)
    return Lower(tuple(args.precision), chosen, image_files(folder, some))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, EXAMPLES)
    parser.add_argument("out", type=Path, metavar="FOLDER", help="where the files go")
    add_step(parser)
    parser.add_argument("--opset", type=int, default=18, metavar="N", help="of the ONNX: 17 to 23 (default 18)")
    parser.add_argument("--raw-pixels", action="store_true", help="the graph normalises pixels of 0 to 255 itself")
    parser.add_argument("--mirror", action="store_true", help="the graph embeds the mirrored image too, side by side")
    parser.add_argument("--pt2", action="store_true", help="also backbone.pt2, for torch.export.load")
    lower = parser.add_argument_group("fewer bits", "files of lower precision, with what that costs on given pairs")
    lower.add_argument("--precision", nargs="+", choices=["fp16", "int8"], help="also in these")
    lower.add_argument("--images", type=Path, metavar="FOLDER", help="aligned faces of --pairs")
    lower.add_argument("--pairs", type=Path, metavar="FILE", help="pairs on which the loss is measured")
    lower.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help=f"aligned faces that set the ranges of int8, {CALIBRATION_IMAGES} at most (default: --images)",
    )
    return parser


if __name__ == "__main__":
    exit_with(main)
