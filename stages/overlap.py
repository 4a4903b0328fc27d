"""People who are in the training set and in the test set: candidates by a network's features, to be decided on a page.

  python stages/overlap.py runs/casia lfw overlap                      writes overlap/overlap.html: look, decide, save
  python stages/overlap.py runs/casia lfw overlap                      again: reads overlap/decisions.tsv
  python stages/shard.py subset shards clean --drop overlap/exclude.txt            to train without these people
  python stages/evaluate.py runs/casia --images lfw --pairs lfw.tsv --without overlap/decisions.tsv --report
                                                                       to evaluate without them, beside the result with

In OUT: decisions.tsv (train_person, test_person, similarity, decision: same, different or nothing), which is kept and
completed by every later run; overlap.html, the page that shows the faces and saves that file; exclude.txt, the training
people decided to be test people; centres.*.npz, so that only the first run embeds.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.stop import exit_with, faults_in_one_line
from pipeline.arrays import read_npz
from pipeline.evaluation.embedding.people import People, centres, people_in
from pipeline.evaluation.embedding.source import Source
from pipeline.evaluation.protocols.overlap import (
    SAME,
    Candidate,
    find_candidates,
    merge,
    read_decisions,
    write_decisions,
)
from pipeline.evaluation.reports.overlap_page import write_page
from pipeline.files import write_file
from pipeline.recipe.file import load_recipe
from pipeline.run.folder import RunFolder
from stages.arguments import add_embedding, add_source, add_step, how_of, parser_of, sources_of
from stages.shard_arguments import count_of


@faults_in_one_line("overlap")
def main() -> int:
    """Embed both sets, search, keep what was decided, write; a fault is one line (65, or 74 for the disk)."""
    args = _parser().parse_args()
    decided = read_decisions(_decisions(args)) if _decisions(args).exists() else []
    (source,) = sources_of(args, results=False)
    train = people_in(args.train or load_recipe(RunFolder(args.run).recipe).data.shards)
    test = people_in(args.test)
    args.out.mkdir(parents=True, exist_ok=True)
    train_CD = _centres(args, source, train, "train")
    test_CD = _centres(args, source, test, "test")
    found = find_candidates(train_CD, train.names, test_CD, test.names, args.above, args.device)
    _write(args, merge(found[: args.most], decided), train, test, source)
    if len(found) > args.most:
        print(f"{len(found) - args.most:,} more pairs are above {args.above}: raise --most to see them")
    return 0


def _write(args: argparse.Namespace, pairs: list[Candidate], train: People, test: People, source: Source) -> None:
    write_decisions(_decisions(args), pairs)
    known = set(train.names)  # shard.py refuses to drop people that the set does not have
    excluded = sorted({pair.train for pair in pairs if pair.decision == SAME and pair.train in known})
    write_file(args.out / "exclude.txt", "".join(f"{name}\n" for name in excluded).encode())
    facts = {
        "training people:": f"{len(train.names):,}",
        "test people:": f"{len(test.names):,}",
        "network:": f"{args.run.resolve().name}, {source.name}, step {source.step}",
    }
    write_page(args.out / "overlap.html", pairs, train, test, facts)
    undecided = sum(not pair.decision for pair in pairs)
    print(f"{args.out / 'overlap.html'}: {len(pairs):,} candidate pairs, {undecided:,} undecided")
    print(f"{args.out / 'exclude.txt'}: {len(excluded):,} training people to leave out")


def _centres(args: argparse.Namespace, source: Source, people: People, kind: str) -> NDArray[np.float32]:
    """The people's centres: stored ones when neither weights nor images have changed."""
    file = args.out / f"centres.{kind}.npz"
    key = f"{source.digest} {people.digest}"
    try:
        stored = read_npz(file)
        if str(stored["key"]) == key:
            return stored["centres"]
    except (OSError, KeyError, ValueError):
        pass  # none yet, or none of ours
    crop = source.crop(people.images)
    if crop and crop.words:
        print(f"overlap: {kind}: {crop.words}", file=sys.stderr)
    found, without = centres(source, people, how_of(args), progress=f"{kind} people")
    if without:
        print(f"overlap: {without:,} {kind} images left out: wanted {source.wanted(people.images)}", file=sys.stderr)
    stream = io.BytesIO()
    np.savez(stream, key=np.array(key), centres=found)
    write_file(file, stream.getvalue())
    return found


def _decisions(args: argparse.Namespace) -> Path:
    return Path(args.out / "decisions.tsv")


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("test", type=Path, metavar="TEST", help="test people: identity folders, or shards")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the decisions and the page")
    parser.add_argument(
        "--train", type=Path, metavar="FOLDER", help="training people: shards or identity folders (the run's shards)"
    )
    parser.add_argument("--above", type=float, default=0.4, help="similarity of a candidate pair (default 0.4)")
    parser.add_argument("--most", type=count_of, default=500, help="pairs, the most similar (default 500)")
    add_step(parser)
    add_source(parser)
    add_embedding(parser)
    return parser


if __name__ == "__main__":
    exit_with(main)
