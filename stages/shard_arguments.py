"""Arguments that the commands about images share: what a source is, and which part of the work to do."""

import argparse
from pathlib import Path

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.sources import Source
from pipeline.shards.sources.columns import Columns
from pipeline.shards.sources.detect import Options, open_source
from pipeline.shards.sources.splits import Choice
from pipeline.shards.stores.urls import is_url


def add_source(parser: argparse.ArgumentParser) -> None:
    """``--split`` and what the image and the label of a sample are called."""
    parser.add_argument("--split", action="append", help="of a source with several, such as train; repeat for more")
    parser.add_argument(
        "--image-column", default="image", help="of Parquet and tables; of tars, an extension (image, or a usual name)"
    )
    parser.add_argument(
        "--label-column",
        default="label",
        help="of Parquet and tables; of tars, an extension, a field of JSON, folder or tar (label, or a usual name)",
    )


def open_named(args: argparse.Namespace, copies: Path) -> Source:
    """The source that `args.src` names.

    Raises:
        ShardError: it is none, or holds no usable image.
    """
    columns = Columns(args.image_column, args.label_column)
    options = Options(columns, Choice(splits=tuple(args.split or ())), args.workers)
    return open_source(args.src, copies=copies, options=options)


def refuse_inside(out: Path, src: str | Path) -> None:
    """Make sure that what is written does not become part of what is read.

    Raises:
        ShardError: `out` lies inside `src`.
    """
    if not is_url(src) and out.resolve().is_relative_to(Path(src).resolve()):
        raise ShardError(f"{out}: lies inside {src}, wanted a folder outside it")


def add_part(parser: argparse.ArgumentParser, text: str) -> None:
    """``--part I/N``."""
    parser.add_argument("--part", type=_part, metavar="I/N", default=(0, 1), help=text)


def count_of(text: str) -> int:
    """A number of things, of which there is one at least."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a whole number of at least 1")
    return int(text)


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted I/N with I from 0 to N - 1")
    return int(number), int(parts)
