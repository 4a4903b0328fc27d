"""Identification among distractors, as MegaFace does it: is this person found again among a million others?

Every image of a person searches for each other image of that person, hidden among the distractors. Distractors pass by
as they are embedded: their number costs time, never memory. Results go to RUN/identifications/NAME/.
"""

import argparse
import hashlib
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from cluster.stop import exit_with
from pipeline.evaluation.embedding.embed import embed_files
from pipeline.evaluation.embedding.trained import TrainedBackbone, load_trained
from pipeline.evaluation.protocols.distractors import identify
from pipeline.evaluation.protocols.pairs import list_images
from pipeline.evaluation.results import Identification, load_identification, result_file, save_summary
from pipeline.evaluation.scoring.search import regrouped
from pipeline.evaluation.scoring.verification import require_resolvable, resolvable_fars
from pipeline.reading.dali import Decoder
from pipeline.run.folder import RunFolder
from stages.arguments import add_bootstrap, add_embedding, add_step, parser_of

EXAMPLES = """\
example:
  python stages/identify.py runs/casia --probes facescrub --distractors megaface --far 1e-6

--probes holds a folder for each person (two images at least, to have one to find again); --distractors any tree of
images of other people. Each rate of --far keeps far x probes x distractors scores in memory, 4 bytes each.
"""


def main() -> int:
    """List, check, embed, search; a fault is one line and exit code 1."""
    args = _parser().parse_args()
    try:
        probes, distractors = list_images(args.probes), list_images(args.distractors)
        compared = len(probes) * len(distractors)
        fars = tuple(args.far or resolvable_fars(compared)[-1:])
        for far in fars:
            require_resolvable(far, compared, of="pairs of probe and distractor")
        for step in args.step or [None]:
            _print(_identify(args, load_trained(args.run, step), probes, distractors, fars))
    except (ValueError, OSError) as error:
        print(f"identify: {error}", file=sys.stderr)
        return 1
    return 0


def _identify(
    args: argparse.Namespace,
    trained: TrainedBackbone,
    probes: list[str],
    distractors: list[str],
    fars: tuple[float, ...],
) -> Identification:
    """The result for one checkpoint: a stored one when weights, files and options are the same."""
    listing = hashlib.sha256("\n".join([*probes, "", *distractors]).encode()).hexdigest()
    folder = RunFolder(args.run).identifications / (args.name or args.distractors.resolve().name)
    file = result_file(folder, trained.step)
    stored = None if args.force else _stored(file)
    if stored:
        same = (stored.weights_sha256, stored.listing_sha256) == (trained.weights_sha256, listing)
        if same and tuple(entry.far for entry in stored.tar) == fars and len(stored.cmc) == args.ranks:
            return stored
    device = torch.device(args.device)
    module = trained.module.to(device)
    decoder = Decoder(args.batch_size, *trained.image_size, device, args.threads)
    features = np.concatenate(list(embed_files(module, args.probes, probes, decoder)))
    people, identity = np.unique([PurePosixPath(path).parent.as_posix() for path in probes], return_inverse=True)
    stream = regrouped(embed_files(module, args.distractors, distractors, decoder, progress=True))
    found = identify(features, identity, stream, len(distractors), args.ranks, fars, args.resamples, args.seed, device)
    result = Identification(
        step=trained.step,
        weights_sha256=trained.weights_sha256,
        listing_sha256=listing,
        cmc=found.cmc,
        tar=found.tar,
        trials=found.trials,
        identities=len(people),
        distractors=len(distractors),
        confidence=0.95,
    )
    save_summary(result, folder)
    return result


def _stored(file: Path) -> Identification | None:
    """The result in `file`; None where there is none that is whole and of this version."""
    try:
        return load_identification(file)
    except ValueError:
        return None


def _print(result: Identification) -> None:
    rates = [(f"rank-{rank}", result.cmc[rank - 1]) for rank in (1, len(result.cmc))]
    rates += [(f"TAR at FAR {entry.far:g}", entry.tar) for entry in result.tar]
    print(
        f"step {result.step}: {result.trials:,} searches for {result.identities:,} people"
        f" among {result.distractors:,} distractors"
    )
    for name, rate in dict(rates).items():
        print(f"  {name:<20} {rate.value:.2%} ({rate.low:.2%}-{rate.high:.2%})")


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, EXAMPLES)
    parser.add_argument("--probes", type=Path, required=True, metavar="FOLDER", help="people to find again")
    parser.add_argument("--distractors", type=Path, required=True, metavar="FOLDER", help="other people")
    parser.add_argument("--name", help="of the result in the report (default: the distractors' folder)")
    add_step(parser, repeatable=True)
    parser.add_argument("--ranks", type=int, default=20, help="length of the CMC (default 20)")
    parser.add_argument(
        "--far", type=float, nargs="+", metavar="RATE", help="for TAR (default: the lowest power of ten resolved)"
    )
    add_bootstrap(parser)
    add_embedding(parser)
    parser.add_argument("--force", action="store_true", help="search again what is already done")
    return parser


if __name__ == "__main__":
    exit_with(main)
