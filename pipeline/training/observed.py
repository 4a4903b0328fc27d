"""A run's steps with all that goes with them: its observers, its evaluations, its watchdog, and lost ranks named."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from cluster.ranks.watchdog import Watchdog, end, in_short
from pipeline.training.guard import NonFiniteError
from pipeline.training.observers.observer import Observer, Observers
from pipeline.training.record import Window

if TYPE_CHECKING:
    from pipeline.training.evaluator import Evaluator
    from pipeline.training.loop import Trainer


def train_observed(
    trainer: Trainer,
    evaluator: Evaluator,
    observers: Sequence[Observer],
    watchdog: Watchdog,
    stop_asked: Callable[[], bool],
) -> bool:
    """Train to the end or until asked to stop, evaluating after saves and notifying the observers. All ranks together.

    An error that comes of a lost rank ends this process, naming the rank.

    Args:
        trainer: new, resumed or inherited from another run.
        evaluator: no observer, though they are given its results: all ranks embed together, so that its errors are
            those of a collective, and end the run as those of a step do.
        observers: of this rank.
        watchdog: ends a hung run; patient with a save, a roll-back and an evaluation.
        stop_asked: whether this rank is asked to stop.

    Returns:
        whether an evaluation that is due is left to the next start, since the run was stopped.

    Raises:
        NonFiniteError, UnsavedError: see `Trainer.train`.
    """
    recipe, window = trainer.recipe, Window(trainer.recipe.log.every)
    trainer.saves.saver.patience = watchdog.patient
    hub = Observers(observers, recipe.log.every)
    # Lost ranks are named while the watchdog still listens; a process that ends there notifies no observer,
    # so that its targets stay announced and the loss is seen.
    with hub.watching(trainer.step), watchdog, _naming_lost_ranks(watchdog):

        def evaluate() -> None:
            with watchdog.patient("an evaluation"):
                found = evaluator.evaluate()
            hub.evaluated(found)

        evaluator.look_back()
        if recipe.evaluates_after(trainer.step):  # it was stopped, or killed, between the save and the evaluation
            evaluate()
        due = False
        for record in trainer.train(stop_asked):
            watchdog.tick(record.step)
            window.add(record)
            hub.recorded(record, window)
            due = due or recipe.evaluates_after(record.step)
            # What is evaluated is saved: not a step that is rolled back, and later if the save is put off. A run that
            # stops is evaluated when it resumes.
            saved = record.stall_seconds is not None
            if due and saved and not record.stopping:
                due = False
                evaluate()
        return due


@contextlib.contextmanager
def _naming_lost_ranks(watchdog: Watchdog) -> Iterator[None]:
    """End the process, naming who is gone, at an error that comes of a rank that is; any other error passes."""
    try:
        yield
    except NonFiniteError:  # agreed by all: no rank is lost
        raise
    except RuntimeError as error:  # what a collective raises when its peer is gone
        what = watchdog.explain("an error", in_short(error))
        if not what.startswith("silent"):
            raise
        end(what)
