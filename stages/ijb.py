"""IJB-B or IJB-C: templates verified 1:1 and searched 1:N, with the files that InsightFace distributes.

Results go to RUN/ijb/<set>/. META has <set>_face_tid_mid.txt (images, templates, media), <set>_template_pair_label.txt
(1:1) and, if 1:N is wanted, <set>_1N_probe_mixed.csv beside the galleries <set>_1N_gallery_G1.csv and ..._G2.csv (S1
and S2 of IJB-B). Loose crops are aligned by the points of META/<set>_name_5pts_score.txt, which also has the detector's
scores.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import sys
from pathlib import Path

import numpy as np

from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.drawn import by_name, digest_of
from pipeline.evaluation.embedding.aligned import aligned_files
from pipeline.evaluation.embedding.kept import keep, remarks
from pipeline.evaluation.embedding.source import ImageList, Network, Source, image_files
from pipeline.evaluation.protocols.ijb import GALLERIES, Protocol, Subjects, read_protocol
from pipeline.evaluation.protocols.pairs import require_images
from pipeline.evaluation.results import Gallery, TemplateResult, save_summary
from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.scoring.fusion import Fusion
from pipeline.evaluation.scoring.gallery import search_rates
from pipeline.evaluation.scoring.templates import RANKS, Templates, fuse, search_templates, verify_templates
from pipeline.evaluation.scoring.verification import require_resolvable, resolvable
from pipeline.run.folder import RunFolder
from stages.arguments import (
    add_bootstrap,
    add_embedding,
    add_source,
    add_step,
    embed_share,
    how_of,
    parser_of,
    sources_of,
)

EXAMPLES = """\
examples:
  python stages/ijb.py runs/casia --set ijbc --images IJBC/loose_crop --align --meta IJBC/meta --fuse N1D1F2
      as arcface_torch's eval_ijbc.py: image and mirror summed, weighted by the detector's score
  python stages/ijb.py runs/casia --set ijbb --images aligned --meta IJBB/meta
      crops that are aligned already; image and mirror concatenated, as in SphereFace
"""


@faults_in_one_line("ijb")
def main() -> int:
    """Read and check the protocol, embed, fuse, verify and search; a fault is one line (65, or 74 for the disk)."""
    args = _parser().parse_args()
    (source,) = sources_of(args)
    protocol = read_protocol(args.meta, args.set)
    _check(args, source, protocol)
    if how_of(args).rank:
        embed_share(args, source, [_images(args, source, protocol)])
        return 0
    for words in protocol.missing:
        print(f"ijb: {words}", file=sys.stderr)
    result = _judge(args, source, protocol)
    name = args.set if args.fuse == Fusion() else f"{args.set} {args.fuse}"
    print(f"{save_summary(result, RunFolder(args.run).templates / name)}:")
    _print(result)
    return 0


def _check(args: argparse.Namespace, source: Source, protocol: Protocol) -> None:
    """Raise ValueError for what cannot work, before hours of embedding."""
    if args.fuse.mirror != 1 and not source.mirrored:
        raise ValueError(f"fuse: got {args.fuse} with embeddings made elsewhere, wanted F1: they are taken as they are")
    if args.align and not isinstance(source, Network):
        raise ValueError("align: got embeddings made elsewhere, wanted a network: images are not looked at")
    if (args.align or args.fuse.detector) and protocol.detections is None:
        raise ValueError(f"{args.meta}: got no {args.set}_name_5pts_score.txt, wanted it for --align and D1")
    for far in args.far:
        require_resolvable(far, int(np.sum(~protocol.pairs[2])))
    for name, gallery in protocol.galleries.items():
        assert protocol.probes is not None, "there are no galleries without probes"
        for fpir in args.fpir:
            require_resolvable(fpir, _strangers(protocol.probes, gallery), "fpir", f"probes outside {name}")


def _judge(args: argparse.Namespace, source: Source, protocol: Protocol) -> TemplateResult:
    templates = _templates(args, source, protocol)
    first, second, same = protocol.pairs
    kept = templates.known(first) & templates.known(second)
    _say_lost(len(kept) - int(kept.sum()), len(kept), "pairs")
    same = same[kept]
    impostors = int(np.sum(~same))
    # One broken image must not cost a rate: one that its pairs alone resolved is left out with them.
    fars = resolvable(args.far, impostors) or tuple(args.far)
    verified = verify_templates(
        templates, (first[kept], second[kept], same), protocol.subject_of, fars, args.resamples, args.seed
    )
    found, fpirs = _search(args, templates, protocol)
    draws = by_name([f"TAR at FAR {far:g}" for far in fars], verified.draws)
    for name, searched in found.items():
        names = [*(f"rank {rank}" for rank in RANKS), *(f"TPIR at FPIR {fpir:g}" for fpir in fpirs)]
        draws |= by_name([f"{name}, {statistic}" for statistic in names], searched)
    return TemplateResult(
        step=source.step,
        weights_sha256=source.digest,
        templates=len(templates.ids),
        genuine=int(same.sum()),
        impostors=impostors,
        tar=verified.tar,
        curve=verified.curve,
        listing_sha256=protocol.digest,
        galleries=tuple(_gallery(name, one, fpirs) for name, one in found.items()),
        network=source.name,
        fusion=str(args.fuse),
        drawn=digest_of([protocol.digest, args.seed, args.resamples], templates.ids),
        draws=draws,
    )


def _search(
    args: argparse.Namespace, templates: Templates, protocol: Protocol
) -> tuple[dict[str, Draws], tuple[float, ...]]:
    """1:N in each gallery, and their mean, with the FPIRs that all of them still resolve; nothing without probes."""
    if protocol.probes is None or not protocol.galleries:
        return {}, ()
    probes = _known(templates, protocol.probes, "probes")
    galleries = {name: _known(templates, one, f"templates of {name}") for name, one in protocol.galleries.items()}
    fpirs = resolvable(args.fpir, min(_strangers(probes, gallery) for gallery in galleries.values()))
    return search_templates(templates, galleries, probes, fpirs, args.resamples, args.seed), fpirs


def _strangers(probes: Subjects, gallery: Subjects) -> int:
    """How many probes are of people who are not in the gallery."""
    return int(np.sum(~np.isin(probes.subject, gallery.subject)))


def _gallery(name: str, searched: Draws, fpirs: tuple[float, ...]) -> Gallery:
    ranks, tpir = search_rates(searched, fpirs)
    return Gallery(name=name, ranks=ranks, tpir=tpir)


def _known(templates: Templates, listed: Subjects, kind: str) -> Subjects:
    """Those of the listed templates that have features."""
    kept = templates.known(listed.template)
    _say_lost(len(kept) - int(kept.sum()), len(kept), kind)
    return Subjects(listed.template[kept], listed.subject[kept])


def _say_lost(lost: int, of: int, kind: str) -> None:
    if lost:
        print(f"ijb: {lost:,} of {of:,} {kind} left out: their templates have no image with features", file=sys.stderr)


def _templates(args: argparse.Namespace, source: Source, protocol: Protocol) -> Templates:
    media = protocol.media
    names, mention = np.unique(media.names, return_inverse=True)  # an image of several templates is embedded once
    images = _images(args, source, protocol)
    kept = keep(RunFolder(args.run).embeddings, source, images, how_of(args), progress="")
    for words in remarks(kept, images, source):
        print(f"ijb: {words}", file=sys.stderr)
    good = kept.good[mention]
    mention = mention[good]
    scores = np.ones(len(names))
    if args.fuse.detector:
        assert protocol.detections is not None, "it was checked"
        scores = protocol.detections.of(names).scores
    return fuse(
        lambda some: args.fuse.features(kept.rows(mention[some]), scores[mention[some]]),
        media.template[good],
        media.medium[good],
    )


def _images(args: argparse.Namespace, source: Source, protocol: Protocol) -> ImageList:
    """Every image of the protocol, once, by rising names."""
    names = np.unique(protocol.media.names)
    paths = tuple(map(str, names))
    if not isinstance(source, Network):
        return image_files(args.images, paths)
    require_images(paths, args.images, str(args.meta))
    if not args.align:
        return image_files(args.images, paths)
    assert protocol.detections is not None, "it was checked"
    points = protocol.detections.of(names).points
    return aligned_files(args.images, paths, points, source.size, args.threads)


def _print(result: TemplateResult) -> None:
    for entry in result.tar:
        print(f"  1:1 TAR at FAR {entry.far:<8g} {entry.tar.value:.2%} ({entry.tar.low:.2%}-{entry.tar.high:.2%})")
    for gallery in result.galleries:
        for rank, rate in zip(RANKS, gallery.ranks, strict=True):
            print(f"  {gallery.name} rank-{rank:<15} {rate.value:.2%} ({rate.low:.2%}-{rate.high:.2%})")
        for found in gallery.tpir:
            rate = found.tpir
            print(f"  {gallery.name} TPIR at FPIR {found.fpir:<6g} {rate.value:.2%} ({rate.low:.2%}-{rate.high:.2%})")


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, EXAMPLES)
    parser.add_argument("--set", choices=list(GALLERIES), default="ijbc", help="(default ijbc)")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="crops, as the meta names them")
    parser.add_argument("--meta", type=Path, required=True, metavar="FOLDER", help="the meta files")
    parser.add_argument("--align", action="store_true", help="the images are loose crops: align them by their points")
    parser.add_argument(
        "--fuse",
        type=_fusion,
        default=Fusion(),
        metavar="RULE",
        help="how images enter a template, by InsightFace's letters: N1 keeps a feature's norm, D1 weighs it by the "
        "detector's score, F1 concatenates image and mirror, F2 sums them, F0 takes no mirror (default %(default)s)",
    )
    add_step(parser)
    add_source(parser)
    parser.add_argument(
        "--far",
        type=float,
        nargs="+",
        default=[1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1],
        help="of 1:1 (default 1e-6 to 1e-1)",
    )
    parser.add_argument("--fpir", type=float, nargs="+", default=[1e-2, 1e-1], help="of 1:N (default 0.01 and 0.1)")
    add_bootstrap(parser, resamples=100)
    add_embedding(parser)
    return parser


def _fusion(letters: str) -> Fusion:
    try:
        return Fusion.of(letters)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    exit_with(main)
