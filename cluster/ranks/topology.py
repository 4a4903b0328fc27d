"""This process's place among the ranks, and which rank owns what: plain integers, no process group needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


class TopologyError(ValueError):
    """The launcher's variables do not say what this process's place is; the message names one of them."""


@dataclass(frozen=True)
class Variables:
    """Where a launcher writes the place of a process.

    Attributes:
        launcher: as a message calls it.
        rank, num_ranks, rank_of_node: names of its variables.
        ranks_of_node: names of variables, of which the first that is set counts.
    """

    launcher: str
    rank: str
    num_ranks: str
    rank_of_node: str
    ranks_of_node: tuple[str, ...]


# The first whose variables are there counts: a launcher that another has started is the nearer one.
LAUNCHERS = (
    Variables("deepspeed or torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")),
    Variables(
        "Open MPI's mpirun",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    # Not SLURM_NTASKS, which a batch script has as well: what it starts is one process, or has a launcher of its own.
    Variables("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ("SLURM_STEP_TASKS_PER_NODE",)),
    Variables("MPICH's or Intel's mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", ("MPI_LOCALNRANKS",)),
)


@dataclass(frozen=True)
class Topology:
    """This process's place as the launcher gave it.

    Attributes:
        rank, num_ranks: place among all ranks.
        rank_of_node, ranks_of_node: place among the ranks of this host.
    """

    rank: int = 0
    num_ranks: int = 1
    rank_of_node: int = 0
    ranks_of_node: int = 1

    def __post_init__(self) -> None:
        for name, value, limit in (
            ("rank", self.rank, self.num_ranks),
            ("rank_of_node", self.rank_of_node, self.ranks_of_node),
        ):
            if not 0 <= value < limit:
                raise ValueError(f"{name}: got {value}, wanted 0 <= {name} < {limit}")
        if self.ranks_of_node > self.num_ranks:
            raise ValueError(f"ranks_of_node: got {self.ranks_of_node}, wanted at most {self.num_ranks} ranks")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Topology:
        """Read the variables of the launcher that started this process; none set means one rank.

        Raises:
            TopologyError: if only some are set, or one is not an integer or contradicts another, naming it.
        """
        for names in LAUNCHERS:
            # every process of a job has Slurm's rank; that there are several is what srun says
            said = (names.num_ranks,) if names.launcher == "srun" else (names.rank, names.num_ranks)
            if any(name in environment for name in said):
                return cls._of(names, environment)
        return cls()

    @classmethod
    def _of(cls, names: Variables, environment: Mapping[str, str]) -> Topology:
        rank, num_ranks, rank_of_node = (
            _integer(name, names.launcher, environment) for name in (names.rank, names.num_ranks, names.rank_of_node)
        )
        counted = next((name for name in names.ranks_of_node if environment.get(name)), None)
        ranks_of_node = rank_of_node + 1 if counted is None else _ranks_of_node(counted, environment)
        try:
            return cls(rank, num_ranks, rank_of_node, ranks_of_node)
        except ValueError as error:
            raise TopologyError(f"the variables of {names.launcher}: {error}") from None

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads, and libraries such as DeepSpeed.

        One rank has none, which a launcher that it starts would pass on; but DeepSpeed insists on the last.
        """
        if self.num_ranks == 1:
            return {"LOCAL_RANK": "0"}
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.num_ranks),
            "LOCAL_RANK": str(self.rank_of_node),
            "LOCAL_SIZE": str(self.ranks_of_node),
        }


def _integer(name: str, launcher: str, environment: Mapping[str, str]) -> int:
    try:
        return int(environment[name])
    except KeyError:
        raise TopologyError(
            f"{name}: not set, but other variables of {launcher} are; wanted all of them, or none for one rank"
        ) from None
    except ValueError:
        raise TopologyError(f"{name}: got {environment[name]!r}, wanted an integer") from None


def _ranks_of_node(name: str, environment: Mapping[str, str]) -> int:
    """A number; of srun those of all nodes, as in ``2(x3),1``."""
    counts: list[int] = []
    for part in environment[name].split(","):
        matched = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if matched is None:
            raise TopologyError(f"{name}: got {environment[name]!r}, wanted an integer")
        counts += [int(matched[1])] * int(matched[2] or 1)
    node = int(environment.get("SLURM_NODEID", "0")) if name.startswith("SLURM") else 0
    return counts[min(node, len(counts) - 1)]


def split_range(total: int, parts: int, index: int) -> range:
    """Part `index` of `total` items cut into `parts` nearly equal ranges; the first ``total % parts`` have one more.

    The only definition of uneven splits: the head's rows, checkpoints and the planner all use it.
    """
    if not 0 <= index < parts:
        raise ValueError(f"index: got {index}, wanted 0 <= index < {parts} parts")
    share, extra = divmod(total, parts)
    start = index * share + min(index, extra)
    return range(start, start + share + (index < extra))
