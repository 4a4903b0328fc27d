"""Stage 3: verification of people that the network was not trained on.

Pairs of faces go through the backbone of a run (image and mirror, concatenated), are compared by cosine and judged by
k-fold accuracy, ROC and TAR at FAR, each with a bootstrap interval over people. Results go to RUN/evaluations/NAME/
and stay good until weights, pairs or options change.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.embedding.embed import files_of
from pipeline.evaluation.embedding.kept import keep, means_of_frames, remarks
from pipeline.evaluation.embedding.source import ImageList, Source, image_files
from pipeline.evaluation.protocols.groups import read_groups
from pipeline.evaluation.protocols.overlap import excluded_people
from pipeline.evaluation.protocols.pairs import Pairs
from pipeline.evaluation.results import Evaluation, Rules, save
from pipeline.evaluation.scoring.insightface_rules import InsightFaceResult
from pipeline.evaluation.scoring.verification import FloatArray, IntArray
from pipeline.evaluation.sets import VerificationSet, folder_of, judge, leave_out, read_set, stored
from pipeline.run.folder import RunFolder
from stages.arguments import (
    add_bootstrap,
    add_embedding,
    add_source,
    add_step,
    embed_share,
    how_of,
    name_of,
    parser_of,
    sources_of,
)

EXAMPLES = """\
examples:
  python stages/evaluate.py runs/demo --images faces --pairs held_out.tsv --step 0 --step last --report
      before and after training, side by side, and RUN/report.html
  python stages/evaluate.py runs/casia --images lfw --pairs lfw.tsv --far 1e-2 1e-3
      rates that 3,000 different pairs resolve; 1e-4 would be refused
  python stages/evaluate.py results/w600k --onnx w600k.onnx --mean 127.5 --scale 0.00784 --images lfw --pairs lfw.tsv
      another network; stages/report.py runs/casia results/w600k then shows both, with the difference on the same people
  python stages/evaluate.py runs/casia --images lfw --pairs lfw.tsv --without overlap.tsv --report
      without the people that stages/overlap.py found in the training set too, beside the result with them

pairs file (tab-separated, paths relative to --images, identity = the folder of an image unless columns person_a and
person_b name it; stages/pairs.py writes one from published protocols, an InsightFace .bin or your own folders):
  fold  path_a        path_b        same
  1     ann/0001.jpg  ann/0002.jpg  1
  1     ann/0001.jpg  bob/0001.jpg  0
"""


@faults_in_one_line("evaluate")
def main() -> int:
    """Read and check everything, then embed, judge and report; a fault is one line (65, or 74 for the disk)."""
    args = _parser().parse_args()
    chosen = _chosen(args)
    if how_of(args).rank:
        for source in sources_of(args):
            embed_share(args, source, [_images(args, chosen.pairs)[0]])
        return 0
    for words in chosen.pairs.oddities():
        print(f"evaluate: {words}", file=sys.stderr)
    evaluations = [_evaluate(args, chosen, source) for source in sources_of(args)]
    _print_table(evaluations)
    if args.report:
        from pipeline.evaluation.reports.report import write_report  # which brings Matplotlib, more than a second

        print(f"report: {write_report([args.run], RunFolder(args.run).report)}")
    return 0


def _chosen(args: argparse.Namespace) -> VerificationSet:
    """The set, without the people of --without."""
    name = args.name or args.pairs.stem
    if args.without is None:
        chosen = read_set(name, args.images, args.pairs, args.far or ())
    else:
        whole = read_set(f"{name} without overlap", args.images, args.pairs)
        chosen = leave_out(whole, excluded_people(args.without), args.far or ())
    groups = read_groups(args.groups, chosen.pairs.paths) if args.groups else None
    return replace(chosen, rules=args.rules, groups=groups)


def _evaluate(args: argparse.Namespace, chosen: VerificationSet, source: Source) -> Evaluation:
    """The evaluation of one network: a stored one if nothing that it depends on has changed."""
    settings = chosen.settings(source.digest, args.resamples, args.seed)
    found = None if args.force else stored(args.run, chosen, source.step, settings)
    if found is not None:
        return found
    features_ND = _features(args, source, chosen.pairs)
    evaluation = judge(chosen, features_ND, settings, source.step, source.name, source.mirrored)
    save(evaluation, folder_of(args.run, chosen))
    return evaluation


def _features(args: argparse.Namespace, source: Source, pairs: Pairs) -> FloatArray:
    """Features of the pairs' images, a row of NaN for one without; those are listed."""
    images, counts = _images(args, pairs)
    kept = keep(RunFolder(args.run).embeddings, source, images, how_of(args), progress="")
    for words in remarks(kept, images, source):
        print(f"evaluate: {words}", file=sys.stderr)
    return means_of_frames(kept, counts)


def _images(args: argparse.Namespace, pairs: Pairs) -> tuple[ImageList, IntArray]:
    """The pairs' images, frame by frame, and how many frames each path stands for."""
    files, counts = files_of(args.images, pairs)
    return image_files(args.images, files), counts


def _print_table(evaluations: list[Evaluation]) -> None:
    fars = [entry.far for entry in evaluations[0].summary.verification.tar]
    print(f"{'step':>8}  {'accuracy (95% interval)':<26}  {'AUC':<7}  " + "  ".join(f"TAR@{far:<8g}" for far in fars))
    for evaluation in evaluations:
        result = evaluation.summary.verification
        accuracy = f"{result.accuracy.value:.2%} ({result.accuracy.low:.2%}-{result.accuracy.high:.2%})"
        tars = "  ".join(f"{entry.tar.value:<12.2%}" for entry in result.tar)
        print(f"{evaluation.summary.step:>8}  {accuracy:<26}  {result.auc.value:<7.2%}  {tars}")
    for evaluation in evaluations:
        if evaluation.summary.insightface:
            _print_rules(evaluation.summary.insightface, f"step {evaluation.summary.step}, InsightFace's rules")
        if evaluation.summary.without_group:
            print(f"evaluate: {evaluation.summary.without_group:,} images without a group", file=sys.stderr)


def _print_rules(result: InsightFaceResult, title: str) -> None:
    val = "" if result.val is None else f", VAL {result.val:.2%} ± {result.val_deviation:.2%} at FAR {result.far:.4%}"
    print(f"{title}: accuracy {result.accuracy:.2%} ± {result.deviation:.2%}{val}")
    before = result.steps[0][1]
    for change, accuracy in result.steps:
        print(f"  {change:<32} {accuracy:.2%} ({accuracy - before:+.2%})")
        before = accuracy


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, EXAMPLES)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="aligned faces")
    parser.add_argument("--pairs", type=Path, required=True, metavar="FILE", help="pairs to verify, see below")
    parser.add_argument(
        "--without", type=Path, metavar="FILE", help="decisions of stages/overlap.py: leave these test people out"
    )
    parser.add_argument(
        "--name", type=name_of, help="name of this evaluation in the report (default: the pairs file's)"
    )
    add_step(parser, repeatable=True)
    add_source(parser)
    parser.add_argument(
        "--far",
        type=float,
        nargs="+",
        metavar="RATE",
        help="false accept rates for TAR (default: the powers of ten, 0.1 to 1e-6, that the pairs resolve)",
    )
    parser.add_argument(
        "--rules",
        choices=get_args(Rules),
        default="own",
        help="insightface: report by the rules of its verification.py too",
    )
    parser.add_argument(
        "--groups", type=Path, metavar="FILE", help="path and group of images or people, tab-separated: errors by group"
    )
    add_bootstrap(parser)
    add_embedding(parser)
    parser.add_argument("--report", action="store_true", help="write RUN/report.html from every evaluation of RUN")
    parser.add_argument("--force", action="store_true", help="evaluate again what is already evaluated")
    return parser


if __name__ == "__main__":
    exit_with(main)
