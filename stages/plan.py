"""Will a training run fit, and what will it send and compute: before the cluster is rented.

Memory, traffic and work of one step per GPU, the largest number of identities that fits, and what to change when
the run does not fit. The assumptions stand in cluster/planner/; nothing is trained and no GPU is needed.
Exit code: 0 when it fits, 1 when it does not, 2 when the question makes no sense.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import cache

import torch

from cluster import planner
from cluster.planner import GIB, Job, Network
from cluster.stop import exit_with
from pipeline.backbones import BACKBONES, build_backbone
from pipeline.backbones.size import activation_bytes, count_macs
from pipeline.head.streaming import BLOCK

EXAMPLES = """\
examples:
  python stages/plan.py --identities 2059906 --ranks 32 --gpu-memory-gib 31.7 --backbone iresnet100 --global-batch 4096
  python stages/plan.py --identities 29000000 --ranks 8 --gpu-memory-gib 31.7 --backbone iresnet50 --global-batch 1024
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


def main() -> int:
    """Answer one question, or print the published cases."""
    args = _parser().parse_args()
    if args.published_cases:
        print("\n".join(_published_cases()))
        return 0
    try:
        job, network = _question(args)
    except ValueError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    gpu_bytes = int(args.gpu_memory_gib * GIB)
    print(
        _as_json(job, network, gpu_bytes) if args.json else "\n".join(_report(args.backbone, job, network, gpu_bytes))
    )
    return 0 if planner.peak(job, network)[1] <= gpu_bytes else 1


def _question(args: argparse.Namespace) -> tuple[Job, Network]:
    if args.identities is None:
        raise ValueError("--identities: missing, wanted the number of classes, or --published-cases")
    bf16 = args.precision == "bfloat16"
    job = Job(
        classes=args.identities,
        embedding_dim=args.embedding_dim,
        global_batch=args.global_batch,
        ranks=args.ranks,
        block=BLOCK,
        accumulation=args.accumulation,
        zero_stage=args.zero_stage,
        bf16=bf16,
        fused_update=args.fused_update,
    )
    return job, describe(args.backbone, args.embedding_dim, tuple(args.image_size), bf16)


@cache
def describe(backbone: str, embedding_dim: int, image_size: tuple[int, int], bf16: bool) -> Network:
    """A backbone's numbers, from its shapes alone.

    Raises:
        ValueError: for an unknown backbone or an impossible image size.
    """
    with torch.device("meta"):
        module = build_backbone(backbone, embedding_dim, image_size)
    return Network(
        parameters=sum(p.numel() for p in module.parameters()),
        activation_bytes=activation_bytes(module, image_size, torch.bfloat16 if bf16 else torch.float32),
        macs=count_macs(module, image_size),
        largest_parameter=max(p.numel() for p in module.parameters()),
    )


def _report(backbone: str, job: Job, network: Network, gpu_bytes: int) -> list[str]:
    return [
        f"{backbone}, {job.classes:,} identities × {job.embedding_dim}, global batch {job.global_batch:,} "
        f"({job.micro_batch} images a GPU at a time)",
        f"{job.ranks} GPUs of {gpu_bytes / GIB:.4g} GiB, {'bfloat16' if job.bf16 else 'float32'} products, "
        f"ZeRO {job.zero_stage}, row gradients {'applied block by block' if job.fused_update else 'held'}",
        "",
        *_memory_table(planner.memory(job, network)),
        "",
        *_table("sent by a GPU in a step, MiB", planner.traffic(job, network), 2**20),
        "",
        *_table("work of a GPU in a step, TFLOP", planner.flops(job, network), 10**12),
        "",
        *_verdict(job, network, gpu_bytes),
    ]


def _memory_table(moments: dict[str, dict[str, int]]) -> list[str]:
    parts = dict.fromkeys(part for alive in moments.values() for part in alive)
    sizes = {part: [alive.get(part, 0) / GIB for alive in moments.values()] for part in parts}
    sizes["total"] = [sum(alive.values()) / GIB for alive in moments.values()]
    return [
        f"{'memory of a GPU, GiB':<28}" + "".join(f"{moment:>10}" for moment in moments),
        *(f"{part:<28}" + "".join(f"{s:>10.2f}" if s else f"{'-':>10}" for s in row) for part, row in sizes.items()),
    ]


def _table(title: str, sizes: dict[str, int], unit: int) -> list[str]:
    return [title, *(f"{name:<40}{size / unit:>10,.2f}" for name, size in sizes.items())]


def _verdict(job: Job, network: Network, gpu_bytes: int) -> list[str]:
    moment, peak = planner.peak(job, network)
    fits = peak <= gpu_bytes
    lines = [
        f"{'fits' if fits else 'DOES NOT FIT'}: {peak / GIB:.2f} of {gpu_bytes / GIB:.4g} GiB, fullest at {moment}",
        f"largest number of identities, all else the same: {planner.largest_classes(job, network, gpu_bytes):,}",
    ]
    if fits:
        return lines
    changes = planner.changes(job, network, gpu_bytes)
    if not any(change.fits for change in changes):
        lines.append("no single change is enough: combine some, or take a larger GPU or a smaller backbone")
    return lines + [f"  {c.what}: {c.peak_bytes / GIB:.2f} GiB{', fits' if c.fits else ''}" for c in changes]


def _as_json(job: Job, network: Network, gpu_bytes: int) -> str:
    moment, peak = planner.peak(job, network)
    answer = {
        "job": asdict(job),
        "network": asdict(network),
        "gpu_bytes": gpu_bytes,
        "memory_bytes": planner.memory(job, network),
        "traffic_bytes": planner.traffic(job, network),
        "flops": planner.flops(job, network),
        "peak_moment": moment,
        "peak_bytes": peak,
        "fits": peak <= gpu_bytes,
        "largest_classes": planner.largest_classes(job, network, gpu_bytes),
        "changes": [asdict(change) for change in planner.changes(job, network, gpu_bytes)],
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
        network = describe(backbone, 512, (112, 112), bf16=True)
        jobs = [Job(identities, 512, batch, ranks, BLOCK, fused_update=fused) for fused in (False, True)]
        peaks = [planner.peak(job, network)[1] / GIB for job in jobs]
        cells = " | ".join(f"{peak:.1f}{'' if peak <= gib else ' (too much)'}" for peak in peaks)
        largest = planner.largest_classes(jobs[1], network, int(gib * GIB))
        lines.append(f"| {title} | {identities:,} | {ranks} × {gib:g} GiB | {cells} | {largest:,} |")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--identities", type=int, metavar="C", help="classes of the training set")
    parser.add_argument("--embedding-dim", type=int, default=512, metavar="D", help="default %(default)s")
    parser.add_argument(
        "--global-batch", type=int, default=512, metavar="G", help="images a step (default %(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=8, metavar="N", help="GPUs in all (default %(default)s)")
    parser.add_argument("--gpu-memory-gib", type=float, default=80.0, metavar="GIB", help="default %(default)s")
    parser.add_argument("--backbone", default="sphereface20", help=f"one of {', '.join(BACKBONES)}")
    parser.add_argument("--image-size", type=int, nargs=2, default=[112, 96], metavar=("H", "W"), help="default 112 96")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16", help="of the products")
    parser.add_argument("--accumulation", type=int, default=1, metavar="K", help="micro-batches a step (default 1)")
    parser.add_argument("--zero-stage", type=int, default=0, help="DeepSpeed ZeRO of the backbone: 0 to 3")
    parser.add_argument("--fused-update", action="store_true", help="rows updated block by block, no row gradient held")
    parser.add_argument("--json", action="store_true", help="print the same numbers as JSON, in bytes")
    parser.add_argument("--published-cases", action="store_true", help="print published large runs as planned here")
    return parser


if __name__ == "__main__":
    exit_with(main)
