"""What the planner cannot know of a machine, measured: a few steps of the run itself, then its parts alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import torch

from cluster.ranks.collective_rates import RingRates, bytes_per_work_second, ring_rates
from cluster.ranks.collectives import barrier, gather_objects
from cluster.ranks.process_group import grid
from cluster.stopwatch import STARTUP, STEP
from pipeline.head import ShardedHead
from pipeline.planning.job import FP32, Job, Network
from pipeline.planning.memory import head_block, network_state_bytes
from pipeline.planning.rates import Rates
from pipeline.planning.timing import step_seconds
from pipeline.run.checkpoint import CheckpointError
from pipeline.training.loop import Trainer
from pipeline.training.record import Record

# Blocks of classes that the head is measured on: the time of few is mostly that of a call, of many that of products.
_FEW, _MANY = 1, 12


def calibrate(trainer: Trainer, job: Job, network: Network, steps: int, say: Callable[[str], None]) -> Rates:
    """Rates of this rank, of the slowest rank if that is what a step waits for; all ranks together.

    Args:
        trainer: of the recipe, in a folder of its own: it is trained on and saved.
        job, network: what the planner takes it for.
        steps: that are measured, after a few that are not.
        say: is called with a line on what is being measured.

    Raises:
        CheckpointError: when the folder cannot be written.
    """
    say("reading and decoding")
    decode = _decode_rate(trainer, steps)
    say(f"{steps} steps of training")
    records = _steps(trainer, steps)
    start_seconds = sum(STARTUP.parts.values())
    say("the network alone, on all images and on half of them")
    network_rate, network_call = _network_rates(trainer, job, network)
    say("the head alone, on few and on many classes")
    head_rate, head_call = _head_rates(trainer, job)
    say("exchanges between ranks")
    within, between = _ring_rates(trainer)
    whole = between or within
    per_work = None
    if whole and not job.zero_stage:
        images_BCHW = _images(trainer, job.micro_batch)
        per_work = bytes_per_work_second(lambda: trainer.engine.pass_alone(images_BCHW), whole, trainer.device)
    say("saving")
    copy_rate, write_rate = _save_rates(trainer, job, network)

    update = statistics.median(record.parts["update"] for record in records)
    rows = 0 if job.fused_update else job.rows * job.embedding_dim
    own = network.parameters // (job.ranks if job.zero_stage else 1)
    rates = Rates(
        ranks=job.ranks,
        network_flops_per_second=network_rate,
        network_call_seconds=network_call,
        head_flops_per_second=head_rate,
        head_call_seconds=head_call,
        update_bytes_per_second=FP32 * (own + rows) / update,
        decode_images_per_second=decode,
        other_seconds=0.0,
        collective_bytes_per_second=within.bytes_per_second if within else None,
        hop_seconds=within.hop_seconds if within else None,
        host_bytes_per_second=between.bytes_per_second if between else None,
        host_hop_seconds=between.hop_seconds if between else None,
        exchange_bytes_per_work_second=per_work,
        copy_bytes_per_second=copy_rate,
        write_bytes_per_second=write_rate,
        start_seconds=start_seconds,
    )
    step = statistics.median(record.seconds - record.parts.get("data_wait", 0) for record in records)
    rest = max(0.0, step - step_seconds(job, network, rates))
    return _slowest(gather_objects(replace(rates, other_seconds=rest), trainer.group))


def _slowest(of_ranks: list[Rates]) -> Rates:
    """Of every rank's rates the lowest, of its times the highest: ranks wait for each other."""
    every = [vars(rates) for rates in of_ranks]

    def worst(name: str) -> float | None:
        values = [rates[name] for rates in every]
        if None in values:
            return None
        return max(values) if name.endswith("_seconds") else min(values)

    return Rates(**{name: worst(name) for name in every[0]})  # type: ignore[arg-type]


def _ring_rates(trainer: Trainer) -> tuple[RingRates | None, RingRates | None]:
    """Of the ranks of a host, if it has several, and of all ranks, if there are several hosts."""
    topology = trainer.topology
    if topology.ranks_of_node == topology.num_ranks:
        return (ring_rates(trainer.device) if topology.num_ranks > 1 else None), None
    if topology.num_ranks % topology.ranks_of_node:  # hosts that differ: only the whole is measured
        return None, ring_rates(trainer.device)
    beside, _ = grid(topology.num_ranks, topology.ranks_of_node, trainer.recipe.timeout_seconds)
    within = ring_rates(trainer.device, beside) if topology.ranks_of_node > 1 else None
    return within, ring_rates(trainer.device)


def _decode_rate(trainer: Trainer, batches: int) -> float:
    reader = trainer.reader()
    try:
        for _ in islice(reader, 3):  # what was decoded before the clock started
            pass
        barrier(trainer.group)
        began = time.perf_counter()
        images = sum(len(batch.labels_B) for batch in islice(reader, 2 * batches))
        return images / (time.perf_counter() - began)
    finally:
        reader.close()


def _steps(trainer: Trainer, steps: int) -> list[Record]:
    """Records of as many steps, once the first are done that allocate and compile."""
    records = trainer.train()
    warm = [next(records)]
    STARTUP.done("first step")
    warm += list(islice(records, 2))
    measured = list(islice(records, steps))
    records.close()  # type: ignore[attr-defined]  # it is a generator, whose reader this ends
    return measured


def _network_rates(trainer: Trainer, job: Job, network: Network) -> tuple[float, float]:
    """FLOPs a second of forward and backward pass, and seconds of a pass besides them."""
    whole, half = job.micro_batch, max(1, job.micro_batch // 2)
    times = {images: _network_seconds(trainer, job, images) for images in (whole, half)}
    an_image = max((times[whole] - times[half]) / (whole - half), 1e-9) if whole > half else times[whole] / whole
    return 6 * network.macs / an_image, max(0.0, times[whole] - whole * an_image)


def _network_seconds(trainer: Trainer, job: Job, images: int) -> float:
    """Of one forward and backward pass of so many images a rank, without its collectives; nothing is updated."""
    engine, images_BCHW = trainer.engine, _images(trainer, images)
    grad_BD = torch.full((images, job.embedding_dim), 1e-6, device=trainer.device)
    dropped = torch.ones((), device=trainer.device)

    def work() -> None:
        engine.keep_buffers()
        for _ in range(job.accumulation):
            with STEP.part("network"):
                embeddings_BD = engine.embed(images_BCHW)
                engine.backward(embeddings_BD, grad_BD.to(embeddings_BD.dtype))
            engine.step(0.0, dropped)
        engine.restore_buffers()

    def work_alone() -> None:
        with STEP.part("network"):
            engine.pass_alone(images_BCHW)

    if not job.zero_stage:  # whose exchange would be at work under the backward pass
        return _median_seconds(trainer, "network", work_alone)
    return _median_seconds(trainer, "network", work) / job.accumulation


def _images(trainer: Trainer, number: int) -> torch.Tensor:
    manifest = trainer.shards.manifest
    return torch.randn(number, 3, manifest.image_height, manifest.image_width, device=trainer.device)


def _head_rates(trainer: Trainer, job: Job) -> tuple[float, float]:
    """FLOPs a second of the head's products, and seconds of a call besides them."""
    block = head_block(replace(job, device=trainer.device.type))
    blocks = block * job.ranks
    times = {number: _head_seconds(trainer, job, number * blocks) for number in (_FEW, _MANY)}
    product = 4 * 2 * job.head_batch * block * job.embedding_dim
    a_block = max((times[_MANY] - times[_FEW]) / (_MANY - _FEW), 1e-9)
    return product / a_block, max(0.0, times[_FEW] - _FEW * a_block)


def _head_seconds(trainer: Trainer, job: Job, classes: int) -> float:
    """Of one call of a head of so many classes, forward and backward, without its collectives."""
    head = ShardedHead(
        classes,
        job.embedding_dim,
        trainer.head.margin,
        trainer.head.group,
        optimizer=trainer.recipe.optimizer,
        options=trainer.head.options,
        device=trainer.device,
    )
    x_BD = torch.randn(job.micro_batch, job.embedding_dim, device=trainer.device, requires_grad=True)
    labels_B = torch.randint(classes, (job.micro_batch,), device=trainer.device)

    def work() -> None:
        with STEP.part("head"):
            head(x_BD, labels_B, 5.0, learning_rate=1e-3).loss.backward()
        head.drop()

    return _median_seconds(trainer, "head", work)


def _median_seconds(trainer: Trainer, part: str, work: Callable[[], None]) -> float:
    """Seconds that `work` spends in a part, begun by all ranks together, after two times that are not counted."""
    times = []
    for _ in range(7):
        barrier(trainer.group)
        STEP.take()
        work()
        times.append(STEP.take()[part])
    return statistics.median(times[2:])


def _save_rates(trainer: Trainer, job: Job, network: Network) -> tuple[float, float]:
    """Bytes a second that this rank copies out, and that all ranks write, in a second save: the first allocates."""
    trainer.saves.save(trainer.step)
    stall, saved = trainer.saves.begin(trainer.step), trainer.saves.saver.finish()
    assert saved is not None
    if saved.error:
        raise CheckpointError(f"{trainer.run}: {saved.error}")
    # rows and backbone with their slots. Only rank 0 copies the backbone: its rate, the lowest, is the one that counts.
    rows = trainer.head.weight_SD.nbytes + sum(slot.nbytes for slot in trainer.head.slots.values())
    copied = rows + network_state_bytes(job, network)
    return copied / stall, saved.bytes / saved.seconds
