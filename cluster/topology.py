"""This process's place among the ranks, and which rank owns what: plain integers, no process group needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
        """Read the variables that ``deepspeed``, ``torchrun`` and Slurm wrappers set; none set means one rank.

        Raises:
            ValueError: if only some are set or one is not an integer, naming it.
        """
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return cls()
        values = {}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            try:
                values[name] = int(environment[name])
            except KeyError:
                raise ValueError(f"{name}: not set, but other launcher variables are; wanted all of them") from None
            except ValueError:
                raise ValueError(f"{name}: got {environment[name]!r}, wanted an integer") from None
        ranks_of_node = int(
            environment.get("LOCAL_SIZE") or environment.get("LOCAL_WORLD_SIZE") or values["LOCAL_RANK"] + 1
        )
        return cls(values["RANK"], values["WORLD_SIZE"], values["LOCAL_RANK"], ranks_of_node)


def split_range(total: int, parts: int, index: int) -> range:
    """Part `index` of `total` items cut into `parts` nearly equal ranges; the first ``total % parts`` have one more.

    The only definition of uneven splits: the head's rows, checkpoints and the planner all use it.
    """
    if not 0 <= index < parts:
        raise ValueError(f"index: got {index}, wanted 0 <= index < {parts} parts")
    share, extra = divmod(total, parts)
    start = index * share + min(index, extra)
    return range(start, start + share + (index < extra))
