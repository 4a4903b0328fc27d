"""What lost hosts cost, and how often to save: failures that come at random, each back to the last checkpoint.

Failures are a Poisson process; M is the mean time between two of them in the whole cluster. A save stops training for
δ seconds; it is whole `write_seconds` after it began, and a failure before then goes back to the one before. Starting
again takes R seconds.

J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974).
J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22 (2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """How often something is lost, and what a save and a new start take.

    Args:
        between_seconds: M, mean time between failures of the whole cluster (of one host, over the hosts).
        restart_seconds: R, from the failure to the first step of the next start: noticing, waiting, starting, loading.
        stall_seconds: δ, for which a save holds training up.
        write_seconds: from a save's beginning until it is whole, in the background.

    Raises:
        ValueError: for an impossible time, naming the field.
    """

    between_seconds: float
    restart_seconds: float
    stall_seconds: float
    write_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("between_seconds", "stall_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted more than 0")
        for name in ("restart_seconds", "write_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least 0")


def lost_work_seconds(interval_seconds: float, failures: Failures) -> float:
    """Mean training that a failure takes with it, for a save begun every `interval_seconds` of training.

    A failure that falls into a stretch of L = τ + δ lies M - L/(e^(L/M) - 1) after its beginning on average, half of L
    for rare failures. Where the last save was not yet whole, the stretch before is lost as well.
    """
    mean, stretch = failures.between_seconds, interval_seconds + failures.stall_seconds
    inside = mean - stretch / math.expm1(stretch / mean)
    return inside + _lost_before(stretch, failures)


def overhead(interval_seconds: float, failures: Failures) -> float:
    """Time to finish over the time of the training alone, less 1: stalls, starts and lost work.

    Daly's equation 20, T = M e^(R/M) (e^(L/M) - 1) T_s/τ with L = τ + δ; the work that is lost because a save was not
    yet whole is added to R.
    """
    mean, stretch = failures.between_seconds, interval_seconds + failures.stall_seconds
    again = failures.restart_seconds + _lost_before(stretch, failures)
    return mean * math.exp(again / mean) * math.expm1(stretch / mean) / interval_seconds - 1


def _lost_before(stretch: float, failures: Failures) -> float:
    """Mean of what is lost besides: a whole stretch for those failures that find the last save unfinished."""
    mean = failures.between_seconds
    unfinished = math.expm1(-min(failures.write_seconds, stretch) / mean) / math.expm1(-stretch / mean)
    return unfinished * stretch


def best_interval_seconds(failures: Failures) -> float:
    """Training between two saves that costs least: Daly's equation 37, whose first term is Young's √(2 δ M)."""
    stall, mean = failures.stall_seconds, failures.between_seconds
    if stall >= 2 * mean:
        return mean
    ratio = stall / (2 * mean)
    return math.sqrt(2 * stall * mean) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall
