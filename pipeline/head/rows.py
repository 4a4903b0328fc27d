"""The classifier's rows on one rank: how they start, and which take part in a step."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.head.draws import uniform

# Rows are drawn in runs of this many classes, each from its own seed, so that a class's first row depends on
# (seed, class) alone and not on how the classes are split.
_INIT_RUN = 4096


def initial_rows(classes: range, embedding_dim: int, seed: int) -> torch.Tensor:
    """Rows [S, D] float32 of `classes`, uniform in ±sqrt(3/D) (Caffe's "xavier", the authors' filler for fc6)."""
    rows = torch.empty(len(classes), embedding_dim)
    draw_rows_(rows, classes, seed)
    return rows


@torch.no_grad()
def draw_rows_(rows: torch.Tensor, classes: range, seed: int) -> None:
    """Put the numbers of `initial_rows` into `rows` [S, D]."""
    embedding_dim = rows.shape[1]
    bound = (3 / embedding_dim) ** 0.5
    for run in range(classes.start // _INIT_RUN, -(-classes.stop // _INIT_RUN)):
        start = run * _INIT_RUN
        # numpy's seed sequence: torch's CPU generator reads 32 bits of a seed, too few for (seed, run)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, run])))
        drawn = torch.from_numpy(generator.random((_INIT_RUN, embedding_dim), dtype=np.float32)) * (2 * bound) - bound
        overlap = range(max(start, classes.start), min(start + _INIT_RUN, classes.stop))
        rows[overlap.start - classes.start : overlap.stop - classes.start] = drawn[
            overlap.start - start : overlap.stop - start
        ]


def check_labels(labels_G: torch.Tensor, num_classes: int) -> None:
    """Refuse labels that are no class's, without making the host wait for a GPU: there a later call of torch's fails.

    Raises:
        ValueError: where the labels are on the CPU.
    """
    try:
        torch._assert_async((labels_G < num_classes).all(), f"labels: wanted numbers below {num_classes}, or -1")
    except RuntimeError:
        if labels_G.device.type != "cpu":
            raise
        most = int(labels_G.max())
        raise ValueError(f"labels: got {most}, wanted numbers below {num_classes} classes, or -1") from None


def class_of(labels_G: torch.Tensor, classes: range) -> torch.Tensor:
    """Row numbers on this rank for global labels; -1 for classes of other ranks and for ignored samples."""
    inside = (labels_G >= classes.start) & (labels_G < classes.stop)
    return torch.where(inside, labels_G - classes.start, torch.full_like(labels_G, -1))


def sampled_rows(target_G: torch.Tensor, classes: range, rate: float, seed: int, step: int) -> torch.Tensor:
    """Rows that take part in `step`: every target class of the batch, and each other class with probability `rate`.

    As Partial FC (An et al., CVPR 2022, section 3.3), positives always and negatives at random, but each class by a
    hash of (seed, step, class): the same classes whatever the number of ranks. Rising row numbers, int64.
    """
    numbers = torch.arange(classes.start, classes.stop, device=target_G.device)
    chosen = uniform(numbers, seed, step) < rate
    # One place more, the last: that of -1. (To pick the others out would make the host wait for their number.)
    chosen = torch.cat([chosen, chosen.new_zeros(1)])
    chosen[target_G] = True
    return chosen[:-1].nonzero()[:, 0]
