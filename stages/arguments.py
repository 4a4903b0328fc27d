"""Arguments that several stages share: the run, the checkpoint, how to embed."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pipeline.evaluation.embedding.trained import Step


def parser_of(description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows its texts as they are written, with the run's folder as first argument."""
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run")
    return parser


def add_step(parser: argparse.ArgumentParser, *, repeatable: bool = False) -> None:
    """``--step``: one checkpoint or, for stages that can compare them, several."""
    parser.add_argument(
        "--step",
        type=step_of,
        metavar="N",
        action="append" if repeatable else "store",
        help="checkpoint: a step, 'best' (RUN/best.json) or 'last' (default); 0 is before training"
        + ("; repeat for several" if repeatable else ""),
    )


def add_embedding(parser: argparse.ArgumentParser) -> None:
    """``--batch-size``, ``--threads`` and ``--device``: how faces become features."""
    parser.add_argument("--batch-size", type=int, default=64, help="images embedded together (default 64)")
    parser.add_argument("--threads", type=int, default=2, help="threads that decode images (default 2)")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device to embed on: cpu, cuda, cuda:1 (default here: %(default)s)",
    )


def add_bootstrap(parser: argparse.ArgumentParser, resamples: int = 1000) -> None:
    """``--resamples`` and ``--seed`` of the intervals."""
    parser.add_argument(
        "--resamples", type=int, default=resamples, help=f"resamples of the bootstrap over people (default {resamples})"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")


def step_of(text: str) -> Step:
    """A checkpoint from its option; None is the last."""
    if text == "last":
        return None
    if text == "best":
        return "best"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a step such as 0 or 2000, 'best' or 'last'")
    return int(text)
