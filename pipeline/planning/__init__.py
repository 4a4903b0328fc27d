"""Before a cluster is rented: will it fit, what will travel, how long will it take, what does a lost host cost.

Plain arithmetic on plain numbers, and on rates that a calibration run measured.
"""

from pipeline.planning.advice import Change, changes, largest_classes
from pipeline.planning.job import BF16, FP32, GIB, Job, Network
from pipeline.planning.memory import (
    RESERVED_BYTES,
    checkpoint_bytes,
    head_block,
    head_block_bytes,
    head_bytes,
    memory,
    peak,
)
from pipeline.planning.rates import Rates, read_rates
from pipeline.planning.timing import flops, traffic

__all__ = [
    "BF16",
    "FP32",
    "GIB",
    "RESERVED_BYTES",
    "Change",
    "Job",
    "Network",
    "Rates",
    "changes",
    "checkpoint_bytes",
    "flops",
    "head_block",
    "head_block_bytes",
    "head_bytes",
    "largest_classes",
    "memory",
    "peak",
    "read_rates",
    "traffic",
]
