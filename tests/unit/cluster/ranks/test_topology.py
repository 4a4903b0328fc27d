"""Ranks from a launcher's variables, and uneven splits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ranks.topology import Topology, split_range


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_splits_cover_everything_once_in_order_and_differ_by_at_most_one(total: int, parts: int) -> None:
    ranges = [split_range(total, parts, index) for index in range(parts)]
    assert [i for r in ranges for i in r] == list(range(total))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("index", [-1, 3])
def test_a_part_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="wanted 0 <= index < 3 parts"):
        split_range(10, 3, index)


def test_nothing_set_means_one_rank() -> None:
    assert Topology.from_environment({}) == Topology(0, 1, 0, 1)


def test_the_launchers_variables() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"}
    assert Topology.from_environment(environment) == Topology(5, 8, 1, 4)


MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
        MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
        SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
        SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3,4,1"},
        {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"},
        # deepspeed, started by srun
        SRUN | {"SLURM_PROCID": "0", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"},
    ],
    ids=["torchrun", "Open MPI", "srun", "srun, uneven", "MPICH", "deepspeed in srun"],
)
def test_every_launcher_gives_the_same_place(environment: dict[str, str]) -> None:
    found = Topology.from_environment(environment)
    assert found == Topology(5, 8, 1, 4)
    assert Topology.from_environment(found.to_environment()) == found


def test_one_rank_leaves_nothing_that_a_launcher_would_pass_on() -> None:
    left = Topology().to_environment()
    assert Topology.from_environment(left) == Topology()
    assert Topology.from_environment(left | SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}) == Topology(5, 8, 1, 4)


def test_a_batch_script_is_one_rank() -> None:
    assert Topology.from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) == Topology()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "^RANK: not set, but other variables of deepspeed or torchrun are"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "^LOCAL_RANK: not set"),
        ({"PMI_SIZE": "2"}, "^PMI_RANK: not set, but other variables of MPICH"),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "four"}, "^OMPI_COMM_WORLD_LOCAL_SIZE: got 'four', wanted an integer"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "^SLURM_PROCID: not set, but other variables of srun are"),
        ({"RANK": "0"}, "WORLD_SIZE: not set"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK: got 'x', wanted an integer"),
        (
            {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            "of deepspeed or torchrun: rank: got 2, wanted 0 <= rank",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "1"}, "rank_of_node: got 1"),
    ],
)
def test_contradictions_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Topology.from_environment(environment)
