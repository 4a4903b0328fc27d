"""IJB-B or IJB-C: templates verified 1:1 and searched 1:N, with InsightFace's meta files and aligned crops.

Results go to RUN/ijb/<set>/. Image names, templates and media come from META/<set>_face_tid_mid.txt, pairs from
META/<set>_template_pair_label.txt, and 1:N from META/<set>_1N_gallery_G1.csv, ..._G2.csv and ..._probe_mixed.csv
if they exist.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.embedding.kept import keep, without_features
from pipeline.evaluation.embedding.source import Source, image_files
from pipeline.evaluation.protocols.ijb import read_media, read_subjects, read_template_pairs
from pipeline.evaluation.protocols.pairs import require_images
from pipeline.evaluation.results import Gallery, TemplateResult, save_summary
from pipeline.evaluation.scoring.templates import RANKS, Templates, fuse, search_templates, verify_templates
from pipeline.evaluation.scoring.verification import require_resolvable
from pipeline.run.folder import RunFolder
from stages.arguments import add_bootstrap, add_embedding, add_source, add_step, how_of, parser_of, sources_of


@faults_in_one_line("ijb")
def main() -> int:
    """Read and check the protocol, embed, fuse, verify and search; a fault is one line (65, or 74 for the disk)."""
    args = _parser().parse_args()
    (source,) = sources_of(args)
    result = _evaluate(args, source)
    print(f"{save_summary(result, RunFolder(args.run).templates / args.set)}:")
    for entry in result.tar:
        print(f"  1:1 TAR at FAR {entry.far:<8g} {entry.tar.value:.2%} ({entry.tar.low:.2%}-{entry.tar.high:.2%})")
    for gallery in result.galleries:
        for rank, rate in zip(RANKS, gallery.ranks, strict=True):
            print(f"  {gallery.name} rank-{rank:<15} {rate.value:.2%} ({rate.low:.2%}-{rate.high:.2%})")
        for found in gallery.tpir:
            rate = found.tpir
            print(f"  {gallery.name} TPIR at FPIR {found.fpir:<6g} {rate.value:.2%} ({rate.low:.2%}-{rate.high:.2%})")
    return 0


def _evaluate(args: argparse.Namespace, source: Source) -> TemplateResult:
    pairs = read_template_pairs(args.meta / f"{args.set}_template_pair_label.txt")
    impostors = int(np.sum(~pairs[2]))
    for far in args.far:
        require_resolvable(far, impostors)
    lists = {name: args.meta / f"{args.set}_1N_{name}.csv" for name in ("gallery_G1", "gallery_G2", "probe_mixed")}
    subjects = {name: read_subjects(file) for name, file in lists.items() if file.exists()}
    subject_of: dict[int, int] = {}
    for ids, people in subjects.values():
        subject_of |= zip(ids.tolist(), people.tolist(), strict=True)
    templates = _templates(args, source)
    verified = verify_templates(templates, pairs, subject_of, tuple(args.far), args.resamples, args.seed)
    galleries = []
    if "probe_mixed" in subjects:
        for name in sorted(subjects.keys() - {"probe_mixed"}):
            ranks, tpir = search_templates(
                templates, subjects[name], subjects["probe_mixed"], tuple(args.fpir), args.resamples, args.seed
            )
            galleries.append(Gallery(name=name.removeprefix("gallery_"), ranks=ranks, tpir=tpir))
    return TemplateResult(
        step=source.step,
        weights_sha256=source.digest,
        templates=len(templates.ids),
        genuine=len(pairs[2]) - impostors,
        impostors=impostors,
        tar=verified.tar,
        curve=verified.curve,
        listing_sha256=_listing(args, lists.values()),
        galleries=tuple(galleries),
        network=source.name,
    )


def _listing(args: argparse.Namespace, lists: Iterable[Path]) -> str:
    """Digest of the protocol's files."""
    files = [args.meta / f"{args.set}_template_pair_label.txt", args.meta / f"{args.set}_face_tid_mid.txt", *lists]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _templates(args: argparse.Namespace, source: Source) -> Templates:
    file = args.meta / f"{args.set}_face_tid_mid.txt"
    media = read_media(file)
    names, mention = np.unique(media.names, return_inverse=True)  # an image of several templates is embedded once
    paths = tuple(map(str, names))
    require_images(paths, args.images, str(file))
    images = image_files(args.images, paths)
    kept = keep(RunFolder(args.run).embeddings, source, images, how_of(args), progress="")
    if words := without_features(kept, images, source):
        print(f"ijb: {words}", file=sys.stderr)
    good = kept.good[mention]
    mention = mention[good]
    return fuse(lambda some: kept.rows(mention[some]), media.template[good], media.medium[good])


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--set", choices=["ijbb", "ijbc"], default="ijbc", help="(default ijbc)")
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="aligned crops, as the meta names them"
    )
    parser.add_argument("--meta", type=Path, required=True, metavar="FOLDER", help="the meta files")
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


if __name__ == "__main__":
    exit_with(main)
