"""A pairs file for stages/evaluate.py, from a published protocol or from your own folders."""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import re
import sys
from pathlib import Path

from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.protocols.drawn import folder_rows
from pipeline.evaluation.protocols.insightface_bin import extract, read_bin
from pipeline.evaluation.protocols.pairs import assemble
from pipeline.evaluation.protocols.pairs_file import Row, write_rows
from pipeline.evaluation.protocols.path_lists import list_rows
from pipeline.evaluation.protocols.published import CFP_SPLITS, cfp_rows, lfw_rows, ytf_rows
from stages.shard_arguments import count_of

EXAMPLES = """\
examples:
  python stages/pairs.py lfw pairs.txt lfw.tsv               LFW's 6,000 pairs; also RFW's African_pairs.txt, ...
  python stages/pairs.py ytf splits.txt ytf.tsv              YTF's 5,000 pairs of videos (folders of frames)
  python stages/pairs.py cfp cfp-dataset/Protocol cfp_fp.tsv CFP's frontal and profile faces
  python stages/pairs.py list pairs_CALFW.txt calfw.tsv --person '(.+)_[0-9]+'
  python stages/pairs.py list agedb_30_pair.txt agedb.tsv    a list of paths; its flags say who is one person
  python stages/pairs.py bin agedb_30.bin agedb.tsv --images agedb
                                                             InsightFace's set, its images written below agedb/
  python stages/pairs.py folder faces mine.tsv --folds 10 --size 300 --seed 0
                                                             your own identity folders, pairs drawn by the seed
"""


@faults_in_one_line("pairs")
def main() -> int:
    """Read the protocol, check it, write the pairs file; a fault is one line (65, or 74 for the disk)."""
    args = _parser().parse_args()
    rows = _rows(args)
    pairs = assemble(rows, str(args.source))
    write_rows(rows, args.out)
    for words in pairs.oddities():
        print(f"pairs: {words}", file=sys.stderr)
    print(
        f"{args.out}: {len(rows):,} pairs ({len(rows) - pairs.impostors:,} same, {pairs.impostors:,} different)"
        f" of {len(pairs.paths):,} images in {len(pairs.folds)} folds"
    )
    return 0


def _rows(args: argparse.Namespace) -> list[Row]:
    if args.kind == "lfw":
        return lfw_rows(args.source, args.suffix)
    if args.kind == "ytf":
        return ytf_rows(args.source)
    if args.kind == "cfp":
        return cfp_rows(args.source, args.split)
    if args.kind == "list":
        return list_rows(args.source, args.person)
    if args.kind == "bin":
        return extract(read_bin(args.source), args.images)
    return folder_rows(args.source, args.folds, args.size, args.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{lfw,ytf,cfp,list,bin,folder}")
    lfw = kinds.add_parser("lfw", help="pairs.txt of Labeled Faces in the Wild, and what has its form")
    lfw.add_argument("--suffix", default=".jpg", help="of the image files (default .jpg)")
    ytf = kinds.add_parser("ytf", help="splits.txt of the YouTube Faces database")
    cfp = kinds.add_parser("cfp", help="the folder Protocol of Celebrities in Frontal-Profile")
    cfp.add_argument(
        "--split", choices=CFP_SPLITS, default="FP", help="frontal and profile, or both frontal (default FP)"
    )
    lists = kinds.add_parser("list", help="lines of two paths and 0 or 1, or of one path and a number (CALFW, CPLFW)")
    lists.add_argument(
        "--person",
        type=_pattern,
        metavar="REGEX",
        help="finds the person's name, its first group, in a path (default: who the flags say is one person)",
    )
    binary = kinds.add_parser("bin", help="a verification set of InsightFace; read without executing its pickle")
    binary.add_argument("--images", type=Path, required=True, help="folder for the images that the set holds")
    folder = kinds.add_parser("folder", help="identity folders; no person appears in two folds")
    folder.add_argument("--folds", type=count_of, default=10, help="(default 10)")
    folder.add_argument("--size", type=count_of, default=300, help="pairs of each kind in a fold (default 300, as LFW)")
    folder.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    for kind in (lfw, ytf, cfp, lists, binary, folder):
        kind.add_argument("source", type=Path, help="what to read")
        kind.add_argument("out", type=Path, help="pairs file to write")
    return parser


def _pattern(text: str) -> re.Pattern[str]:
    """A regular expression with a group."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"got {text!r}: {error}, wanted a regular expression") from None
    if not pattern.groups:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a group in it, such as '(.+)_[0-9]+'")
    return pattern


if __name__ == "__main__":
    exit_with(main)
