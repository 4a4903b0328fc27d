"""Before a cluster is rented: will it fit, what will travel, how long will it take, what does a lost host cost.

Plain arithmetic on plain numbers, and on rates that a calibration run measured.
"""

from cluster.planner.advice import Change, changes, largest_classes
from cluster.planner.job import BF16, FP32, GIB, Job, Network
from cluster.planner.memory import RESERVED_BYTES, head_block_bytes, head_bytes, memory, peak
from cluster.planner.rates import Rates, read_rates
from cluster.planner.work import flops, traffic

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
    "flops",
    "head_block_bytes",
    "head_bytes",
    "largest_classes",
    "memory",
    "peak",
    "read_rates",
    "traffic",
]
