"""Numbers gone wrong: when a loss is a spike, what becomes of a bad step, and the facts of it that are kept."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from pipeline.recipe.schema import Faults
from pipeline.run.folder import RunFolder
from pipeline.training.step import Outcome

logger = logging.getLogger(__name__)

# Steps over which the running mean of the loss is taken; no step is a spike before that many.
_MEMORY_STEPS = 50

_ADVICE = "A smaller optimizer.learning_rate or a longer optimizer.warmup_steps may help"


class NonFiniteError(RuntimeError):
    """There were more bad steps than the recipe allows; nothing of the last one was applied on any rank."""


class Guard:
    """Knows the loss's usual size and counts bad steps; the same on every rank, since it is fed the same numbers.

    Its memory is of this process: after a resume, no step is a spike until the mean has been built again.

    Args:
        faults: what the recipe wants done.
        run: the run's folder, where the facts of a bad step are written; None on a rank that writes none.

    Attributes:
        left_out: steps whose batches are left out.
        going_back: whether the run is to go back to its newest whole checkpoint now.
    """

    def __init__(self, faults: Faults, run: Path | None) -> None:
        self._faults, self._run = faults, run
        self._mean, self._seen, self._bad = 0.0, 0, 0
        self.left_out: set[int] = set()
        self.going_back = False

    @property
    def threshold(self) -> float:
        """The loss above which a step is a spike; infinite if none is."""
        factor = self._faults.spike_factor
        return math.inf if factor is None or self._seen < _MEMORY_STEPS else factor * self._mean

    def good(self, loss: float) -> None:
        """Take the loss of a step that was applied into the mean."""
        self._seen += 1
        self._mean += (loss - self._mean) / min(self._seen, _MEMORY_STEPS)

    def bad(self, step: int, what: str, facts: dict[str, Any], *, rows_moved: bool = False) -> None:
        """Count a bad step, write its facts, and mark the batches that the recipe wants left out.

        If `rows_moved`, leaving the batch out is too late: the run goes back, even if the recipe says to skip.

        Raises:
            NonFiniteError: when the recipe says to stop, or there were too many.
        """
        if rows_moved:
            what = f"{what}: the rows had been updated before that was known (head.fused_update), the backbone had not"
        else:
            what = f"{what}: nothing of this step was applied"
        if self._run is not None:
            dump(self._run, step, facts)
        self._bad += 1
        if self._faults.action == "stop":
            raise NonFiniteError(f"{what}. {_ADVICE}")
        if self._bad > self._faults.limit:
            raise NonFiniteError(
                f"{what}; the number of bad steps is {self._bad}, faults.limit allows {self._faults.limit}. {_ADVICE}"
            )
        action = "roll_back" if rows_moved else self._faults.action
        logger.warning("%s; %s", what, action.replace("_", " "))
        if action == "roll_back":
            self.left_out.update(range(step - self._faults.leave_out + 1, step + 1))
            self.going_back = True


def fault_of(
    step: int, outcome: Outcome, lambda_: float | None, learning_rate: float, samples: list[str]
) -> tuple[str, dict[str, Any]]:
    """A bad step in a line, and its facts for `dump`.

    Args:
        step: steps done before it.
        outcome: the same on every rank.
        lambda_, learning_rate: of the step.
        samples: of the global batch, in words.
    """
    about_lambda = "" if lambda_ is None else f"λ {lambda_:g}, "
    what = (
        f"step {step}: loss {outcome.loss:g} ({about_lambda}learning rate {learning_rate:g}, mean ‖x‖ "
        f"{outcome.embedding_norm_G.mean().item():g}): {outcome.severity.words}"
    )
    facts = {
        "fault": what,
        "step": step,
        "loss": outcome.loss,
        **({} if lambda_ is None else {"margin_lambda": lambda_}),
        "learning_rate": learning_rate,
        "embedding_norm": outcome.embedding_norm_G.tolist(),
        "target_cosine": outcome.target_cosine_G.tolist(),
        "samples": samples,
    }
    return what, facts


def dump(run: Path, step: int, facts: dict[str, Any]) -> None:
    """Write ``RUN/faults/step-….json``. A disk that is full does not end the run."""
    file = RunFolder(run).fault(step)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # NaN has no place in JSON: as text it is readable by everything
        text = json.dumps(_plain(facts), indent=1, ensure_ascii=False)
        file.write_text(text + "\n")
    except OSError as error:
        logger.warning("%s: %s; the facts of the bad step are lost", file, error.strerror)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
