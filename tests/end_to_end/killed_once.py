"""Stands for train.py under torchrun: the second rank of the first attempt is killed in its third step."""

import os
import runpy
import signal
import sys
from typing import Any

from pipeline.training.step import Outcome, Stepper
from tests.end_to_end.launcher import TRAIN

STEPS = 3

if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    taken: list[Stepper] = []
    take = Stepper.take

    def take_few(self: Stepper, *args: Any, **kwargs: Any) -> Outcome:
        taken.append(self)
        if len(taken) == STEPS:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, *args, **kwargs)

    Stepper.take = take_few  # type: ignore[method-assign]

sys.argv[0] = str(TRAIN)
runpy.run_path(str(TRAIN), run_name="__main__")
