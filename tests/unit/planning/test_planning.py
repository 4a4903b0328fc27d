"""The planner's arithmetic against sums written out by hand, a simulated ring, counted FLOPs, and its command line."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from cluster.stop import EXIT_REFUSED
from pipeline import planning
from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim import OPTIMIZERS
from pipeline.planning import GIB, RESERVED_BYTES, Job, Network
from tests.warm_stage import run_warm

STAGE = Path(__file__).parents[3] / "stages" / "plan.py"
ROOT = Path(__file__).parents[3]
JOB = Job(classes=1001, embedding_dim=8, global_batch=48, ranks=4, block=16, bf16=False, device="cpu")
NETWORK = Network(parameters=1000, activation_bytes=300, macs=7000, largest_parameter=200)

jobs = st.builds(
    lambda ranks, per_rank, accumulation, **rest: Job(
        global_batch=ranks * accumulation * per_rank, ranks=ranks, accumulation=accumulation, **rest
    ),
    classes=st.integers(64, 10**8),
    embedding_dim=st.sampled_from([64, 512]),
    ranks=st.integers(1, 64),
    per_rank=st.integers(1, 64),
    accumulation=st.integers(1, 3),
    block=st.sampled_from([128, 2048]),
    device=st.sampled_from(["cpu", "cuda"]),
    zero_stage=st.integers(0, 3),
    bf16=st.booleans(),
)
networks = st.builds(
    Network,
    parameters=st.integers(10**6, 10**8),
    activation_bytes=st.integers(10**5, 10**8),
    macs=st.integers(10**6, 10**10),
)


def total(moment: dict[str, int]) -> int:
    return sum(moment.values()) - RESERVED_BYTES


def test_memory_is_the_sum_written_out() -> None:
    # 251 rows of 8 numbers of 4 bytes on the fullest rank; 12 samples a rank, 48 in the head
    rows = 251 * 8 * 4
    blocks = 4 * (16 * (8 + 2 * 48) + 6 * 48 * 8)
    moments = planning.memory(JOB, NETWORK)
    assert total(moments["head"]) == 3 * rows + 2 * 4000 + 12 * 300 + blocks
    assert total(moments["backward"]) == 3 * rows + 3 * 4000 + 12 * 300
    # weight decay is added to a copy of a parameter's gradient, on a GPU of all; rows are updated in place
    assert total(moments["update"]) == 3 * rows + 3 * 4000 + 800
    assert total(planning.memory(replace(JOB, device="cuda"), NETWORK)["update"]) == 3 * rows + 4 * 4000


def test_zero_splits_slots_then_gradients_then_parameters() -> None:
    jobs = [replace(JOB, zero_stage=stage) for stage in (0, 1, 2, 3)]
    at = [planning.memory(job, NETWORK)["backward"] for job in jobs]
    assert [moment["network slots"] for moment in at] == [4000, 1000, 1000, 1000]
    # ZeRO 2 keeps its share and the parameter over its edge
    assert [moment["network gradient"] for moment in at] == [4000, 4000, 1000 + 800, 1000]
    assert [moment["network parameters"] for moment in at] == [4000, 4000, 4000, 1000]
    # a bucket is one parameter large, and ZeRO 2 copies it to send it
    assert [moment.get("ZeRO buckets", 0) for moment in at] == [0, 800, 800 + 800, 800]
    assert [sum(planning.memory(job, NETWORK)["update"].values()) - RESERVED_BYTES for job in jobs] == [
        3 * 251 * 8 * 4 + network for network in (3 * 4000 + 800, 4000 + 4 * 1000 + 1800, 4000 + 4 * 1000 + 1800, 6800)
    ]


def test_zero_keeps_more_between_micro_batches() -> None:
    """ZeRO 1 the whole gradient and its buckets, ZeRO 2 its sum beside the new one."""
    one, two = (planning.memory(replace(JOB, zero_stage=stage, accumulation=2), NETWORK) for stage in (1, 2))
    assert (one["head"]["network gradient"], one["head"]["ZeRO buckets"]) == (4000, 800)
    assert (two["head"]["network gradient"], two["backward"]["network gradient"]) == (1800, 3600)


def test_a_fused_update_holds_no_row_gradient() -> None:
    rows = 251 * 8 * 4
    held, fused = (planning.memory(replace(JOB, fused_update=fused), NETWORK) for fused in (False, True))
    assert total(held["head"]) - total(fused["head"]) == rows
    assert total(held["update"]) - total(fused["update"]) == rows
    assert not any("classifier gradient" in moment for moment in fused.values())


def test_accumulation_holds_one_row_gradient_and_the_networks_in_the_head() -> None:
    moments = planning.memory(replace(JOB, accumulation=2), NETWORK)
    assert moments["head"]["classifier gradient"] == moments["update"]["classifier gradient"]
    assert moments["head"]["network gradient"] == 4000
    assert moments["head"]["activations"] == 6 * 300


def test_bf16_halves_nothing_that_is_summed() -> None:
    fp32, bf16 = (planning.memory(replace(JOB, bf16=bf16), NETWORK)["head"] for bf16 in (False, True))
    assert bf16["classifier rows"] == fp32["classifier rows"]
    assert bf16["bf16 weights"] == 2000
    # beside a block's softmax stands a rounded copy of it instead of a transposed one
    assert fp32["classifier blocks"] - bf16["classifier blocks"] == 16 * 48 * 2


@settings(deadline=None)  # a busy machine
@given(jobs, networks)
def test_the_head_beyond_its_rows_does_not_grow_with_the_classes(job: Job, network: Network) -> None:
    assert job.block is not None
    many = replace(job, classes=job.classes + job.block * job.ranks)
    more = replace(many, classes=10 * many.classes)
    assert planning.head_block_bytes(many) == planning.head_block_bytes(more)
    assert planning.traffic(many, network) == planning.traffic(more, network)


@settings(deadline=None)  # a busy machine
@given(jobs, networks, st.integers(4, 80))
def test_the_largest_number_of_classes_fits_and_one_more_row_does_not(job: Job, network: Network, gib: int) -> None:
    largest = planning.largest_classes(job, network, gib * GIB)
    assert largest % job.ranks == 0
    if largest:
        assert planning.peak(replace(job, classes=largest), network)[1] <= gib * GIB
    assert planning.peak(replace(job, classes=largest + job.ranks), network)[1] > gib * GIB


@settings(deadline=None)  # a busy machine
@given(jobs, networks, st.integers(4, 80))
def test_a_change_lowers_the_peak_as_it_says(job: Job, network: Network, gib: int) -> None:
    now = planning.peak(job, network)[1]
    for change in planning.changes(job, network, gib * GIB):
        assert change.peak_bytes < now
        assert change.fits == (change.peak_bytes <= gib * GIB)


def test_changes_name_what_fits() -> None:
    job = Job(classes=29_000_000, embedding_dim=512, global_batch=1024, ranks=8, block=2048, zero_stage=1)
    network = Network(parameters=43_590_848, activation_bytes=30 * 2**20, macs=6 * 10**9)
    fitting = [change.what for change in planning.changes(job, network, 24 * GIB) if change.fits]
    assert fitting == ["fused_update: no row gradient is held", "ranks 16"]


def ring_bytes(ranks: int, numbers: int) -> int:
    """Bytes that rank 0 sends while a ring sums `numbers` fp32 and passes the sums on, chunk by chunk."""
    chunks = [numbers // ranks] * ranks
    sent = 0
    for step in range(2 * (ranks - 1)):
        sent += 4 * chunks[-step % ranks]
    return sent


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_traffic_is_that_of_rings(ranks: int) -> None:
    sent = planning.traffic(replace(JOB, ranks=ranks), NETWORK)
    per_rank = 48 // ranks
    assert sent["all-reduce of the network's gradient"] == ring_bytes(ranks, 1000)
    assert sent["all-reduces of the loss"] == ring_bytes(ranks, 4 * 48)
    assert sent["reduce-scatter of their gradients"] == ring_bytes(ranks, 48 * 8) // 2
    assert sent["all-gather of embeddings and labels"] == (ranks - 1) * per_rank * (8 * 4 + 8)


def test_zero_sends_more_the_more_it_splits() -> None:
    jobs = [replace(JOB, zero_stage=stage, accumulation=2) for stage in (0, 1, 2, 3)]
    passes = [planning.traffic(job, NETWORK)["all-reduce of the network's gradient"] / (3 * 1000) for job in jobs]
    # 3/4 of 4 bytes a parameter and pass: reduce, gather; reduce twice, gather; and gather four times, reduce twice
    assert passes == [2, 2, 3, 6]


def test_flops_are_those_that_the_head_and_a_network_do() -> None:
    head = ShardedHead(100, 8, ASoftmax(), options=HeadOptions(block=16)).double()
    x = torch.randn(48, 8, dtype=torch.float64, requires_grad=True)  # whose products torch counts
    with FlopCounterMode(display=False) as counter:
        head(x, torch.arange(48), step=0).loss.backward()
    job = replace(JOB, classes=100, ranks=1)
    assert planning.flops(job, NETWORK)["classifier"] == counter.get_total_flops()
    layer = torch.nn.Linear(100, 70, bias=False)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(12, 100, requires_grad=True)).sum().backward()
    assert planning.flops(JOB, NETWORK)["network"] == counter.get_total_flops()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 3}, "classes: got 3, wanted at least one for each of 4 ranks"),
        ({"global_batch": 50}, "global_batch: got 50, wanted a multiple of 4"),
        ({"accumulation": 5}, "global_batch: got 48, wanted a multiple of 20"),
        ({"zero_stage": 4}, "zero_stage: got 4, wanted 0, 1, 2 or 3"),
        ({"block": 0}, "block: got 0, wanted at least 1"),
        ({"slots": -1}, "slots: got -1, wanted at least 0"),
        ({"accumulation": 2, "fused_update": True}, "fused_update: got accumulation 2, wanted 1"),
    ],
)
def test_impossible_jobs_name_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(JOB, **change)


Plan = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """The stage's command in this process: flags -> exit code, stdout, stderr."""
    main = runpy.run_path(str(STAGE))["main"]

    def run(*flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plan.py", *flags])
        return main(), *capsys.readouterr()

    return run


DEMO = ("--recipe", str(ROOT / "stages/recipes/demo.yaml"))
LARGE = ("--identities", "29000000", "--ranks", "8", "--backbone", "sphereface4", "--global-batch", "512")


def test_the_command_says_what_fits(plan: Plan) -> None:
    code, out, _ = plan(*LARGE)
    assert (code, "\nfits: " in out) == (0, True)
    code, out, _ = plan(*LARGE, "--gpu-memory-gib", "20")
    assert (code, "\nDOES NOT FIT: " in out) == (1, True)
    assert "fused_update: no row gradient is held: " in out
    assert "no single change" not in out
    code, out, _ = plan(*LARGE, "--gpu-memory-gib", "2.2")
    assert "no single change is enough" in out


def test_the_size_of_images_is_said_and_shards_can_be_done_without(plan: Plan) -> None:
    recipe = ("--recipe", str(ROOT / "stages/recipes/ms1mv3_r50_arcface.yaml"), "--set", "data.shards=/absent")
    code, _, err = plan(*recipe)
    assert code == EXIT_REFUSED
    assert err.startswith("plan: /absent/manifest.json: not found, ") and err.endswith(
        ": --identities C --image-size H W\n"
    )
    at_112 = plan(*recipe, "--identities", "93431")[1].splitlines()
    at_96 = plan(*recipe, "--identities", "93431", "--image-size", "112", "96")[1].splitlines()
    assert at_96[0].endswith(" images of 112 × 96 a GPU at a time)")
    assert at_112[0].endswith(" images of 112 × 112 a GPU at a time)")
    assert at_96[2:] != at_112[2:]
    assert " images of 112 × 96 a GPU" in plan(*LARGE)[1], "as SphereFace's are"


def test_json_holds_the_same_numbers(plan: Plan) -> None:
    answer = json.loads(plan(*LARGE, "--json")[1])
    assert answer["fits"] is True
    assert answer["head_block"]["bytes"] == answer["memory_bytes"]["head"]["classifier blocks"]
    assert answer["peak_bytes"] == max(sum(parts.values()) for parts in answer["memory_bytes"].values())
    assert answer["network"]["parameters"] == 12_562_496


def test_the_command_plans_for_an_optimizer_by_its_name(plan: Plan) -> None:
    job = json.loads(plan(*LARGE, "--optimizer", "sgd", "--json")[1])["job"]
    assert (job["slots"], job["row_slots"]) == (1, 0)
    code, _, err = plan(*LARGE, "--optimizer", "lion")
    assert (code, err) == (2, f"plan: optimizer: got 'lion', wanted one of {', '.join(OPTIMIZERS)}\n")


def test_the_command_plans_for_a_margin_by_its_name(plan: Plan) -> None:
    answers = {name: json.loads(plan(*LARGE, "--margin", name, "--json")[1]) for name in ("arcface", "magface")}
    assert {name: answer["job"]["margin"]["name"] for name, answer in answers.items()} == {
        name: name for name in answers
    }
    plain, penalised = (answer["traffic_bytes"]["all-reduces of the loss"] for answer in answers.values())
    assert penalised == plain * 5 / 4
    assert "margin: got 'archface', wanted one of" in plan(*LARGE, "--margin", "archface")[2]


def test_the_command_prints_the_published_cases(plan: Plan) -> None:
    table = [line for line in plan("--published-cases")[1].splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 6
    assert any("2,059,906" in line for line in table)


def test_the_command_says_how_many_classes_a_block_has_and_what_it_takes(plan: Plan) -> None:
    few, many = (json.loads(plan(*LARGE, "--global-batch", batch, "--json")[1]) for batch in ("64", "4096"))
    assert few["head_block"]["classes"] > many["head_block"]["classes"] >= 1024
    for answer in (few, many):
        # a class's row as factors and its softmax in bf16, its gradient in fp32
        made = answer["head_block"]["classes"] * (2 * 512 + 2 * answer["job"]["global_batch"] + 4 * 512)
        assert made < answer["head_block"]["bytes"] < 1.5 * made + 48 * answer["job"]["global_batch"] * 512
    out = plan(*LARGE, "--global-batch", "64")[1]
    words = f"blocks: {few['head_block']['classes']:,} classes at a time, {few['head_block']['bytes'] / 2**20:,.1f} MiB"
    assert words in out


def test_a_name_of_arcface_torch_is_answered_with_ours(plan: Plan) -> None:
    assert plan("--identities", "100", "--backbone", "mbf")[2].endswith("; did you mean mobilefacenet?\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "plan: --identities: missing, wanted the number of classes"),
        (["--identities", "3"], "plan: classes: got 3, wanted at least one for each of 8 ranks"),
        (["--identities", "100", "--backbone", "vgg"], "plan: backbone: got 'vgg', wanted one of sphereface4,"),
        (["--identities", "100", "--image-size", "0", "9"], "plan: image_size: got (0, 9), wanted (height, width) of"),
        (
            [*DEMO, "--global-batch", "512", "--fused-update"],
            "plan: --global-batch, --fused-update: got it with --recipe",
        ),
        (["--identities", "100", "--set", "seed=2"], "plan: --set: got it without --recipe, wanted both"),
        ([*DEMO, "--image-size", "112", "112"], "plan: --image-size: got it without --identities, wanted both"),
        (["--identities", "100", "--host-gbit", "100"], "plan: --host-gbit: got it without --rates, wanted both"),
    ],
)
def test_the_command_refuses_in_one_line(flags: list[str], message: str, plan: Plan) -> None:
    code, _, err = plan(*flags)
    assert code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_the_command_runs_by_its_path_from_any_folder(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, STAGE, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--published-cases" in run.stdout


def test_the_table_in_the_docs_is_what_the_stage_prints() -> None:
    printed = run_warm(ROOT / "stages" / "plan.py", "--published-cases")
    assert printed.stdout
    assert printed.stdout in (ROOT / "docs" / "planning.md").read_text()


def test_a_checkpoint_holds_parameters_and_slots() -> None:
    job = Job(classes=1000, embedding_dim=64, global_batch=8, ranks=2, block=16)
    assert planning.checkpoint_bytes(job, Network(5000, 1, 1)) == 2 * 4 * (1000 * 64 + 5000)
    more = replace(job, slots=2, row_slots=1)
    assert planning.checkpoint_bytes(more, Network(5000, 1, 1)) == 3 * 4 * (1000 * 64 + 5000) + 4 * 1000


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_every_slot_is_held_at_every_moment(stage: int) -> None:
    one, three = (replace(JOB, zero_stage=stage, slots=slots, row_slots=slots - 1) for slots in (1, 3))
    rows, network = 251 * (2 * 8 + 2) * 4, 2 * (4000 if stage == 0 else 1000)
    before, after = planning.memory(one, NETWORK), planning.memory(three, NETWORK)
    assert before.keys() == after.keys()
    for moment, parts in before.items():
        assert total(after[moment]) - total(parts) == rows + network
    assert planning.head_bytes(three) - planning.head_bytes(one) == rows
