"""A run's network with a model card, to a folder and, if a URL is given, to the Hugging Face Hub or another store.

  python stages/publish.py runs/casia20
  python stages/publish.py runs/casia20 hf://team/casia20 --license other
  python stages/publish.py runs/casia20 s3://models/casia20 --step best

Without a URL, look at RUN/published first. The folder has README.md (the card: how to feed it, what it was trained on,
its rates with intervals), backbone.onnx, .safetensors and .json, and recipe.yaml. Needs the export extra, for the Hub
also hub; who pushes is whom HF_TOKEN or `hf auth login` says. A new repository is private unless --public.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import shutil
from pathlib import Path

from cluster.stop import exit_with, faults_in_one_line
from cluster.versions import how_to_install
from pipeline.evaluation.embedding.trained import load_trained
from pipeline.export.card import with_hub_head
from pipeline.export.push import check_url, push
from pipeline.files import write_file
from pipeline.run.folder import RunFolder
from stages.arguments import add_step, size_in_words


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, ours or imported")
    parser.add_argument("url", nargs="?", metavar="URL", help="hf://owner/name, s3://…, gs://…, file:///…")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go (default RUN/published)")
    parser.add_argument("--license", default="other", metavar="ID", help="in the card (default other)")
    parser.add_argument("--report", action="store_true", help="with RUN/report.html, which shows faces of its errors")
    parser.add_argument("--public", action="store_true", help="a new repository of the Hub is public")
    add_step(parser)
    return parser.parse_args()


@faults_in_one_line("publish")
def main() -> int:
    """Export, describe, push; a fault is one line (65, or 74 for the disk)."""
    args = parse()
    if args.url is not None:
        check_url(args.url)
    try:
        from pipeline.export.description import Form  # here, since the extra may be missing
        from pipeline.export.package import export
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}, wanted: {how_to_install('export')}") from error
    trained = load_trained(args.run, args.step)
    folder, name = args.out or args.run / "published", args.run.resolve().name
    *files, card = export(trained, folder, args.run, Form())
    readme = folder / "README.md"
    write_file(readme, with_hub_head(card.read_text(), trained.name, args.license).encode())
    card.unlink()
    files.append(readme)
    run = RunFolder(args.run)
    for beside in [run.recipe, run.report] if args.report else [run.recipe]:
        files.append(Path(shutil.copyfile(beside, folder / beside.name)))
    for file in files:
        print(f"{file}: {size_in_words(file.stat().st_size)}")
    if args.url is not None:
        message = f"{name}: {trained.name} after {trained.step:,} steps"
        print(push(files, args.url, message=message, public=args.public))
    return 0


if __name__ == "__main__":
    exit_with(main)
