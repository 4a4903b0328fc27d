"""A recipe from a config of InsightFace's arcface_torch, which is read, not run.

  python stages/convert_recipe.py configs/ms1mv3_r50.py ms1mv3.yaml --ranks 8 --shards /data/ms1mv3

The recipe begins with what to know when moving: how its data becomes shards, what is trained otherwise here, and which
keys are not needed. A key that is unknown or has no counterpart is refused; all reasons are printed at once.
docs/moving.md compares the two concept by concept.
"""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
from pathlib import Path

import yaml

from cluster.stop import exit_with, faults_in_one_line
from pipeline.files import write_file
from pipeline.recipe.arcface_config import read_config
from pipeline.recipe.from_arcface_torch import Converted, convert
from pipeline.recipe.schema import RecipeError


@faults_in_one_line("convert_recipe", (RecipeError, OSError))
def main() -> int:
    """Read, convert, write; a fault is one line (65, or 74 for the disk)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG.py", help="its base.py is read from beside it")
    parser.add_argument("out", type=Path, metavar="RECIPE.yaml", help="what is written")
    parser.add_argument("--ranks", type=int, default=8, help="GPUs that the config is for (default %(default)s)")
    parser.add_argument("--shards", type=Path, required=True, help="where its data, as shards, is or will be")
    parser.add_argument(
        "--power", type=float, default=1.0, help="of the learning rate's fall (default 1; arcface_torch before 2022: 2)"
    )
    args = parser.parse_args()
    if args.ranks < 1:
        parser.error(f"--ranks: got {args.ranks}, wanted at least 1")
    converted = convert(read_config(args.config), args.ranks, args.shards, power=args.power)
    write_file(args.out, _text(args, converted).encode())
    print(f"{args.out}: {converted.recipe.optimizer.steps:,} steps of {converted.recipe.data.global_batch:,} images")
    for note in converted.notes:
        print(f"  {note}")
    return 0


def _text(args: argparse.Namespace, converted: Converted) -> str:
    """The recipe, without what is at its default, below its notes."""
    head = [f"From {args.config.name} of arcface_torch, for {args.ranks} GPUs.", *converted.notes]
    keys = converted.recipe.model_dump(mode="json", exclude_defaults=True)
    return "".join(f"# {line}\n" for line in head) + yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    exit_with(main)
