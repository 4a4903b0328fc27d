"""How benchmarks run and report: contestants take turns, the median counts, ratios are printed and written."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.machine import processor

FOLDER = Path(__file__).parents[2] / "runs" / "bench"


def median_seconds(contestants: dict[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each contestant over rounds in which all take turns, after `warmup` uncounted rounds.

    Turns keep the comparison fair when the machine's speed drifts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def write(name: str, result: dict[str, Any]) -> None:
    """Print `result` and write it, with the machine and the date, to runs/bench/`name`.json."""
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, **result}, indent=2)
    (FOLDER / f"{name}.json").write_text(text + "\n")
    print(f"\n{name} {text}")
