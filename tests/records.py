"""Records and evaluations that no training made, for whatever reads them."""

from __future__ import annotations

from typing import Any

from pipeline.evaluation.scoring.rates import verify
from pipeline.evaluation.scoring.verification import ScoredPairs
from pipeline.training.evaluator import Evaluated
from pipeline.training.record import Record, Window

RESULT = verify(
    ScoredPairs.of(
        [0.9, 0.1, 0.8, 0.2], [True, False] * 2, [0, 0, 1, 1], identity_a=[0, 0, 1, 1], identity_b=[0, 1, 1, 0]
    ),
    (0.5,),
    2,
)


def record(step: int, **changes: Any) -> Record:
    """A step of 4 samples in 0.1 s, applied, without numbers of its own."""
    fields: dict[str, Any] = {
        "step": step,
        "epoch": step / 8,
        "loss": 1.0 / step,
        "lambda_": 5.0,
        "learning_rate": 0.1,
        "samples": 4,
        "seconds": 0.1,
        "parts": {},
        "measured": {},
    }
    return Record(**fields | changes)


def window_of(*records: Record) -> Window:
    """A window that holds these records."""
    window = Window(len(records))
    for one in records:
        window.add(one)
    return window


def evaluated(step: int) -> Evaluated:
    """An evaluation of one set."""
    return Evaluated(step, {"lfw": RESULT}, [], {"lfw": RESULT.accuracy.value}, None, 1.5)
