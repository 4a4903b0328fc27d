"""Identification: is a person found among others, in a gallery or hidden among distractors?

With --gallery, each probe searches the gallery, and distractors, if there are any, lie in it: the rates are the CMC of
the probes whose person is there, and TPIR at FPIR if others are searched for too. Without, as MegaFace does it: every
image of a person searches for each other image of that person, hidden among the distractors, whose number costs time
and disk, never memory. Results go to RUN/identifications/NAME/, features to RUN/embeddings/.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import hashlib
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.drawn import by_name, digest_of
from pipeline.evaluation.embedding.kept import Kept, keep, remarks
from pipeline.evaluation.embedding.source import Source, image_files
from pipeline.evaluation.protocols.face_lists import Faces, in_both, is_noise, read_faces, read_noise
from pipeline.evaluation.results import Identification, load_identification, result_file, save_summary
from pipeline.evaluation.scoring.distractors import identify
from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.scoring.gallery import NOBODY, search_gallery, search_rates
from pipeline.evaluation.scoring.verification import IntArray, require_resolvable, resolvable, resolvable_fars
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
from stages.shard_arguments import count_of

FPIRS = (1e-2, 1e-1)
CONFIDENCE = 0.95

EXAMPLES = """\
examples:
  python stages/identify.py runs/casia --probes facescrub --distractors megaface --far 1e-6 \\
      --probe-list facescrub_lst --distractor-list megaface_lst --noise facescrub_noises.txt megaface_noises.txt
      MegaFace, with InsightFace's lists
  python stages/identify.py runs/casia --probes Probe --probe-list probe_img_ID_pairs.mat \\
      --gallery Gallery_Match --gallery-list gallery_match_img_ID_pairs.mat --distractors Gallery_Distractor
      TinyFace
  python stages/identify.py runs/casia --probes visitors --gallery staff --fpir 0.01
      folders of one's own, a folder for each person; visitors who are not staff are searches that should find nobody

A folder has a folder for each person, unless a list names the people: lines of path, tab, person; MegaFace's JSON; or
TinyFace's MATLAB file. Each rate of --far keeps far x probes x distractors scores in memory, 4 bytes each.
"""


@dataclass(frozen=True)
class Searched:
    """What is compared, read and checked: no gallery, or no distractors, is empty."""

    probes: Faces
    gallery: Faces
    distractors: Faces
    rates: tuple[float, ...]

    @property
    def digest(self) -> str:
        """Of all images and their people."""
        lists = (self.probes, self.gallery, self.distractors)
        return hashlib.sha256("\n".join(faces.digest for faces in lists).encode()).hexdigest()


@faults_in_one_line("identify")
def main() -> int:
    """List, check, embed, search; a fault is one line (65, or 74 for the disk)."""
    args = _parser().parse_args()
    searched = _read(args)
    for source in sources_of(args):
        if how_of(args).rank:
            lists = (searched.probes, searched.gallery, searched.distractors)
            embed_share(args, source, [image_files(faces.folder, faces.paths) for faces in lists if len(faces)])
            continue
        _print(_result(args, source, searched))
    return 0


def _read(args: argparse.Namespace) -> Searched:
    """The lists, without noise; raises ValueError for what cannot be searched."""
    if args.gallery is None and args.distractors is None:
        raise ValueError("got neither --gallery nor --distractors, wanted one")
    if args.gallery and args.far:
        raise ValueError("far: got it with --gallery, wanted --fpir: a gallery is judged by TPIR at FPIR")
    if args.fpir and not args.gallery:
        raise ValueError("fpir: got it without --gallery, wanted --far: distractors are judged by TAR at FAR")
    noise = read_noise(args.noise)
    probes = _faces(args.probes, args.probe_list, noise)
    gallery = _faces(args.gallery, args.gallery_list, noise)
    distractors = _faces(args.distractors, args.distractor_list, noise)
    probes.require_people("--probes")
    gallery.require_people("--gallery")
    if same := len(_files(probes) & _files(gallery)):
        print(
            f"identify: {same:,} of {len(probes):,} probes are files of the gallery, and find themselves",
            file=sys.stderr,
        )
    if args.gallery is None and (twice := len(probes) - len(set(probes.paths))):
        print(
            f"identify: {twice:,} of {len(probes):,} probes are listed once more, and find themselves", file=sys.stderr
        )
    known = Faces(probes.folder, probes.paths + gallery.paths, probes.people + gallery.people)
    if both := in_both(known, distractors):
        named = ", ".join(both[:5])
        print(f"identify: {len(both):,} people are distractors, too, and so their own rivals: {named}", file=sys.stderr)
    return Searched(probes, gallery, distractors, _rates(args, probes, gallery, distractors))


def _files(faces: Faces) -> set[Path]:
    """The files of images, whatever the folder is called."""
    folder = faces.folder.resolve()
    return {folder / path for path in faces.paths}


def _faces(folder: Path | None, listing: Path | None, noise: frozenset[str]) -> Faces:
    """The images of a folder without noise, which is said; none without a folder."""
    if folder is None:
        if listing is not None:
            raise ValueError(f"{listing}: got a list without a folder, wanted both")
        return Faces(Path(), (), ())
    faces = read_faces(folder, listing)
    if not noise:
        return faces
    clean = faces.among(~is_noise(faces.paths, noise))
    print(f"identify: {len(faces) - len(clean):,} of {len(faces):,} images in {folder} are noise", file=sys.stderr)
    if not len(clean):
        raise ValueError(f"{folder}: got no images but noise, wanted some")
    return clean


def _rates(args: argparse.Namespace, probes: Faces, gallery: Faces, distractors: Faces) -> tuple[float, ...]:
    """The FARs, or the FPIRs of a gallery: those asked for, or those that so many searches resolve.

    Raises ValueError for a rate that they do not resolve, and if nobody could be found.
    """
    if args.gallery is None:
        if len(set(probes.people)) == len(probes):
            raise ValueError(
                f"{args.probes}: got {len(probes)} images, no two of one person, wanted some to find again"
            )
        compared = len(probes) * len(distractors)
        fars = tuple(args.far or _default_far(compared))
        for far in fars:
            require_resolvable(far, compared, of="pairs of probe and distractor")
        return fars
    strangers = int(np.sum(~np.isin(probes.people, gallery.people)))
    if strangers == len(probes):
        raise ValueError(f"{args.probes}: got nobody who is in {args.gallery}, wanted some to find")
    for fpir in args.fpir or ():
        require_resolvable(fpir, strangers, "fpir", "searches for people outside the gallery")
    return tuple(args.fpir or resolvable(FPIRS, strangers))


def _default_far(compared: int) -> tuple[float, ...]:
    """The lowest power of ten that so many pairs of probe and distractor resolve."""
    return resolvable_fars(compared)[-1:]


def _result(args: argparse.Namespace, source: Source, searched: Searched) -> Identification:
    """The result for one network: a stored one if weights, files and options are the same."""
    place = args.gallery or args.distractors
    folder = RunFolder(args.run).identifications / (args.name or place.resolve().name)
    stored = None if args.force else _stored(result_file(folder, source.step))
    if stored:
        rates = (*(entry.far for entry in stored.tar), *(entry.fpir for entry in stored.tpir))
        depended_on = (stored.weights_sha256, stored.listing_sha256, rates, len(stored.cmc))
        options = (args.ranks, args.resamples, args.seed)
        if (*depended_on, stored.resamples, stored.seed) == (source.digest, searched.digest, searched.rates, *options):
            return stored
    judge = _among_distractors if args.gallery is None else _in_gallery
    result = judge(args, source, searched)
    save_summary(result, folder)
    return result


def _among_distractors(args: argparse.Namespace, source: Source, searched: Searched) -> Identification:
    known = _features(args, source, searched.probes, "probes")
    others = _features(args, source, searched.distractors, "distractors")
    person = np.unique(searched.probes.people, return_inverse=True)[1][known.good]
    count = int(others.good.sum())
    compared = int(known.good.sum()) * count
    # One broken image must not cost a rate: one that its search alone resolved is left out with it.
    fars = resolvable(args.far, compared) if args.far else _default_far(compared)
    found = identify(
        known.rows(np.flatnonzero(known.good)),
        person,
        others.blocks(),
        count,
        args.ranks,
        fars,
        args.resamples,
        args.seed,
        how_of(args).device,
    )
    return Identification(
        step=source.step,
        weights_sha256=source.digest,
        listing_sha256=searched.digest,
        cmc=found.cmc,
        tar=found.tar,
        trials=found.trials,
        identities=len(np.unique(person)),
        distractors=count,
        confidence=CONFIDENCE,
        network=source.name,
        resamples=args.resamples,
        seed=args.seed,
        drawn=digest_of([searched.digest, args.seed, args.resamples], known.good),
        draws=_some([f"TAR at FAR {far:g}" for far in fars], args.ranks, found.draws),
    )


def _in_gallery(args: argparse.Namespace, source: Source, searched: Searched) -> Identification:
    probes = _features(args, source, searched.probes, "probes")
    members = _features(args, source, searched.gallery, "gallery")
    others = _features(args, source, searched.distractors, "distractors") if len(searched.distractors) else None
    count = int(others.good.sum()) if others else 0
    numbers = np.unique(searched.probes.people + searched.gallery.people, return_inverse=True)[1]
    person: IntArray = numbers[: len(searched.probes)][probes.good]
    owner: IntArray = numbers[len(searched.probes) :][members.good]
    mated = np.isin(person, owner)
    fpirs = resolvable(searched.rates, int(np.sum(~mated)))  # as with distractors, a broken image costs no other
    found = search_gallery(
        probes.rows(np.flatnonzero(probes.good)),
        person,
        chain(members.blocks(), others.blocks() if others else ()),
        np.concatenate([owner, np.full(count, NOBODY)]),
        args.ranks,
        fpirs,
        args.resamples,
        args.seed,
        how_of(args).device,
    )
    cmc, tpir = search_rates(found, fpirs)
    return Identification(
        step=source.step,
        weights_sha256=source.digest,
        listing_sha256=searched.digest,
        cmc=cmc,
        tar=(),
        trials=int(mated.sum()),
        identities=len(np.unique(person[mated])),
        distractors=count,
        confidence=CONFIDENCE,
        network=source.name,
        resamples=args.resamples,
        seed=args.seed,
        gallery=len(owner),
        strangers=int(np.sum(~mated)),
        tpir=tpir,
        drawn=digest_of([searched.digest, args.seed, args.resamples], probes.good, members.good),
        draws=_some([f"TPIR at FPIR {fpir:g}" for fpir in fpirs], args.ranks, found),
    )


def _some(names: list[str], ranks: int, draws: Draws) -> dict[str, Draws]:
    """What two networks are compared by: the first and the last of the ranks, and the rates of these names behind."""
    places = [0, ranks - 1, *range(ranks, ranks + len(names))]
    return by_name(["rank 1", f"rank {ranks}", *names], draws.take(places))


def _features(args: argparse.Namespace, source: Source, faces: Faces, kind: str) -> Kept:
    """The features of images; what is to be said of them is."""
    images = image_files(faces.folder, faces.paths)
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
    rates += [(f"TPIR at FPIR {entry.fpir:g}", entry.tpir) for entry in result.tpir]
    among = f"{result.distractors:,} distractors"
    if result.gallery:
        among = f"{result.gallery:,} images and {among}, and {result.strangers:,} for people who are not there"
    print(f"step {result.step}: {result.trials:,} searches for {result.identities:,} people among {among}")
    for name, rate in dict(rates).items():
        print(f"  {name:<20} {rate.value:.2%} ({rate.low:.2%}-{rate.high:.2%})")


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, EXAMPLES)
    parser.add_argument("--probes", type=Path, required=True, metavar="FOLDER", help="people to find")
    parser.add_argument(
        "--probe-list", type=Path, metavar="FILE", help="which images below --probes, and who is on them"
    )
    parser.add_argument("--gallery", type=Path, metavar="FOLDER", help="known people, who are searched")
    parser.add_argument("--gallery-list", type=Path, metavar="FILE", help="as --probe-list, of the gallery")
    parser.add_argument("--distractors", type=Path, metavar="FOLDER", help="other people, in any tree")
    parser.add_argument("--distractor-list", type=Path, metavar="FILE", help="which images below --distractors")
    parser.add_argument(
        "--noise", type=Path, nargs="+", default=(), metavar="FILE", help="lists of images to leave out"
    )
    parser.add_argument(
        "--name", type=name_of, help="of the result in the report (default: the folder of the gallery or distractors)"
    )
    add_step(parser, repeatable=True)
    add_source(parser)
    parser.add_argument("--ranks", type=count_of, default=20, help="length of the CMC (default 20)")
    parser.add_argument(
        "--far", type=float, nargs="+", metavar="RATE", help="for TAR (default: the lowest power of ten resolved)"
    )
    parser.add_argument(
        "--fpir",
        type=float,
        nargs="+",
        metavar="RATE",
        help="for TPIR in a gallery (default: 0.01 and 0.1 if resolved)",
    )
    add_bootstrap(parser)
    add_embedding(parser)
    parser.add_argument("--force", action="store_true", help="search again what is already done")
    return parser


if __name__ == "__main__":
    exit_with(main)
