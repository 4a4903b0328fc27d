"""Identification among distractors, as MegaFace does it: is a person found among a million others?

Every image of a person searches for each other image of that person, hidden among the distractors. The number of
distractors costs time and disk, never memory. Results go to RUN/identifications/NAME/, features to RUN/embeddings/.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np

from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.embedding.kept import Kept, keep, remarks
from pipeline.evaluation.embedding.source import Source, image_files
from pipeline.evaluation.protocols.pairs import list_images
from pipeline.evaluation.protocols.pairs_file import identity_of
from pipeline.evaluation.results import Identification, load_identification, result_file, save_summary
from pipeline.evaluation.scoring.distractors import identify
from pipeline.evaluation.scoring.verification import require_resolvable, resolvable_fars
from pipeline.run.folder import RunFolder
from stages.arguments import (
    add_bootstrap,
    add_embedding,
    add_source,
    add_step,
    count_of,
    how_of,
    name_of,
    parser_of,
    sources_of,
)

EXAMPLES = """\
example:
  python stages/identify.py runs/casia --probes facescrub --distractors megaface --far 1e-6

--probes holds a folder for each person (two images at least, to have one to find again); --distractors any tree of
images of other people. Each rate of --far keeps far x probes x distractors scores in memory, 4 bytes each.
"""


@faults_in_one_line("identify")
def main() -> int:
    """List, check, embed, search; a fault is one line (65, or 74 for the disk)."""
    args = _parser().parse_args()
    probes, distractors = list_images(args.probes), list_images(args.distractors)
    compared = len(probes) * len(distractors)
    fars = tuple(args.far or resolvable_fars(compared)[-1:])
    for far in fars:
        require_resolvable(far, compared, of="pairs of probe and distractor")
    for source in sources_of(args):
        _print(_identify(args, source, probes, distractors, fars))
    return 0


def _identify(
    args: argparse.Namespace, source: Source, probes: list[str], distractors: list[str], fars: tuple[float, ...]
) -> Identification:
    """The result for one network: a stored one if weights, files and options are the same."""
    listing = hashlib.sha256("\n".join([*probes, "", *distractors]).encode()).hexdigest()
    folder = RunFolder(args.run).identifications / (args.name or args.distractors.resolve().name)
    stored = None if args.force else _stored(result_file(folder, source.step))
    if stored:
        same = (stored.weights_sha256, stored.listing_sha256) == (source.digest, listing)
        if same and tuple(entry.far for entry in stored.tar) == fars and len(stored.cmc) == args.ranks:
            return stored
    people = np.unique(list(map(identity_of, probes)), return_inverse=True)[1]
    known = _features(args, source, args.probes, probes, "probes")
    others = _features(args, source, args.distractors, distractors, "distractors")
    count, device = int(others.good.sum()), how_of(args).device
    rows, person = known.rows(np.flatnonzero(known.good)), people[known.good]
    found = identify(rows, person, others.blocks(), count, args.ranks, fars, args.resamples, args.seed, device)
    result = Identification(
        step=source.step,
        weights_sha256=source.digest,
        listing_sha256=listing,
        cmc=found.cmc,
        tar=found.tar,
        trials=found.trials,
        identities=len(np.unique(person)),
        distractors=count,
        confidence=0.95,
        network=source.name,
    )
    save_summary(result, folder)
    return result


def _features(args: argparse.Namespace, source: Source, folder: Path, paths: list[str], kind: str) -> Kept:
    """The features of image files; those without are listed."""
    images = image_files(folder, paths)
    kept = keep(RunFolder(args.run).embeddings, source, images, how_of(args), progress=kind)
    for words in remarks(kept, images, source):
        print(f"identify: {kind}: {words}", file=sys.stderr)
    return kept


def _stored(file: Path) -> Identification | None:
    """The result in `file`; None unless it is whole and of this version."""
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
    parser.add_argument("--name", type=name_of, help="of the result in the report (default: the distractors' folder)")
    add_step(parser, repeatable=True)
    add_source(parser)
    parser.add_argument("--ranks", type=count_of, default=20, help="length of the CMC (default 20)")
    parser.add_argument(
        "--far", type=float, nargs="+", metavar="RATE", help="for TAR (default: the lowest power of ten resolved)"
    )
    add_bootstrap(parser)
    add_embedding(parser)
    parser.add_argument("--force", action="store_true", help="search again what is already done")
    return parser


if __name__ == "__main__":
    exit_with(main)
