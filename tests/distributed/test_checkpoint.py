"""Saved on N ranks, loaded on M: every tensor bit for bit; complete or absent."""

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.topology import split_range
from pipeline.recipe.file import load_recipe
from pipeline.run import checkpoint
from pipeline.run import saver as saver_module
from pipeline.run.checkpoint import CheckpointError, Meta, State
from pipeline.run.folder import RunFolder
from pipeline.run.retention import sweep
from pipeline.run.saver import Saver
from pipeline.run.whole import damage, load_backbone, newest_whole
from pipeline.training.inherit import old_identities
from tests.distributed.ranks import run_ranks
from tests.faces import ROOT

CLASSES, DIM = 11, 3


def truth() -> State:
    generator = torch.Generator().manual_seed(1)
    return State(
        rows_SD=torch.randn(CLASSES, DIM, generator=generator),
        row_slots={
            "momentum": torch.randn(CLASSES, DIM, generator=generator),
            "count": torch.randn(CLASSES, generator=generator),
        },
        first_class=0,
        backbone={"conv.weight": torch.randn(4, 2, generator=generator), "bn.num": torch.tensor(7)},
        backbone_slots={
            "momentum": {"conv.weight": torch.randn(4, 2, generator=generator)},
            "count": {"conv.weight": torch.tensor(5.0)},
        },
        head_state={"mean": torch.tensor(0.25)},
    )


def share(whole: State, rank: int, ranks: int, fill: bool, width: int | None = None) -> State:
    """A rank's state where `width` ranks (None: all) split the classes and the others replicate them."""
    width = width or ranks
    mine = split_range(CLASSES, width, rank % width)
    part = State(
        whole.rows_SD[mine.start : mine.stop].clone(),
        {name: slot[mine.start : mine.stop].clone() for name, slot in whole.row_slots.items()},
        mine.start,
        {k: v.clone() for k, v in whole.backbone.items()},
        {slot: {k: v.clone() for k, v in trained.items()} for slot, trained in whole.backbone_slots.items()},
        {k: v.clone() for k, v in whole.head_state.items()},
        replica=rank // width,
        num_replicas=ranks // width,
    )
    if not fill:
        for tensor in (*part.rows_tensors(slice(None)).values(), *part.whole_tensors().values()):
            tensor.zero_()
    return part


def require_rows(parts: list[State], whole: State) -> None:
    """Refuse when the parts' rows and slots, one after the other, are not those of `whole` bit for bit."""
    for name, wanted in whole.rows_tensors(slice(None)).items():
        assert torch.equal(torch.cat([part.rows_tensors(slice(None))[name] for part in parts]), wanted), name


def require_whole(part: State, whole: State) -> None:
    """Refuse when what is saved once is not that of `whole` bit for bit."""
    for name, wanted in whole.whole_tensors().items():
        assert torch.equal(part.whole_tensors()[name], wanted), name


def meta(step: int, ranks: int, **changes: Any) -> Meta:
    return replace(Meta(step, CLASSES, DIM, "ab", ranks), **changes)


def save_on(
    rank: int,
    ranks: int,
    run: Path,
    steps: list[int],
    keep: int,
    keep_every: int | None = None,
    width: int | None = None,
) -> None:
    saver = Saver(run, dist.group.WORLD, keep, keep_every)
    for step in steps:
        saver.begin(share(truth(), rank, ranks, fill=True, width=width), meta(step, ranks))
        saved = saver.finish()
        assert saved is not None and saved.error is None, saved


def load_on(rank: int, ranks: int, run: Path, step: int, width: int | None = None) -> State:
    state = share(truth(), rank, ranks, fill=False, width=width)
    checkpoint.load(run, step, state, meta(step, ranks))
    return state


@pytest.mark.parametrize(("saved", "loaded"), [(1, 1), (1, 2), (2, 3), (3, 1), (3, 2)])
def test_any_ranks_to_any_ranks(tmp_path: Path, saved: int, loaded: int) -> None:
    run_ranks(save_on, saved, tmp_path, [4], 1)
    parts = run_ranks(load_on, loaded, tmp_path, 4)
    whole = truth()
    require_rows(parts, whole)
    for part in parts:
        require_whole(part, whole)
    _, alone = load_backbone(tmp_path)
    assert alone.keys() == whole.backbone.keys()
    assert all(torch.equal(alone[k], whole.backbone[k]) for k in whole.backbone)


@pytest.mark.parametrize(
    ("saved", "loaded"), [((4, 2), (3, 3)), ((2, 1), (4, 2)), ((3, 3), (2, 1))], ids=["4/2-3/3", "2/1-4/2", "3/3-2/1"]
)
def test_replicas_write_every_row_once_and_load_into_any_layout(
    tmp_path: Path, saved: tuple[int, int], loaded: tuple[int, int]
) -> None:
    written = [name for names in run_ranks(save_in_small_blocks, saved[0], tmp_path, saved[1]) for name in names]
    assert len(written) == len(set(written)), "two ranks wrote the same file"
    files = sorted(RunFolder(tmp_path).checkpoint(4).glob("rows-*"))
    covered = [number for f in files for number in range(*map(int, f.stem.split("-")[1:]))]
    assert covered == list(range(CLASSES)), "a row was written twice or not at all"
    assert len(files) > saved[1], "one block a rank: the replicas shared nothing"
    parts = run_ranks(load_on, loaded[0], tmp_path, 4, loaded[1])
    whole = truth()
    for first in range(0, loaded[0], loaded[1]):  # every replica has all rows
        group = parts[first : first + loaded[1]]
        require_rows(group, whole)


def save_in_small_blocks(rank: int, ranks: int, run: Path, width: int) -> list[str]:
    saver_module.BLOCK_BYTES = 2 * (2 * DIM + 1) * 4  # two rows a file
    save_on(rank, ranks, run, [4], 1, None, width)
    return list(saver_module.own_files(share(truth(), rank, ranks, fill=True, width=width), rank == 0))


ROWS = 60_000


def big_state(rank: int, ranks: int) -> tuple[State, Meta]:
    mine = split_range(ROWS, ranks, rank)
    rows = torch.arange(ROWS * 64, dtype=torch.float32).view(ROWS, 64)[mine.start : mine.stop]
    return State(rows.clone(), {"momentum": rows + 0.5}, mine.start, {}, {}), meta(
        1, ranks, num_classes=ROWS, embedding_dim=64
    )


def save_big(rank: int, ranks: int, run: Path) -> None:
    saver = Saver(run, dist.group.WORLD, 1)
    saver.begin(*big_state(rank, ranks))
    saved = saver.finish()
    assert saved is not None and saved.error is None


def bytes_read_for_load(rank: int, ranks: int, run: Path) -> tuple[int, bool]:
    state, wanted = big_state(rank, ranks)
    rows = state.rows_SD.clone()
    state.rows_SD.zero_()
    before = bytes_read()
    checkpoint.load(run, 1, state, wanted)
    return bytes_read() - before, torch.equal(rows, state.rows_SD)


def bytes_read() -> int:
    """What this process has asked to read so far, cached or not (Linux)."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.parametrize("saved", [1, 2])
def test_a_rank_reads_its_own_rows_and_no_others(tmp_path: Path, saved: int) -> None:
    run_ranks(save_big, saved, tmp_path)
    own = 2 * (ROWS // 3) * 64 * 4
    for read, right in run_ranks(bytes_read_for_load, 3, tmp_path):
        assert right
        assert own <= read < own * 1.01, f"read {read} bytes for rows of {own}"


def test_the_newest_and_the_first_are_kept(tmp_path: Path) -> None:
    run_ranks(save_on, 1, tmp_path, [0, 10, 20, 30], 2)
    assert checkpoint.complete_steps(tmp_path) == [0, 20, 30]
    with pytest.raises(CheckpointError, match=r"got step 10, wanted one of \[0, 20, 30\]"):
        load_backbone(tmp_path, 10)


def test_every_nth_is_kept_for_good(tmp_path: Path) -> None:
    run_ranks(save_on, 2, tmp_path, [0, 10, 20, 30, 40, 50], 2, 20)
    assert checkpoint.complete_steps(tmp_path) == [0, 20, 40, 50]


def newest_on(rank: int, ranks: int, run: Path) -> int | str | None:  # noqa: ARG001
    try:
        return newest_whole(run, dist.group.WORLD)
    except CheckpointError as error:
        return str(error)


def harm(folder: Path, how: str) -> None:
    rows = sorted(folder.glob("rows-*"))[-1]
    if how == "flipped bit":
        content = bytearray(rows.read_bytes())
        content[-1] ^= 1
        rows.write_bytes(content)
    elif how == "cut short":
        rows.write_bytes(rows.read_bytes()[:-1])
    elif how == "file gone":
        (folder / "backbone.safetensors").unlink()
    else:
        (folder / "meta.json").write_text("{")


@pytest.mark.parametrize("how", ["flipped bit", "cut short", "file gone", "torn meta.json"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, how: str) -> None:
    run_ranks(save_on, 2, tmp_path, [10, 20], 3)
    assert run_ranks(newest_on, 3, tmp_path) == [20, 20, 20]
    harm(RunFolder(tmp_path).checkpoint(20), how)
    (fault,) = damage(RunFolder(tmp_path).checkpoint(20))
    words = {"flipped bit": "damaged: got SHA-256", "cut short": "bytes, wanted", "file gone": "No such file"}
    assert words.get(how, "meta.json: not readable") in fault
    assert "step-00000020" in fault
    assert run_ranks(newest_on, 3, tmp_path) == [10, 10, 10]
    harm(RunFolder(tmp_path).checkpoint(10), how)
    for text in run_ranks(newest_on, 2, tmp_path):
        assert "checkpoints: got [10, 20], all of them damaged, wanted one whole" in text


def newest_where_each_rank_has_its_own_folder(rank: int, ranks: int, run: Path) -> int | str | None:
    return newest_on(rank, ranks, run if rank == 0 else run / "elsewhere")


def test_a_folder_that_is_not_shared_is_reported(tmp_path: Path) -> None:
    run_ranks(save_on, 2, tmp_path, [10], 3)
    for text in run_ranks(newest_where_each_rank_has_its_own_folder, 2, tmp_path):
        assert "sees checkpoints [], rank 0 on " in text
        assert "sees [10]; wanted one folder that all hosts share" in text


def save_on_a_full_disk(rank: int, ranks: int, run: Path) -> list[str | None]:
    saver = Saver(run, dist.group.WORLD, 1)
    outcomes = []
    for step in (10, 20, 30):
        if rank == 1:  # from 20 on, this rank's disk takes no more than 100 bytes a file; later there is room again
            limit = 100 if step == 20 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        saver.begin(share(truth(), rank, ranks, fill=True), meta(step, ranks))
        saved = saver.finish()
        assert saved is not None and saved.step == step
        outcomes.append(saved.error)
        if step == 20:
            assert checkpoint.complete_steps(run) == [10], "the last good one went, or a bad one stayed"
            assert damage(RunFolder(run).checkpoint(10)) == []
            assert rank != 0 or not (run / "checkpoints" / "step-00000020.partial").exists()
    return outcomes


def test_a_full_disk_costs_the_save_and_nothing_else(tmp_path: Path) -> None:
    for outcome in run_ranks(save_on_a_full_disk, 2, tmp_path):
        assert outcome[0] is None and outcome[2] is None
        assert outcome[1] is not None and outcome[1].startswith("rank 1 on ") and "File too large" in outcome[1]
    assert checkpoint.complete_steps(tmp_path) == [30]


def test_what_an_interrupted_save_left_is_swept_and_a_whole_one_taken(tmp_path: Path) -> None:
    run_ranks(save_on, 1, tmp_path, [10, 20], 2)
    whole = RunFolder(tmp_path).checkpoint(20)
    whole.rename(whole.with_name(whole.name + ".partial"))  # killed just before the rename
    torn = RunFolder(tmp_path).checkpoint(30)
    torn.with_name(torn.name + ".partial").mkdir()
    assert checkpoint.complete_steps(tmp_path) == [10]
    sweep(tmp_path)
    assert checkpoint.complete_steps(tmp_path) == [10, 20]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000020"]


def change_while_saving(rank: int, ranks: int, run: Path) -> None:
    state = share(truth(), rank, ranks, fill=True)
    saver = Saver(run, dist.group.WORLD, 1)
    saver.begin(state, meta(4, ranks))
    for tensor in (state.rows_SD, *state.backbone.values()):
        tensor.zero_()
    assert saver.finish() is not None
    assert saver.poll() is None


def test_what_training_changes_meanwhile_is_not_saved(tmp_path: Path) -> None:
    run_ranks(change_while_saving, 2, tmp_path)
    parts = run_ranks(load_on, 1, tmp_path, 4)
    assert torch.equal(parts[0].rows_SD, truth().rows_SD)
    assert torch.equal(parts[0].backbone["conv.weight"], truth().backbone["conv.weight"])


def test_a_half_written_checkpoint_does_not_exist(tmp_path: Path) -> None:
    run_ranks(save_on, 1, tmp_path, [10], 2)
    torn = RunFolder(tmp_path).checkpoint(20)
    torn.with_name(torn.name + ".partial").mkdir()
    RunFolder(tmp_path).checkpoint(30).mkdir()  # no meta.json
    assert checkpoint.complete_steps(tmp_path) == [10]


def load_other(rank: int, ranks: int, run: Path, changes: dict[str, object]) -> str:
    state = share(truth(), rank, ranks, fill=False)
    if "backbone" in changes:
        state.backbone["other.weight"] = torch.zeros(2)
    if "head_state" in changes:
        state.head_state["deviation"] = torch.zeros(2)
    if "slots" in changes:
        state.row_slots = {"exp_avg": state.rows_SD, "exp_avg_sq": state.rows_SD}
    if {"backbone", "head_state", "slots"} & changes.keys():
        changes = {}
    try:
        checkpoint.load(run, 4, state, meta(4, ranks, **changes))
    except CheckpointError as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"identities_sha256": "cd"},
            "identities_sha256: got cd, wanted ab as saved: the shards name other identities",
        ),
        ({"num_classes": 12}, "num_classes: got 12, wanted 11 as saved"),
        ({"backbone": 1}, "another backbone: missing ['backbone.other.weight'], not wanted nothing"),
        ({"head_state": 1}, "another margin: missing ['head.deviation'], not wanted nothing"),
        (
            {"slots": 1},
            "slots: got ['exp_avg', 'exp_avg_sq'], wanted ['momentum', 'count'] as saved: another optimizer; start",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    run_ranks(save_on, 1, tmp_path, [4], 1)
    (got,) = run_ranks(load_other, 1, tmp_path, changes)
    assert message in got


def test_a_parameter_frozen_since_needs_no_slots_and_one_trained_since_does(tmp_path: Path) -> None:
    run_ranks(save_on, 1, tmp_path, [4], 1)
    frozen = share(truth(), 0, 1, fill=False)
    frozen.backbone_slots = {"momentum": {}, "count": {}}
    checkpoint.load(tmp_path, 4, frozen, meta(4, 1))
    assert torch.equal(frozen.backbone["conv.weight"], truth().backbone["conv.weight"])
    trained = share(truth(), 0, 1, fill=False)
    trained.backbone_slots["momentum"]["bn.num"] = torch.tensor(0)
    with pytest.raises(CheckpointError, match=r"another backbone: missing \['momentum.bn.num'\], not wanted nothing"):
        checkpoint.load(tmp_path, 4, trained, meta(4, 1))


# --- a run of before: written by the code that had format 2, and SGD alone ---

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


@pytest.mark.parametrize(("number", "message"), [(1, "got 1"), (4, "got 4"), (None, "got None")])
def test_another_format_is_refused_with_those_that_are_read(tmp_path: Path, number: object, message: str) -> None:
    folder = RunFolder(tmp_path).checkpoint(3)
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"format": number}))
    with pytest.raises(CheckpointError, match=f"meta.json: format: {message}, wanted 2 or 3"):
        checkpoint.read_meta(folder)
