"""Stage 3: how well a trained network verifies people it never saw.

Pairs of faces go through the backbone of a run (image and mirror, concatenated), are compared by cosine and judged by
k-fold accuracy, ROC and TAR at FAR, each with a bootstrap interval over people. Results go to RUN/evaluations/NAME/
and stay good until weights, pairs or options change.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from pipeline.evaluation.embed import embed_pairs
from pipeline.evaluation.pairs import Pairs, read_pairs
from pipeline.evaluation.report import write_report
from pipeline.evaluation.results import Centred, Evaluation, Settings, Summary, load, result_file, save, verify
from pipeline.evaluation.trained import TrainedBackbone, load_trained
from pipeline.evaluation.verification import centred_kfold, cosine_scores, require_resolvable, resolvable_fars
from pipeline.reading.dali import Decoder

EXAMPLES = """\
examples:
  python stages/evaluate.py runs/demo --images faces --pairs held_out.tsv --step 0 --step last --report
      before and after training, side by side, and RUN/report.html
  python stages/evaluate.py runs/casia --images lfw --pairs lfw.tsv --far 1e-2 1e-3
      rates that 3,000 different pairs resolve; 1e-4 would be refused

pairs file (tab-separated, paths relative to --images, identity = the folder of an image; stages/pairs.py writes one
from LFW, YTF, an InsightFace .bin or your own folders):
  fold  path_a        path_b        same
  1     ann/0001.jpg  ann/0002.jpg  1
  1     ann/0001.jpg  bob/0001.jpg  0
"""


def main() -> int:
    """Read everything that can be wrong, then embed, judge and report; a fault is one line and exit code 1."""
    args = _parser().parse_args()
    try:
        pairs = read_pairs(args.pairs, args.images)
        fars = tuple(args.far or resolvable_fars(pairs.impostors))
        for far in fars:
            require_resolvable(far, pairs.impostors)
        evaluations = [_evaluate(args, step, pairs, fars) for step in args.step or [None]]
        _print_table(evaluations)
        if args.report:
            print(f"report: {write_report([args.run], args.run / 'report.html')}")
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


def _evaluate(args: argparse.Namespace, step: int | None, pairs: Pairs, fars: tuple[float, ...]) -> Evaluation:
    """The evaluation of one checkpoint: a stored one when nothing that it depends on has changed."""
    trained = load_trained(args.run, step)
    settings = Settings(
        weights_sha256=trained.weights_sha256,
        images=str(args.images.resolve()),
        pairs=str(args.pairs.resolve()),
        pairs_sha256=hashlib.sha256(args.pairs.read_bytes()).hexdigest(),
        far=fars,
        resamples=args.resamples,
        seed=args.seed,
    )
    folder = args.run / "evaluations" / (args.name or args.pairs.stem)
    stored = None if args.force else _stored(result_file(folder, trained.step))
    if stored and stored.summary.settings == settings:
        return stored
    features = _features(args, trained, pairs)
    scored = pairs.scored(cosine_scores(features, pairs.a, pairs.b))
    verification = verify(scored, fars, args.resamples, args.seed)
    by_authors = centred_kfold(features, pairs.a, pairs.b, scored)
    paths = np.array(pairs.paths)
    summary = Summary(
        step=trained.step,
        settings=settings,
        verification=verification,
        centred=Centred(accuracy=by_authors.mean, deviation=by_authors.deviation),
    )
    evaluation = Evaluation(summary, scored, paths[pairs.a], paths[pairs.b])
    save(evaluation, folder)
    return evaluation


def _stored(file: Path) -> Evaluation | None:
    """The evaluation in `file`; None where there is none that is whole and of this version."""
    try:
        return load(file)
    except ValueError:
        return None


def _features(args: argparse.Namespace, trained: TrainedBackbone, pairs: Pairs) -> np.ndarray:
    device = torch.device(args.device)
    decoder = Decoder(args.batch_size, *trained.image_size, device, args.threads)
    return embed_pairs(trained.module.to(device), args.images, pairs, decoder, progress=True)


def _print_table(evaluations: list[Evaluation]) -> None:
    fars = [entry.far for entry in evaluations[0].summary.verification.tar]
    print(f"{'step':>8}  {'accuracy (95% interval)':<26}  {'AUC':<7}  " + "  ".join(f"TAR@{far:<8g}" for far in fars))
    for evaluation in evaluations:
        result = evaluation.summary.verification
        accuracy = f"{result.accuracy.value:.2%} ({result.accuracy.low:.2%}-{result.accuracy.high:.2%})"
        tars = "  ".join(f"{entry.tar.value:<12.2%}" for entry in result.tar)
        print(f"{evaluation.summary.step:>8}  {accuracy:<26}  {result.auc.value:<7.4f}  {tars}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="aligned faces")
    parser.add_argument("--pairs", type=Path, required=True, metavar="FILE", help="pairs to verify, see below")
    parser.add_argument("--name", help="of this evaluation in the report (default: the pairs file's)")
    parser.add_argument(
        "--step",
        type=_step,
        action="append",
        metavar="N",
        help="checkpoint to evaluate: a step or 'last' (default); repeat for several, 0 is before training",
    )
    parser.add_argument(
        "--far",
        type=float,
        nargs="+",
        metavar="RATE",
        help="false accept rates for TAR (default: the powers of ten, 0.1 to 1e-6, that the pairs resolve)",
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap over people (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument("--batch-size", type=int, default=64, help="images embedded together (default 64)")
    parser.add_argument("--threads", type=int, default=2, help="that decode images (default 2)")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the network runs: cpu, cuda, cuda:1 (default here: %(default)s)",
    )
    parser.add_argument("--report", action="store_true", help="write RUN/report.html from every evaluation of RUN")
    parser.add_argument("--force", action="store_true", help="evaluate again what is already evaluated")
    return parser


def _step(text: str) -> int | None:
    """A checkpoint's step; None stands for the last."""
    if text == "last":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a step such as 0 or 2000, or 'last'")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
