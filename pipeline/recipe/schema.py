"""The recipe: everything that decides a training run, typed, frozen and checked before anything starts.

A key that does not exist, a value of another type or an impossible combination is refused. The resolved recipe is saved
with the run, so that a run can be repeated from its folder alone. `pipeline/recipe/file.py` reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import yaml
from pydantic import AfterValidator, Field, model_validator

from pipeline.backbones import BACKBONES, Backbone
from pipeline.head.margins import MARGINS, Margin
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim import OPTIMIZERS, Optimizer
from pipeline.reading.augment import Mirror
from pipeline.reading.augmentation import Augmentation
from pipeline.recipe.phases import Augmentations, AugmentPhase, Phase, phase_at
from pipeline.section import Section, check_rising, inside
from pipeline.sinks import SINKS, Sink


class RecipeError(ValueError):
    """A recipe that cannot be run; the message is one line a fault, for the user."""


# A run may be resumed and evaluated from another working directory: the paths in its recipe must not depend on it.
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]


class Data(Section):
    """What is read, and in which order."""

    shards: AbsolutePath
    """Folder written by `make shards` (manifest.json, index.npy, tars)."""
    accept_shards: str | None = Field(None, pattern=r"^[0-9a-f]{12,64}$")
    """How the digest begins of another set of the same people, with which the run may resume; null: it is refused."""
    global_batch: int = Field(ge=1)
    """G, samples a step over all ranks and accumulation steps."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches a step; the backbone sees G / (ranks · accumulation) images of a rank at a time."""
    streams: int | None = Field(None, ge=1)
    """Pieces of the epoch read side by side; divides global_batch. More mix better, fewer read more in sequence. null:
    as the run began; in a new run 8, or as many more as mix in the smallest of the sets that the shards were joined
    from."""
    window: int = Field(4, ge=1)
    """Tars shuffled together."""
    augment: Augmentations = (Mirror(name="mirror"),)
    """Changes to the training images, in this order, drawn by a hash of (seed, epoch, sample); []: none. The words
    adaface and arcface_torch stand for the mixes of these trainers."""
    phases: tuple[AugmentPhase, ...] = ()
    """Other augmentations in the course of training, by rising start: hard ones late, or none."""
    decode_threads: int = Field(2, ge=1)
    """Host threads that decode, of each rank."""
    prefetch: int = Field(3, ge=1)
    """Decoded batches that a rank holds ready."""
    max_undecodable: float = Field(0.01, ge=0, le=1)
    """Largest share of samples that cannot be decoded, of all that the process has read, or of 1,000 if it has read
    fewer: beyond it the run ends. 0: none may be."""

    @model_validator(mode="after")
    def _possible(self) -> Data:
        check_rising(self.phases)
        return self

    @property
    def augmentations(self) -> tuple[tuple[int, tuple[Augmentation, ...]], ...]:
        """The first step of each list of augmentations, and the list."""
        return ((0, self.augment), *((phase.start, phase.augment) for phase in self.phases))


class Head(Section):
    """The classifier and its margin."""

    margin: Annotated[Margin, MARGINS] = ASoftmax()
    """How the logit of the target class differs: a name, or a name and its keys."""
    phases: tuple[Phase, ...] = ()
    """Changes of the margin's keys in the course of training, by rising start: start small, then the full margin."""
    sample_rate: float = Field(1.0, gt=0, le=1)
    """Share of the non-target classes that take part in a step (Partial FC); 1: all, the exact softmax."""
    fused_update: bool = False
    """Update rows inside the backward pass: a class costs 8·D bytes instead of 12·D. Needs data.accumulation 1."""
    unit_rows: bool = False
    """Bring rows back to length 1 after each update, as the authors' layer does. Else their length drifts, and with it
    how fast they turn: as the inverse of its square."""
    ranks: int | None = Field(None, ge=1)
    """Ranks that share the classes; groups of that many replicate them. null: all ranks."""
    block: int | None = Field(None, ge=1)
    """Classes whose logits are held at a time; null: as many as suit the batch and the device's cache."""

    @model_validator(mode="after")
    def _possible(self) -> Head:
        check_rising(self.phases)
        for number, phase in enumerate(self.phases):
            with inside("phases", number):
                phase.changed(self.margin)
        if self.margin.needs_unit_rows and not self.unit_rows:
            raise ValueError("unit_rows: got false with margin.gradient authors, wanted true: rows of length 1")
        if self.unit_rows and not (self.margin.normalises_rows or self.margin.needs_unit_rows):
            name = self.margin.name
            raise ValueError(f"unit_rows: got true with margin {name}, wanted false: its rows have their own lengths")
        if self.least_sample_rate < 1 and self.ranks is not None:
            raise ValueError(
                f"sample_rate: got {self.least_sample_rate} with ranks {self.ranks}, wanted 1 (replicas would differ)"
            )
        return self

    def margin_at(self, step: int) -> Margin:
        """The margin at `step`."""
        phase = phase_at(self.phases, step)
        return self.margin if phase is None else phase.changed(self.margin)

    def sample_rate_at(self, step: int) -> float:
        """The share of the non-target classes that take part in `step`."""
        phase = phase_at(self.phases, step)
        return self.sample_rate if phase is None or phase.sample_rate is None else phase.sample_rate

    @property
    def least_sample_rate(self) -> float:
        """The smallest share of all phases."""
        return min(self.sample_rate_at(start) for start in (0, *(phase.start for phase in self.phases)))

    def lambda_at(self, step: int) -> float | None:
        """λ at `step`; None: the margin has none."""
        phase = phase_at(self.phases, step)
        return self.margin_at(step).lambda_at(step - (0 if phase is None else phase.start))


class Checkpoint(Section):
    """When the run is saved."""

    every: int = Field(1000, ge=1)
    """Steps between checkpoints; the last step is always saved, and step 0 before training."""
    keep: int = Field(3, ge=1)
    """The newest checkpoints kept, besides step 0."""
    keep_every: int | None = Field(None, ge=1)
    """Checkpoints of multiples of this many steps are kept for good; null: of none."""


class Faults(Section):
    """Bad steps and steps that hang: what the run does about them."""

    action: Literal["stop", "skip", "roll_back"] = "skip"
    """After a loss or gradient that is not finite, or a spike: end the run, leave the batch out, or go back to the last
    checkpoint and leave the batch out from there."""
    limit: int = Field(10, ge=1)
    """Bad steps that a process survives: with one more it ends the run, whatever the action."""
    spike_factor: float | None = Field(None, gt=1)
    """A loss above this multiple of its running mean is a spike; null: no loss is."""
    leave_out: int = Field(1, ge=1)
    """Batches left out after a roll-back: the bad one and those before it."""
    step_seconds: float = Field(300.0, gt=0)
    """Longest time for a step: then every rank prints its stack and the ranks that do not respond, and ends."""


class Init(Section):
    """Start from another run's backbone and rows instead of at random; not read when the run resumes.

    Rows are matched by the identity's name, so the shards may have other identities.
    """

    run: AbsolutePath | None = None
    """Folder of the run to start from; null: start from random weights."""
    step: int | None = Field(None, ge=0)
    """Step of its checkpoint; null: the newest."""
    new_rows: Literal["class_mean", "random"] = "class_mean"
    """Rows of identities that the other run did not have: the mean direction of their images, or random."""

    @model_validator(mode="after")
    def _possible(self) -> Init:
        if self.step is not None and self.run is None:
            raise ValueError(f"step: got {self.step} with run null, wanted a run to start from")
        return self


class Log(Section):
    """What is logged and exported."""

    every: int = Field(10, ge=1)
    """Steps between progress lines and rows of metrics.jsonl."""
    stall_steps: int = Field(1000, ge=4)
    """Warn when over so many steps the target angle has not fallen and the loss is no better than guessing."""
    suspect_degrees: float | None = Field(None, gt=0, lt=180)
    """Keep every sample's target angle, 2 bytes a sample and epoch on the first rank's disk, and list after each epoch
    in RUN/suspects.tsv those with a larger mean over three epochs (75 is usual); null: neither."""
    profile: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Steps of which the first rank writes a profiler trace and, on a GPU, a memory snapshot to RUN/profile."""
    sinks: tuple[Annotated[Sink, SINKS], ...] = ()
    """Trackers to which rank 0's numbers go besides Prometheus. What fails there is a warning, and the run goes on."""
    metrics_port: int | None = Field(9400, ge=0, le=65535)
    """Port for Prometheus of a host's first rank; rank r of the host takes port + r. 0: any free port; null: none."""
    metrics_address: str = "127.0.0.1"
    """Address that the endpoints listen on; the default is loopback."""
    metrics_certificate: AbsolutePath | None = None
    """PEM certificate: with it the endpoints use TLS. It must have the name by which Prometheus reaches the host."""
    metrics_key: AbsolutePath | None = None
    """PEM key of the certificate, without a passphrase."""
    metrics_client_ca: AbsolutePath | None = None
    """PEM certificate of an authority: only clients with a certificate signed by it are answered; null: all are."""

    @model_validator(mode="after")
    def _possible(self) -> Log:
        names = [sink.name for sink in self.sinks]
        if len(names) > len(set(names)):
            raise ValueError(f"sinks: got {', '.join(names)}, wanted each tracker once")
        if (self.metrics_certificate is None) != (self.metrics_key is None):
            raise ValueError(
                f"metrics_key: got {self.metrics_key} with metrics_certificate {self.metrics_certificate}, "
                "wanted both or neither"
            )
        if self.metrics_client_ca is not None and self.metrics_certificate is None:
            raise ValueError(
                f"metrics_client_ca: got {self.metrics_client_ca} without metrics_certificate, wanted TLS with it"
            )
        return self


class EvaluationSet(Section):
    """Pairs of faces to verify; `stages/pairs.py` writes such files."""

    images: AbsolutePath
    """Folder that the pairs' paths are relative to."""
    pairs: AbsolutePath
    """Pairs file."""


class Evaluation(Section):
    """Verification while training, with the backbone as it is then. It changes nothing of the run."""

    sets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")], EvaluationSet] = Field({})
    """Sets of people who are not trained on, `name: {images: folder, pairs: file}`; empty: no evaluation."""
    every: int | None = Field(None, ge=1)
    """Steps between evaluations, a multiple of checkpoint.every; null: at every checkpoint. The last step always is."""
    best: str | None = None
    """Set by whose accuracy the best checkpoint is kept and named in RUN/best.json; null: the first."""
    batch_size: int = Field(64, ge=1)
    """Images that a rank embeds at a time."""
    resamples: int = Field(100, ge=1)
    """Bootstrap resamples behind each interval; all ranks wait for them."""

    @model_validator(mode="after")
    def _possible(self) -> Evaluation:
        if self.best is not None and self.best not in self.sets:
            raise ValueError(f"best: got {self.best!r}, wanted one of sets: {', '.join(self.sets) or 'there are none'}")
        return self


class Recipe(Section):
    """One training run."""

    seed: int = Field(0, ge=0)
    """Of the order, the augmentations, the backbone and the head's rows."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products: bfloat16 is autocast; parameters, sums and losses stay float32."""
    exchange: Literal["float32", "bfloat16"] = "float32"
    """Of the backbone's gradient on its way between ranks: bfloat16 halves the bytes, and rounds what is summed."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage of the backbone: 1 splits the optimizer's state over the ranks, 2 the gradients too, 3
    the parameters as well."""
    deterministic: bool = True
    """Ask torch for repeatable kernels on the GPU (the CPU's are); exact resume needs it."""
    timeout_seconds: float = Field(600.0, gt=0)
    """Bound on the rendezvous and on every collective."""
    data: Data
    backbone: Annotated[Backbone, BACKBONES]
    """The network from image to embedding."""
    head: Head = Head()
    optimizer: Annotated[Optimizer, OPTIMIZERS]
    """How backbone and head learn; the default name is sgd."""
    checkpoint: Checkpoint = Checkpoint()
    faults: Faults = Faults()
    init: Init = Init()
    evaluation: Evaluation = Evaluation()
    log: Log = Log()

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.data.global_batch % self.data.accumulation:
            raise ValueError(
                f"data.accumulation: got {self.data.accumulation}, wanted a divisor of "
                f"data.global_batch {self.data.global_batch}"
            )
        if self.data.streams and self.data.global_batch % self.data.streams:
            raise ValueError(
                f"data.streams: got {self.data.streams}, wanted a divisor of data.global_batch {self.data.global_batch}"
            )
        for key, asked in (("fused_update", self.head.fused_update), ("sample_rate", self.head.least_sample_rate < 1)):
            if asked and self.data.accumulation > 1:
                got = self.head.least_sample_rate if key == "sample_rate" else True
                raise ValueError(
                    f"head.{key}: got {got} with data.accumulation {self.data.accumulation}, "
                    "wanted accumulation 1: it works on the gradient of one backward pass"
                )
        for key, value in (("fused_update", self.head.fused_update), ("ranks", self.head.ranks)):
            if self.optimizer.clip_rows and value:
                raise ValueError(
                    f"optimizer.clip_rows: got true with head.{key} {value}, wanted false: the norm must be known "
                    "before any row is updated, and after its gradient is averaged over replicas"
                )
        if self.log.suspect_degrees is not None and self.head.ranks is not None:
            raise ValueError(
                f"log.suspect_degrees: got {self.log.suspect_degrees} with head.ranks {self.head.ranks}, wanted null: "
                "a group of ranks does not see the others' samples"
            )
        if self.backbone.compile and self.zero_stage == 3:
            raise ValueError("backbone.compile: got true with zero_stage 3, wanted 0, 1 or 2")
        if (self.evaluation.every or 0) % self.checkpoint.every:
            raise ValueError(
                f"evaluation.every: got {self.evaluation.every}, wanted a multiple of checkpoint.every "
                f"{self.checkpoint.every}: what is evaluated is saved"
            )
        return self

    @property
    def exchange_dtype(self) -> torch.dtype:
        """What the backbone's gradient is sent as."""
        return torch.bfloat16 if self.exchange == "bfloat16" else torch.float32

    def evaluates_after(self, step: int) -> bool:
        """Whether there is an evaluation after `step` steps."""
        due = step % (self.evaluation.every or self.checkpoint.every) == 0 or step >= self.optimizer.steps
        return bool(self.evaluation.sets) and step > 0 and due

    @property
    def best_set(self) -> str | None:
        """The set that decides which checkpoint is the best; None without evaluations."""
        return self.evaluation.best or next(iter(self.evaluation.sets), None)

    def micro_batch(self, num_ranks: int) -> int:
        """Images that one rank holds at a time."""
        return self.data.global_batch // (num_ranks * self.data.accumulation)

    def to_yaml(self) -> str:
        """The resolved recipe, as it is saved with the run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
