"""The training loop: one step after another, each agreed across ranks before anything is changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.collectives import Group, average_over_ranks_, max_over_ranks, num_ranks
from cluster.process_group import grid
from cluster.stopwatch import STEP
from cluster.topology import Topology
from pipeline.backbones import build_backbone
from pipeline.config import Recipe, check_against_set
from pipeline.head.head import HeadOptions, HeadOutput, ShardedHead
from pipeline.head.margins import anneal
from pipeline.reading.dali import Decoder
from pipeline.reading.order import Order
from pipeline.reading.reader import Batch, Reader
from pipeline.reading.tars import ShardSet
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Meta, State
from pipeline.training.engine import Engine
from pipeline.training.errors import NonFiniteError
from pipeline.training.schedule import learning_rate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What one step was, for whoever watches.

    Attributes:
        step: steps done, this one included.
        epoch: passes over the set, with the fraction of the current one.
        loss: mean over the global batch, the same on every rank.
        anneal: λ.
        learning_rate: the base rate.
        own_cosine: mean cos θ to the own class over the global batch.
        norm: mean ‖x‖.
        samples: in the global batch, undecodable ones included.
        seconds: wall time of the step on this rank.
        parts: the same by part; what is left over is bookkeeping.
        decode_failures: of this rank since the start.
        ready: batches decoded and waiting.
        saved_seconds: time of the checkpoint after this step; None without one.
    """

    step: int
    epoch: float
    loss: float
    anneal: float
    learning_rate: float
    own_cosine: float
    norm: float
    samples: int
    seconds: float
    parts: dict[str, float]
    decode_failures: int
    ready: int
    saved_seconds: float | None


class Trainer:
    """A run on this rank: backbone, head, data and checkpoints made from the recipe.

    Needs the process group to exist. Everything random comes from ``recipe.seed``, so a run is a function of
    (recipe, shards), whatever the number of ranks.

    Args:
        recipe, shards: what to do, on what.
        run: the run's folder.
        topology, group, device: where.

    Raises:
        RecipeError: when recipe, shards and ranks do not go together.
    """

    def __init__(
        self, recipe: Recipe, shards: ShardSet, run: Path, topology: Topology, group: Group, device: torch.device
    ) -> None:
        manifest = shards.manifest
        check_against_set(
            recipe, samples=manifest.samples, identities=manifest.identities, num_ranks=topology.num_ranks
        )
        self.recipe, self.shards, self.run, self.topology = recipe, shards, run, topology
        self.group, self.device = group, device
        self.step = 0
        self.order = Order(
            shards.samples_per_tar, recipe.seed, recipe.data.global_batch, recipe.data.streams, recipe.data.window
        )
        torch.manual_seed(recipe.seed)
        size = (manifest.image_height, manifest.image_width)
        backbone = build_backbone(recipe.backbone.name, recipe.backbone.embedding_dim, size).to(device)
        sharing, self._replicas = grid(topology.num_ranks, recipe.head.ranks or topology.num_ranks)
        self.engine = Engine(backbone, recipe, topology.num_ranks, num_ranks(sharing))
        self.head = ShardedHead(
            manifest.identities,
            recipe.backbone.embedding_dim,
            recipe.head.make_margin(),
            sharing,
            replicas=self._replicas,
            seed=recipe.seed,
            momentum=recipe.optimizer.momentum,
            weight_decay=recipe.optimizer.weight_decay,
            options=_head_options(recipe),
            device=device,
        )

    def resume(self, step: int) -> None:
        """Go on from the checkpoint after `step` steps, written by any number of ranks."""
        state = self._state()
        checkpoint.load(self.run, step, state, self._meta(), self.group)
        self.engine.load(state.backbone, state.momenta)
        self.step = step

    def train(self, stop_asked: Callable[[], bool] = lambda: False) -> Iterator[Record]:
        """Run the steps that are left, yielding after each; saves on the way, at the end and when asked to stop.

        Ranks agree on stopping: one that is asked stops all after the same step.

        Raises:
            NonFiniteError: on every rank, before anything of that step was applied.
        """
        if self.step == 0:
            self.save()
        STEP.use(self.device)
        reader = self._reader()
        try:
            while self.step < self.recipe.optimizer.steps:
                record, stopping = self._one_step(reader, stop_asked)
                yield record
                if stopping:
                    return
        finally:
            reader.close()

    def save(self) -> float:
        """Write the checkpoint of the current step; all ranks together. Returns the seconds it took."""
        return checkpoint.save(self.run, self._state(), self._meta(), self.group, self.recipe.checkpoint.keep)

    def _one_step(self, reader: Reader, stop_asked: Callable[[], bool]) -> tuple[Record, bool]:
        started = time.perf_counter()
        with STEP.part("data_wait"):
            batch = next(reader)
        head = self.recipe.head
        lam = anneal(self.step, head.lambda_max, head.lambda_min, head.lambda_gamma, head.lambda_power)
        rate = self._learning_rate()
        outputs, stopping = self._forward_backward(batch, lam, rate, stop_asked)
        with STEP.part("update"):
            self.head.update(rate)
        self.step += 1
        due = self.step % self.recipe.checkpoint.every == 0 or self.step == self.recipe.optimizer.steps
        valid = torch.cat([output.valid_G for output in outputs])
        record = Record(
            step=self.step,
            epoch=self.step / self.order.steps_per_epoch,
            loss=self._mean_loss(outputs),
            anneal=lam,
            learning_rate=rate,
            own_cosine=torch.cat([output.own_cosine_G for output in outputs])[valid].mean().item(),
            norm=torch.cat([output.norm_G for output in outputs]).mean().item(),
            samples=self.recipe.data.global_batch,
            seconds=time.perf_counter() - started,
            parts=STEP.take(),
            decode_failures=reader.decode_failures,
            ready=reader.ready,
            saved_seconds=self.save() if due or stopping else None,
        )
        return record, stopping

    def _forward_backward(
        self, batch: Batch, lam: float, rate: float, stop_asked: Callable[[], bool]
    ) -> tuple[list[HeadOutput], bool]:
        """All micro-batches: gradients everywhere, and the backbone's update in the last one."""
        parts = self.recipe.data.accumulation
        outputs: list[HeadOutput] = []
        stopping = False
        for images, labels in zip(batch.images_BCHW.chunk(parts), batch.labels_B.chunk(parts), strict=True):
            with STEP.part("forward"):
                embeddings_BD = self.engine.embed(images)
            with STEP.part("head"):
                x_BD = embeddings_BD.detach().float().requires_grad_()
                output = self.head(x_BD, labels, lam, step=self.step, learning_rate=rate)
                # before the backward pass, which a fused update changes the rows in
                stopping |= self._agree(output, lam, rate, stop_asked)
                # the step's loss is the mean over its micro-batches
                (output.loss / parts).backward()
            assert x_BD.grad is not None
            with STEP.part("backward"):
                self.engine.backward(embeddings_BD, x_BD.grad.to(embeddings_BD.dtype))
            with STEP.part("update"):
                self.engine.step(rate)
            outputs.append(output)
        return outputs, stopping

    def _agree(self, output: HeadOutput, lam: float, rate: float, stop_asked: Callable[[], bool]) -> bool:
        """One all-reduce of two flags: is anything not finite anywhere (raises), is any rank asked to stop."""
        finite = torch.isfinite(output.loss) & torch.isfinite(output.norm_G).all()
        flags = torch.stack([(~finite).float(), torch.tensor(float(stop_asked()), device=self.device)])
        broken, stopping = (flag > 0 for flag in max_over_ranks(flags, self.group).tolist())
        if broken:
            raise NonFiniteError(
                f"step {self.step}: loss {output.loss.item():g} (λ {lam:g}, learning rate {rate:g}, "
                f"mean ‖x‖ {output.norm_G.mean().item():g}): not finite on at least one rank; nothing of this step "
                "was applied. Resume from the last checkpoint with a smaller optimizer.learning_rate or a longer "
                "optimizer.warmup_steps"
            )
        return stopping

    def _mean_loss(self, outputs: list[HeadOutput]) -> float:
        """The step's loss over the global batch: over micro-batches and, if any, replicas of the classes."""
        mean = torch.stack([output.loss.detach() for output in outputs]).double().mean()
        average_over_ranks_(mean, self._replicas)
        return mean.item()

    def _learning_rate(self) -> float:
        optimizer = self.recipe.optimizer
        return learning_rate(
            self.step,
            optimizer.learning_rate,
            warmup_steps=optimizer.warmup_steps,
            milestones=optimizer.milestones,
            decay=optimizer.decay,
        )

    def _reader(self) -> Reader:
        data, manifest = self.recipe.data, self.shards.manifest
        share = data.global_batch // self.topology.num_ranks
        decoder = Decoder(share, manifest.image_height, manifest.image_width, self.device, data.decode_threads)
        return Reader(
            self.shards,
            self.order,
            decoder,
            rank=self.topology.rank,
            num_ranks=self.topology.num_ranks,
            first_step=self.step,
            mirror=data.mirror,
            depth=data.prefetch,
        )

    def _state(self) -> State:
        return State(
            rows_SD=self.head.weight_SD.detach(),
            rows_momentum_SD=self.head.optimizer.velocity_SD,
            first_class=self.head.classes.start,
            rows_group=self.head.group,
            backbone=self.engine.parameters(),
            momenta=self.engine.momenta(),
        )

    def _meta(self) -> Meta:
        manifest = self.shards.manifest
        return Meta(
            step=self.step,
            num_classes=manifest.identities,
            embedding_dim=self.recipe.backbone.embedding_dim,
            identities_sha256=manifest.identities_sha256,
            num_ranks=self.topology.num_ranks,
        )


def _head_options(recipe: Recipe) -> HeadOptions:
    return HeadOptions(
        dtype=torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32,
        block=recipe.head.block,
        fused_update=recipe.head.fused_update,
        sample_rate=recipe.head.sample_rate,
    )
