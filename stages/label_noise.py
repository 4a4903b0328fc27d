"""What a run's head makes doubtful in its training set: a page, and lists that `stages/shard.py` takes.

  python stages/label_noise.py RUN

Samples far from their identity are in RUN/suspects.tsv if the run was trained with log.suspect_degrees:
`shard.py clean SET OUT --suspects RUN/suspects.tsv` leaves them out. Identities whose rows point the same way may be
one person under two names: RUN/label_noise/merged.tsv has the pairs, and drop.txt the one of each with fewer images,
for `shard.py subset SET OUT --drop`. Look at RUN/label_noise/label_noise.html before either.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
from pathlib import Path

import numpy as np
import torch

from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.reports.noise_page import Pictures, write_page
from pipeline.files import make_folder, write_file
from pipeline.head.nearest import nearest_rows, pairs_above
from pipeline.reading.tars import ShardSet
from pipeline.recipe.file import load_recipe
from pipeline.run.angles import read_suspects
from pipeline.run.checkpoint import complete_steps, read_rows
from pipeline.run.folder import RunFolder
from stages.arguments import device_of_text
from stages.shard_arguments import count_of


@faults_in_one_line("label_noise")
def main() -> int:
    """Compare the rows, write lists and page; a fault is one line (65, or 74 for the disk)."""
    args = _parse()
    folder = RunFolder(args.run)
    steps = complete_steps(args.run)
    if not steps:
        raise ValueError(f"{folder.checkpoints}: got no checkpoint, wanted a run that has saved")
    shards = ShardSet(args.shards or load_recipe(folder.recipe).data.shards)
    names = folder.identities.read_text().splitlines()
    if len(names) != shards.manifest.identities:
        raise ValueError(
            f"{shards.folder}: got {shards.manifest.identities:,} identities, wanted the run's {len(names):,}"
        )
    images = np.bincount(shards.labels(np.arange(shards.manifest.samples)), minlength=len(names))

    def read(classes: range) -> torch.Tensor:
        return torch.cat([rows for _, rows in read_rows(folder.checkpoint(steps[-1]), classes)]).to(args.device)

    pairs = pairs_above(*nearest_rows(read, len(names)), args.above)
    listed = folder.suspects.is_file()
    suspects = read_suspects(folder.suspects, shards.manifest.digest) if listed else []
    count = f"{len(suspects):,}" if listed else "no list yet: log.suspect_degrees makes one after each epoch"
    out = args.run / "label_noise"
    make_folder(out)
    lines = [f"{names[a]}\t{names[b]}\t{cosine:.4f}\t{images[a]}\t{images[b]}\n" for a, b, cosine in pairs]
    write_file(out / "merged.tsv", "".join(["identity\tother\tcosine\timages\tother_images\n", *lines]).encode())
    fewer = sorted({names[a if images[a] < images[b] else b] for a, b, _ in pairs})
    write_file(out / "drop.txt", "".join(f"{name}\n" for name in fewer).encode())
    pictures = Pictures(shards, names, [sample for sample, _ in suspects])
    facts = {
        "suspects:": count,
        "pairs:": f"{len(pairs):,} above {args.above}",
        "run:": f"{args.run.resolve().name}, step {steps[-1]}",
    }
    write_page(
        out / "label_noise.html",
        [pictures.of_sample(*suspect) for suspect in suspects[: args.most]],
        [pictures.of_pair(*pair) for pair in pairs[: args.most]],
        facts,
    )
    print(f"{out / 'label_noise.html'}: {len(pairs):,} pairs of identities; suspects: {count}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--shards", type=Path, metavar="SET", help="its training set (that of its recipe)")
    parser.add_argument("--above", type=float, default=0.5, help="cosine of two rows from which they are a pair (0.5)")
    parser.add_argument("--most", type=count_of, default=200, help="of either kind on the page (200)")
    parser.add_argument("--device", type=device_of_text, default="cpu", help="where rows are compared (cpu)")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
