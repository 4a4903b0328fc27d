"""Will a training run fit, how long will it take, and what does a lost host cost: before the cluster is rented.

Memory, traffic and work of one step per GPU, the largest number of identities that fits, and what to change when
the run does not fit. With the rates that stages/calibrate.py measured, the time of a step by part, images a second on
more and more ranks, and, for a recipe, hours to its end with saves and failures. The assumptions are printed with the
answer and stand in pipeline/planning/; nothing is trained and no GPU is needed.
Exit code: 0 when it fits, 1 when it does not, 2 when the options make no sense, 65 when a file is refused.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.stop import exit_with, faults_in_one_line
from pipeline import planning
from pipeline.backbones import BACKBONES
from pipeline.head.margins import MARGINS
from pipeline.optim import OPTIMIZERS
from pipeline.planning import FP32, GIB, Job, Network, Rates, report
from pipeline.planning.of_recipe import network_of, whole_job_of
from pipeline.planning.timing import Course, course, scaling, step_parts, step_seconds
from pipeline.reading.tars import ShardSet
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe, RecipeError
from pipeline.shards.format.manifest import ShardError

EXAMPLES = """\
examples:
  python stages/plan.py --identities 2059906 --ranks 32 --gpu-memory-gib 31.7 --backbone iresnet100 --global-batch 4096
  python stages/plan.py --identities 29000000 --ranks 8 --gpu-memory-gib 31.7 --backbone iresnet50 --global-batch 1024
  python stages/plan.py --recipe stages/recipes/demo.yaml --set data.shards=/data/shards --ranks 16 --rates rates.json
  python stages/plan.py --published-cases
"""

# What nvidia-smi shows of a "32 GB" V100 and an "11 GB" RTX 2080 Ti.
V100, RTX2080TI = 31.7, 10.7

# Title, identities, ranks, GiB a GPU, backbone, global batch.
CASES = (
    ("WebFace42M (arcface_torch: r100, 128 × 32)", 2_059_906, 32, V100, "iresnet100", 4096),
    ("arcface_torch without sampling, its largest", 5_500_000, 8, V100, "iresnet50", 1024),
    ("arcface_torch without sampling: runs out of memory", 8_000_000, 8, V100, "iresnet50", 1024),
    ("Partial FC, sampling 10%, 8 × V100", 29_000_000, 8, V100, "iresnet50", 1024),
    ("10 M identities on 64 GPUs (RTX 2080 Ti taken)", 10_000_000, 64, RTX2080TI, "iresnet50", 4096),
    ("Partial FC, sampling 10%, 64 × RTX 2080 Ti", 100_000_000, 64, RTX2080TI, "iresnet50", 4096),
)


# Options of a job without a recipe, which has them all: what they are if they are not given.
SHAPE = {
    "embedding_dim": 512,
    "global_batch": 512,
    "backbone": "sphereface20",
    "precision": "bfloat16",
    "accumulation": 1,
    "optimizer": OPTIMIZERS.default,
    "margin": MARGINS.default,
    "zero_stage": 0,
    "fused_update": False,
}


@dataclass(frozen=True)
class Question:
    """What is asked about: a step's shape on so many ranks, and its recipe and the rates, if they were given."""

    backbone: str
    image_size: tuple[int, int]
    job: Job
    network: Network
    gpu_bytes: int
    host_hours: float
    recipe: Recipe | None
    rates: Rates | None


@faults_in_one_line("plan")
def main() -> int:
    """Answer one question, or print the published cases."""
    args = _parser().parse_args()
    if args.published_cases:
        print("\n".join(_published_cases()))
        return 0
    if ignored := _ignored(args):
        print(f"plan: {ignored}", file=sys.stderr)
        return 2
    args = argparse.Namespace(**SHAPE | vars(args))
    rates = _with_network(planning.read_rates(args.rates), args) if args.rates else None
    try:
        question = _question(args, rates)
        answer = _as_json(question) if args.json else "\n".join(_report(question))
    except ValueError as error:
        if args.recipe and isinstance(error, RecipeError | ShardError):
            raise
        # the options'
        print(f"plan: {error}", file=sys.stderr)
        return 2
    print(answer)
    return 0 if planning.peak(question.job, question.network)[1] <= question.gpu_bytes else 1


def _ignored(args: argparse.Namespace) -> str:
    """What is wrong with options that would have no effect beside the others; empty if there is none."""
    given = [f"--{name.replace('_', '-')}" for name in SHAPE if hasattr(args, name)]
    if args.recipe and given:
        return f"{', '.join(given)}: got it with --recipe, which is planned as it is, wanted --set KEY=VALUE"
    if args.set and not args.recipe:
        return "--set: got it without --recipe, wanted both"
    if args.recipe and args.image_size and args.identities is None:
        return "--image-size: got it without --identities, wanted both: shards say how large their images are"
    if args.host_gbit is not None and not args.rates:
        return "--host-gbit: got it without --rates, wanted both: without rates there are no times"
    return ""


def _with_network(rates: Rates, args: argparse.Namespace) -> Rates:
    """The rates with what the options say of the network between hosts."""
    if args.host_gbit is None:
        return rates
    return replace(rates, host_bytes_per_second=args.host_gbit * 1e9 / 8, host_hop_seconds=args.host_ms / 1e3)


def _question(args: argparse.Namespace, rates: Rates | None) -> Question:
    recipe = load_recipe(args.recipe, args.set) if args.recipe else None
    if recipe is None:
        job, size = _job(args), _image_size(args, args.backbone)
        backbone = BACKBONES[args.backbone](name=args.backbone, embedding_dim=args.embedding_dim)
    else:
        job, size = _job_of_recipe(recipe, args)
        job = replace(job, ranks_per_host=args.ranks_per_host)
        backbone = recipe.backbone
    return Question(
        backbone.name,
        size,
        job,
        network_of(backbone, size, job.bf16),
        int(args.gpu_memory_gib * GIB),
        args.host_hours,
        recipe,
        rates,
    )


def _job(args: argparse.Namespace) -> Job:
    if args.identities is None:
        raise ValueError("--identities: missing, wanted the number of classes, or --recipe, or --published-cases")
    optimizer = OPTIMIZERS[args.optimizer]
    return Job(
        classes=args.identities,
        embedding_dim=args.embedding_dim,
        global_batch=args.global_batch,
        ranks=args.ranks,
        ranks_per_host=args.ranks_per_host,
        accumulation=args.accumulation,
        zero_stage=args.zero_stage,
        bf16=args.precision == "bfloat16",
        fused_update=args.fused_update,
        slots=optimizer.slots_per_number(),
        row_slots=optimizer.slots_per_row(),
        margin=MARGINS[args.margin](name=args.margin),
    )


def _job_of_recipe(recipe: Recipe, args: argparse.Namespace) -> tuple[Job, tuple[int, int]]:
    """The recipe's job and image size; classes and size are those of its shards, or of the options."""
    if args.identities is not None:
        return whole_job_of(recipe, args.identities, args.ranks), _image_size(args, recipe.backbone.name)
    try:
        manifest = ShardSet(recipe.data.shards).manifest
    except ShardError as error:
        raise ShardError(f"{error}; to plan without shards: --identities C --image-size H W") from None
    return whole_job_of(recipe, manifest.identities, args.ranks), (manifest.image_height, manifest.image_width)


def _image_size(args: argparse.Namespace, backbone: str) -> tuple[int, int]:
    """What the options say or, if they do not, what the authors of the network train on."""
    height, width = args.image_size or ((112, 96) if backbone.startswith("sphereface") else (112, 112))
    return height, width


def _report(question: Question) -> list[str]:
    job, network, rates = question.job, question.network, question.rates
    lines = [
        f"{question.backbone}, {job.classes:,} identities × {job.embedding_dim}, global batch {job.global_batch:,} "
        f"({job.micro_batch} images of {' × '.join(map(str, question.image_size))} a GPU at a time)",
        f"{job.ranks} GPUs of {question.gpu_bytes / GIB:.4g} GiB, {'bfloat16' if job.bf16 else 'float32'} products, "
        f"ZeRO {job.zero_stage}, row gradients {'applied block by block' if job.fused_update else 'held'}",
        "",
        *report.fitting(job, network, question.gpu_bytes),
    ]
    if rates is None:
        return lines
    lines += ["", *report.timing(job, network, rates, _doublings(question))]
    run = _course(question)
    if run is not None and question.recipe is not None:
        lines += [
            "",
            report.whole_run(
                run,
                steps=question.recipe.optimizer.steps,
                save_every=question.recipe.checkpoint.every,
                step_seconds=step_seconds(job, network, rates),
                hosts=job.hosts,
                host_hours=question.host_hours,
            ),
        ]
    return lines


def _doublings(question: Question) -> list[int]:
    """The ranks asked about, half as many, a quarter, … and up to eight times as many; one if the rates are of one."""
    ranks, rates = question.job.ranks, question.rates
    if rates is None or rates.link(question.job.hosts) is None:
        return [ranks]
    return sorted({max(1, ranks >> k) for k in range(4)} | {ranks << k for k in range(4)})


def _course(question: Question) -> Course | None:
    """The whole run, if there is a recipe that says how long it is."""
    recipe, rates = question.recipe, question.rates
    if recipe is None or rates is None:
        return None
    return course(
        question.job,
        question.network,
        rates,
        steps=recipe.optimizer.steps,
        save_every=recipe.checkpoint.every,
        host_hours=question.host_hours,
        noticed_seconds=recipe.faults.step_seconds,
    )


def _as_json(question: Question) -> str:
    job, network, rates, gpu_bytes = question.job, question.network, question.rates, question.gpu_bytes
    moment, peak = planning.peak(job, network)
    run = _course(question)
    answer = {
        "job": asdict(job) | {"margin": job.margin.model_dump(mode="json")},
        "network": asdict(network),
        # what cluster.preflight --plan reads
        "hosts": {
            "ranks": job.ranks,
            "gradient_bytes": FP32 * network.parameters,
            "embedding_bytes": FP32 * job.micro_batch * job.embedding_dim,
            "checkpoint_bytes": planning.checkpoint_bytes(job, network),
        },
        "gpu_bytes": gpu_bytes,
        "memory_bytes": planning.memory(job, network),
        "head_block": {"classes": planning.head_block(job), "bytes": planning.head_block_bytes(job)},
        "traffic_bytes": planning.traffic(job, network),
        "flops": planning.flops(job, network),
        "peak_moment": moment,
        "peak_bytes": peak,
        "fits": peak <= gpu_bytes,
        "largest_classes": planning.largest_classes(job, network, gpu_bytes),
        "changes": list(map(asdict, planning.changes(job, network, gpu_bytes))),
        "step_seconds": step_parts(job, network, rates) if rates else None,
        "scaling": scaling(job, network, rates, _doublings(question)) if rates else None,
        "run": asdict(run) | {"goodput": run.goodput} if run else None,
    }
    return json.dumps(answer, indent=1)


def _published_cases() -> list[str]:
    lines = [
        "Memory only: the full softmax (no sampling), embeddings of 512, images of 112 × 112, 16-bit products, ZeRO 0.",
        "Peak GiB of a GPU with the row gradient held, and with rows updated block by block (--fused-update).",
        "",
        "| published | identities | GPUs | gradient held | block by block | largest C, block by block |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for title, identities, ranks, gib, backbone, batch in CASES:
        network = network_of(BACKBONES[backbone](name=backbone), (112, 112), bf16=True)
        jobs = [Job(identities, 512, batch, ranks, fused_update=fused) for fused in (False, True)]
        peaks = [planning.peak(job, network)[1] / GIB for job in jobs]
        cells = " | ".join(f"{peak:.1f}{'' if peak <= gib else ' (too much)'}" for peak in peaks)
        largest = planning.largest_classes(jobs[1], network, int(gib * GIB))
        lines.append(f"| {title} | {identities:,} | {ranks} × {gib:g} GiB | {cells} | {largest:,} |")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipe = parser.add_argument_group("a recipe, planned as it is")
    recipe.add_argument("--recipe", type=Path, help="YAML file; see stages/recipes/")
    recipe.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key; repeatable")
    where = parser.add_argument_group("the cluster")
    where.add_argument("--ranks", type=int, default=8, metavar="N", help="GPUs in all (default %(default)s)")
    where.add_argument("--gpu-memory-gib", type=float, default=80.0, metavar="GIB", help="default %(default)s")
    where.add_argument("--rates", type=Path, metavar="FILE", help="what stages/calibrate.py measured: adds the times")
    where.add_argument("--ranks-per-host", type=int, default=8, metavar="N", help="default %(default)s")
    where.add_argument("--host-gbit", type=float, metavar="G", help="Gb/s between hosts, if the rates are of one host")
    where.add_argument("--host-ms", type=float, default=0.05, help="latency between hosts (assumed: %(default)s)")
    where.add_argument(
        "--host-hours", type=float, default=5000, help="mean time between failures of a host (assumed: %(default)s)"
    )
    shape = parser.add_argument_group("a job, without a recipe", argument_default=argparse.SUPPRESS)
    shape.add_argument(
        "--identities",
        type=int,
        default=None,
        metavar="C",
        help="classes (of a recipe: instead of its shards', as is --image-size)",
    )
    shape.add_argument("--embedding-dim", type=int, metavar="D", help=_or_default("", "embedding_dim"))
    shape.add_argument("--global-batch", type=int, metavar="G", help=_or_default("images a step", "global_batch"))
    shape.add_argument("--backbone", help=_or_default(f"one of {', '.join(BACKBONES)}", "backbone"))
    shape.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=None,
        metavar=("H", "W"),
        help="default 112 96 for sphereface…, else 112 112",
    )
    shape.add_argument("--precision", choices=["bfloat16", "float32"], help=_or_default("of the products", "precision"))
    shape.add_argument(
        "--accumulation", type=int, metavar="K", help=_or_default("micro-batches a step", "accumulation")
    )
    shape.add_argument("--optimizer", help=_or_default(f"one of {', '.join(OPTIMIZERS)}", "optimizer"))
    shape.add_argument("--margin", help=_or_default(f"one of {', '.join(MARGINS)}", "margin"))
    shape.add_argument(
        "--zero-stage", type=int, help=_or_default("DeepSpeed ZeRO of the backbone, 0 to 3", "zero_stage")
    )
    shape.add_argument("--fused-update", action="store_true", help="rows updated block by block, no row gradient held")
    parser.add_argument("--json", action="store_true", help="print the same numbers as JSON, in bytes and seconds")
    parser.add_argument("--published-cases", action="store_true", help="print published large runs as planned here")
    return parser


def _or_default(words: str, name: str) -> str:
    return f"{words} (default {SHAPE[name]})".strip()


if __name__ == "__main__":
    exit_with(main)
