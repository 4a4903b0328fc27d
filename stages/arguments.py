"""Arguments that several stages share: the source of features, how to embed, the bootstrap."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from cluster.ranks.process_group import device_of
from cluster.ranks.topology import Topology
from pipeline.evaluation.embedding.feeding import CHANNELS, Given
from pipeline.evaluation.embedding.kept import keep_share
from pipeline.evaluation.embedding.source import How, ImageList, Source
from pipeline.evaluation.embedding.trained import Step, load_trained
from pipeline.files import write_file
from pipeline.run.folder import RunFolder
from stages.shard_arguments import count_of

FORWARDED = (
    *("step", "onnx", "weights", "embeddings", "network", "size", "channels", "mean", "scale"),
    *("batch_size", "threads", "device"),
)


def parser_of(description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows its texts as they are written, with the run's folder as first argument."""
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="folder of a training run",
    )
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


def add_source(parser: argparse.ArgumentParser) -> None:
    """Options for a network that is not of a run."""
    group = parser.add_argument_group(
        "another network",
        "instead of a run's; RUN is then the folder of its results. Its input is known from flags, metadata or FILE's "
        ".json beside it",
    )
    kind = group.add_mutually_exclusive_group()
    kind.add_argument("--onnx", type=Path, metavar="FILE", help="an ONNX model of faces")
    kind.add_argument("--weights", type=Path, metavar="FILE", help=".pth or .safetensors of --network")
    kind.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="embeddings made elsewhere: Parquet (path, embedding) or .npz (paths, embeddings)",
    )
    group.add_argument("--network", metavar="NAME", help="backbone of --weights: iresnet50, sphereface20, ...")
    add_input(group)


def add_input(group: argparse._ActionsContainer) -> None:
    """How a network that is not of a run takes its pixels."""
    group.add_argument("--size", type=size_of, metavar="HxW", help="of its input, such as 112x112")
    group.add_argument("--channels", choices=CHANNELS, help="their order in its input (default RGB)")
    group.add_argument("--mean", type=float, nargs="+", metavar="X", help="subtracted from pixels of 0 to 255")
    group.add_argument("--scale", type=float, nargs="+", metavar="X", help="that multiplies what is left")


def add_embedding(parser: argparse.ArgumentParser) -> None:
    """``--batch-size``, ``--threads`` and ``--device``: how faces become features."""
    parser.add_argument("--batch-size", type=count_of, default=64, help="images embedded together (default 64)")
    parser.add_argument("--threads", type=count_of, default=2, help="threads that decode images (default 2)")
    parser.add_argument(
        "--device",
        type=device_of_text,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device to embed on: cpu, cuda, cuda:1 (default here: %(default)s; of several ranks each takes its own)",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it


def add_bootstrap(parser: argparse.ArgumentParser, resamples: int = 1000) -> None:
    """``--resamples`` and ``--seed`` of the intervals."""
    parser.add_argument(
        "--resamples",
        type=count_of,
        default=resamples,
        help=f"resamples of the bootstrap over people (default {resamples})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")


def sources_of(args: argparse.Namespace, *, results: bool = True) -> Iterator[Source]:
    """The sources of features that the arguments name, each loaded when its turn comes.

    With `results`, the run's folder takes them, and one that holds those of another network is refused. Raises
    ValueError naming what is missing or does not fit.
    """
    other = other_source(args)
    if other is not None:
        if results:
            _register(args, other)
        yield other
        return
    steps = args.step if isinstance(args.step, list) else [args.step]
    for step in steps:
        yield load_trained(args.run, step).source


def other_source(args: argparse.Namespace) -> Source | None:
    """The network that is not of a run; None if the arguments name none. Raises ValueError as `sources_of`."""
    given = given_of(args)
    file = file_of(args)
    if (args.network is None) != (args.weights is None):
        raise ValueError("--weights and --network: got one without the other, wanted both")
    if given != Given() and file in (None, args.embeddings):
        got = "embeddings, which need none" if file else "a run, which has its own"
        raise ValueError(f"--size, --channels, --mean, --scale: got {got}, wanted --onnx or --weights")
    if file and args.step is not None:
        raise ValueError(f"--step: got it with {file}, wanted a run: other networks have no checkpoints")
    if args.onnx is not None:
        from pipeline.evaluation.embedding.onnx import load_onnx  # here, since the extra may be missing

        return load_onnx(args.onnx, given, how_of(args).device)
    if args.weights is not None:
        from pipeline.evaluation.embedding.weights import load_weights

        return load_weights(args.weights, args.network, given)
    if args.embeddings is not None:
        from pipeline.evaluation.embedding.table import load_table

        return load_table(args.embeddings)
    return None


def file_of(args: argparse.Namespace) -> Path | None:
    """The file of a network that is not of a run; None if the arguments name none."""
    return args.onnx or args.weights or args.embeddings


def given_of(args: argparse.Namespace) -> Given:
    """What the arguments of `add_input` say of a network's pixels."""
    return Given(
        args.size,
        args.channels,
        None if args.mean is None else tuple(args.mean),
        None if args.scale is None else tuple(args.scale),
    )


def how_of(args: argparse.Namespace) -> How:
    """How images become features: of several ranks, started by a launcher, each embeds on a device of its own."""
    topology = Topology.from_environment(os.environ)
    device = device_of(topology) if topology.num_ranks > 1 else torch.device(args.device)
    return How(args.batch_size, args.threads, device, topology.rank, topology.num_ranks)


def embed_share(args: argparse.Namespace, source: Source, lists: Iterable[ImageList]) -> None:
    """What a rank other than the first does: its share of the features, for the first to judge."""
    for images in lists:
        keep_share(RunFolder(args.run).embeddings, source, images, how_of(args))


def options_of(args: argparse.Namespace) -> list[object]:
    """The options of `add_step`, `add_source` and `add_embedding` as given, for a stage that starts another."""
    options: list[object] = []
    for name in FORWARDED:
        value = getattr(args, name)
        if name == "size" and value is not None:
            value = f"{value[0]}x{value[1]}"
        if value is not None:
            options += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    return options


def step_of(text: str) -> Step:
    """A checkpoint from its option; None is the last."""
    if text == "last":
        return None
    if text == "best":
        return "best"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a step such as 0 or 2000, 'best' or 'last'")
    return int(text)


def size_of(text: str) -> tuple[int, int]:
    """Height and width from "112x96"."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted height and width such as 112x96")
    return int(height), int(width)


def device_of_text(text: str) -> torch.device:
    """A device that is there."""
    wanted = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if f"{device.type}:{device.index or 0}".replace("cpu:0", "cpu") not in wanted:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted one of {', '.join(wanted)}")
    return device


def size_in_words(size: int) -> str:
    """A file's bytes for people: 50.3 MB, 1.2 kB."""
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"


def name_of(text: str) -> str:
    """A name that can be a folder's."""
    if not text or "/" in text or text in {".", ".."} or "\0" in text:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a name without a slash: it names a folder")
    return text


def _register(args: argparse.Namespace, source: Source) -> None:
    """Note the network in the folder of its results: one folder holds the results of one network."""
    file = file_of(args)
    assert file is not None, "only networks of a file are registered"
    if RunFolder(args.run).recipe.exists():
        raise ValueError(f"{args.run}: got the folder of a training run, wanted another for the results of {file}")
    record = RunFolder(args.run).network
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        if before.get("digest") != source.digest:
            raise ValueError(
                f"{args.run}: got results of {before.get('file')}, or of another input, wanted a new folder for {file}"
            )
    facts = {"name": source.name, "file": str(file.resolve()), "digest": source.digest}
    args.run.mkdir(parents=True, exist_ok=True)
    write_file(record, (json.dumps(facts, indent=2) + "\n").encode())
