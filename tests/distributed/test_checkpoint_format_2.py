"""A run that the code of before wrote, which had format 2 and SGD alone, is read and resumed as it is."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from cluster.ranks.topology import split_range
from pipeline.recipe.file import load_recipe
from pipeline.run import checkpoint
from pipeline.run.checkpoint import State
from pipeline.run.folder import RunFolder
from pipeline.run.whole import damage, load_backbone, newest_whole
from pipeline.training.inherit import old_identities
from tests.distributed.ranks import run_ranks
from tests.faces import ROOT

OLD = ROOT / "tests" / "data" / "run_format_2"


def drawn() -> dict[str, torch.Tensor]:
    """What the old code saved, drawn again as it was drawn then."""
    generator = torch.Generator().manual_seed(20)
    shapes = {"rows": (5, 3), "momentum": (5, 3), "backbone.conv.weight": (2, 2), "backbone.conv.bias": (2,)}
    shapes |= {"momentum.conv.weight": (2, 2), "momentum.conv.bias": (2,)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def old_state(rank: int, ranks: int) -> State:
    """Empty, for a rank of today, whose frozen ``features.weight`` has no momentum; the old code saved one."""
    mine = len(split_range(5, ranks, rank))
    weights = {"conv.weight": torch.zeros(2, 2), "conv.bias": torch.zeros(2)}
    return State(
        torch.zeros(mine, 3),
        {"momentum": torch.zeros(mine, 3)},
        split_range(5, ranks, rank).start,
        weights | {"features.weight": torch.zeros(3), "bn.num_batches_tracked": torch.tensor(0)},
        {"momentum": {name: torch.zeros_like(weight) for name, weight in weights.items()}},
    )


def load_old(rank: int, ranks: int) -> State:
    state = old_state(rank, ranks)
    assert newest_whole(OLD, dist.group.WORLD) == 4
    checkpoint.load(OLD, 4, state, checkpoint.read_meta(RunFolder(OLD).checkpoint(4)))
    return state


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_run_of_format_2_is_resumed(ranks: int) -> None:
    parts = run_ranks(load_old, ranks)
    wanted = drawn()
    for name in ("rows", "momentum"):
        assert torch.equal(torch.cat([part.rows_tensors(slice(None))[name] for part in parts]), wanted[name])
    for part in parts:
        whole = part.whole_tensors()
        for name in ("backbone.conv.weight", "backbone.conv.bias", "momentum.conv.weight", "momentum.conv.bias"):
            assert torch.equal(whole[name], wanted[name]), name
        assert torch.equal(whole["backbone.features.weight"], torch.ones(3))
        assert int(whole["backbone.bn.num_batches_tracked"]) == 7


def test_the_whole_folder_of_a_run_of_format_2_is_read() -> None:
    saved = checkpoint.read_meta(RunFolder(OLD).checkpoint(4))
    assert (saved.step, saved.slots, saved.format) == (4, ["momentum"], checkpoint.FORMAT)
    assert checkpoint.complete_steps(OLD) == [4] and damage(RunFolder(OLD).checkpoint(4)) == []
    recipe = load_recipe(RunFolder(OLD).recipe)
    assert (recipe.optimizer.name, recipe.optimizer.steps, recipe.backbone.name) == ("sgd", 8, "iresnet18")
    assert recipe.optimizer.model_dump()["momentum"] == 0.8
    assert old_identities(OLD, 4) == ["ada", "boole", "cantor", "dirac", "euler"]
    assert torch.equal(load_backbone(OLD)[1]["conv.weight"], drawn()["backbone.conv.weight"])
    rows = dict(checkpoint.read_rows(RunFolder(OLD).checkpoint(4), range(1, 4)))
    assert torch.equal(torch.cat([rows[first] for first in sorted(rows)]), drawn()["rows"][1:4])
