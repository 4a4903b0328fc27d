"""Every set that a network is usually judged on, in one command and one table: HTML, Markdown, LaTeX and CSV.

  python stages/suite.py runs/casia --data /data/val --out suite
  python stages/suite.py results/w600k --onnx w600k.onnx --data /data/val --beside runs/casia --out suite

In DATA, what there is of: lfw, cfp_fp, agedb_30, calfw and cplfw, each a pairs file NAME.tsv with its images in NAME/,
or InsightFace's NAME.bin; ijbb and ijbc, each a folder with meta/ and either loose_crop/, which is aligned and fused as
arcface_torch does it (N1D1F2), or the aligned crops in images/. What is missing is said and left out.

Each set is judged by stages/evaluate.py or stages/ijb.py, whose results go to RUN: pairs that are judged are not judged
again, and no image is embedded twice. Networks of --beside are shown as they were judged before, on the same pairs.

Code 1: a set could not be judged, the others are in the table; 65 and 74 as everywhere.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.embedding.trained import load_trained
from pipeline.evaluation.reports.suite import FAR, Column, pairs_column, templates_column, write_suite
from pipeline.evaluation.results import Evaluation, TemplateResult, load, load_templates, result_file
from pipeline.run.folder import RunFolder
from stages.arguments import add_embedding, add_source, add_step, file_of, options_of, parser_of

STAGES = Path(__file__).resolve().parent
PAIRS = {"lfw": "LFW", "cfp_fp": "CFP-FP", "agedb_30": "AgeDB-30", "calfw": "CALFW", "cplfw": "CPLFW"}
TEMPLATES = {"ijbb": "IJB-B", "ijbc": "IJB-C"}
LOOSE_FUSION = "N1D1F2"  # of loose crops, as stages/ijb.py names it

Result = TypeVar("Result", Evaluation, TemplateResult)


@dataclass(frozen=True)
class Judgement:
    """A set that is there: its title, the folder of its results, and the commands that judge a network on it."""

    title: str
    results: str
    commands: list[list[object]]


@faults_in_one_line("suite")
def main() -> int:
    """Judge the network on every set that is there, and tabulate; returns the exit code."""
    args = _parser().parse_args()
    for run in args.beside:
        if not run.is_dir():
            raise ValueError(f"--beside: got {run}, wanted the folder of a run, or of a network's results")
    step = _step(args)
    if file_of(args) is None:
        args.step = step  # of every set, whatever a run that goes on saves meanwhile
    wanted, missing = sets_in(args)
    if missing:
        print(f"suite: not in {args.data}: {', '.join(missing)}", file=sys.stderr)
    judged = [judgement for judgement in wanted if _carry_out(judgement)]
    names, columns = _columns(args, judged, step)
    if columns:
        sets = "1 set" if len(columns) == 1 else f"{len(columns)} sets"
        for file in write_suite(f"{names[0]} on {sets}", names, columns, args.out):
            print(file)
    for judgement in wanted:
        if judgement not in judged:
            print(f"suite: {judgement.title} was not judged, see above", file=sys.stderr)
    return int(len(judged) < len(wanted))


def sets_in(args: argparse.Namespace) -> tuple[list[Judgement], list[str]]:
    """The sets in DATA, and the names of those that are not there; ValueError if none is."""
    common = options_of(args)
    if args.resamples is not None:
        common += ["--resamples", args.resamples]
    found, missing = [], []
    for name, title in PAIRS.items():
        commands = _commands_of_pairs(args, name, title, common)
        if commands:
            found.append(Judgement(title, title, commands))
        else:
            missing.append(f"{title} ({name}.tsv or {name}.bin)")
    for name, title in TEMPLATES.items():
        folder = args.data / name
        if (folder / "meta").is_dir():
            loose = (folder / "loose_crop").is_dir()
            images = ["loose_crop", "--align", "--fuse", LOOSE_FUSION] if loose else ["images"]
            places = ["--images", folder / images[0], *images[1:], "--meta", folder / "meta"]
            judge = ["ijb.py", args.run, "--set", name, *places, "--far", *args.far, *common]
            found.append(Judgement(title, f"{name} {LOOSE_FUSION}" if loose else name, [judge]))
        else:
            missing.append(f"{title} ({name}/meta)")
    if not found:
        raise ValueError(f"{args.data}: got none of the sets, wanted one of {', '.join(missing)}")
    return found, missing


def _commands_of_pairs(args: argparse.Namespace, name: str, title: str, common: list[object]) -> list[list[object]]:
    """What judges the network on a set of pairs; nothing if it is not there."""
    images, pairs, binary = args.data / name, args.data / f"{name}.tsv", args.data / f"{name}.bin"
    commands: list[list[object]] = []
    if not pairs.is_file():
        if not binary.is_file():
            return []
        images, pairs = args.out / "sets" / name, args.out / "sets" / f"{name}.tsv"
        if not pairs.is_file() or pairs.stat().st_mtime_ns < binary.stat().st_mtime_ns:
            commands.append(["pairs.py", "bin", binary, pairs, "--images", images])
    evaluate = ["evaluate.py", args.run, "--images", images, "--pairs", pairs, "--name", title]
    return [*commands, [*evaluate, *common]]


def _carry_out(judgement: Judgement) -> bool:
    """Whether every command ended well; their lines are shown as they come."""
    for stage, *options in judgement.commands:
        print(f"{judgement.title}:", flush=True)
        done = subprocess.run([sys.executable, str(STAGES / str(stage)), *map(str, options)], check=False)
        if done.returncode:
            return False
    return True


def _columns(args: argparse.Namespace, judged: Sequence[Judgement], step: int) -> tuple[list[str], list[Column]]:
    """The networks' names, and a column for each set."""
    runs = [args.run, *args.beside]
    short = [run.resolve().name for run in runs]
    names = [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs, strict=True)]
    folders = dict(zip(names, map(RunFolder, runs), strict=True))
    columns = []
    for judgement in judged:
        title, kind = judgement.title, judgement.results
        if title in PAIRS.values():
            places = {name: folder.evaluations for name, folder in folders.items()}
            columns.append(pairs_column(title, _results(places, kind, step, load)))
        else:
            places = {name: folder.templates for name, folder in folders.items()}
            columns.append(templates_column(title, _results(places, kind, step, load_templates)))
    return names, columns


def _step(args: argparse.Namespace) -> int:
    """The checkpoint that is judged; 0 for a network of another origin. ValueError if there is none."""
    return 0 if file_of(args) else load_trained(args.run, args.step).step


def _results(places: Mapping[str, Path], kind: str, step: int, read: Callable[[Path], Result]) -> dict[str, Result]:
    """Of the first network its result on the set; of the others their last step on the same comparison.

    What cannot be read of the others is said and left out: it must not cost the table.
    """
    (first, folder), *others = places.items()
    base = read(result_file(folder / kind, step))
    found = {first: base}
    for name, place in others:
        for file in sorted(place.glob("*/step-*.json"), key=lambda file: file.name):
            try:
                result = read(file)
            except ValueError as error:
                print(f"suite: {error}", file=sys.stderr)
                continue
            if result.compared == base.compared:
                found[name] = result
    return found


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="what the sets are in")
    parser.add_argument(
        "--out", type=Path, default=Path("suite"), metavar="FOLDER", help="of the table (default suite)"
    )
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="RUN", help="networks that were judged before"
    )
    parser.add_argument(
        "--far",
        type=float,
        nargs="+",
        default=[FAR, 1e-5],
        help="of templates (default 1e-4, which is shown, and 1e-5)",
    )
    add_step(parser)
    add_source(parser)
    parser.add_argument("--resamples", type=int, help="of the intervals (default: the stages' own)")
    add_embedding(parser)
    return parser


if __name__ == "__main__":
    exit_with(main)
