"""What needs a GPU runs at the first try where there is one: here it runs at small sizes on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.benchmarks import results
from tests.benchmarks.gpu import arcface_torch, backbones, head, reading, step
from tests.benchmarks.gpu.timing import Row, report
from tests.distributed.ranks import run_ranks
from tests.faces import ROOT

CPU = torch.device("cpu")


def test_the_gpu_tests_pass_on_the_cpu() -> None:
    """Those that start nothing: stages and ranks are started by the same functions in end_to_end/ and distributed/."""
    arguments = ["tests/gpu", "--device", "cpu", "--ignore", "tests/gpu/test_stage_gpu.py", "-p", "no:cacheprovider"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        *arguments,
        "-k",
        "not iresnet50 and (not test_every_margin or a_softmax)",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_heads_benchmark() -> None:
    shape = head.Shape(8, 70, 16)
    rows = head.measure(CPU, (shape,), rounds=1)
    assert len(rows) == len(head.contestants(shape, CPU)) + 1
    assert all(row["ms"] > 0 and row["× both floors"] > 0 for row in rows)


def test_a_table_has_every_column_and_marks_what_was_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    report("gpu_toy", [{"who": "a", "ms": 1234.5}, {"who": "b", "ms": float("nan"), "×": 0.1234}], why=1)
    printed = capsys.readouterr().out
    assert "| who | ms | × |\n| --- | ---: | ---: |\n| a | 1,234 | – |\n| b | – | 0.123 |" in printed
    written = json.loads((tmp_path / "gpu_toy.json").read_text())
    assert written["rows"][0] == {"who": "a", "ms": 1234.5} and written["rows"][1]["ms"] is None and written["why"] == 1
    assert "machine" in written


def test_the_peers_head_is_arcface() -> None:
    """Its loss and gradients, written by hand in float32, are those of our own margin in float64."""
    generator = torch.Generator().manual_seed(0)
    # many numbers: so that no cosine is large, since its softmax is cut off below 1e-30
    x, labels = torch.randn(6, 256, generator=generator), torch.randint(0, 5, (6,), generator=generator)
    x.requires_grad_()
    peer = arcface_torch.Head(5, 256, CPU)
    loss = peer(x, labels)
    loss.backward()
    cosine = torch.nn.functional.cosine_similarity(x[:, None].double(), peer.weight[None].double(), dim=2)
    angle = cosine.detach().arccos()
    angle[torch.arange(6), labels] += arcface_torch.ANGLE
    # as there, the margin moves the value, and the gradient is that of the cosine
    logits = arcface_torch.SCALE * (cosine + (angle.cos() - cosine).detach())
    want = torch.nn.functional.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)
    for value, found in ((x, x.grad), (peer.weight, peer.weight.grad)):
        assert found is not None
        torch.testing.assert_close(found, torch.autograd.grad(want, value, retain_graph=True)[0], rtol=1e-3, atol=1e-4)


def test_the_peers_network_has_the_parameters_of_ours() -> None:
    peer = arcface_torch.IResNet50(16, (32, 32))
    ours = backbones.Case("iresnet50", height=32, width=32, dim=16).build()
    assert sum(p.numel() for p in peer.parameters()) == sum(p.numel() for p in ours.parameters())


def trained(rank: int, ranks: int, folder: Path) -> tuple[list[Row], list[Row], dict[str, dict[str, float]]]:
    """The benchmarks that train, in a process of their own: DeepSpeed leaves traces in it."""
    assert (rank, ranks) == (0, 1)
    group, tiny = dist.group.WORLD, backbones.TINY
    alone = backbones.measure(folder / "backbones", CPU, group, (tiny,), rounds=1, side=64)
    return alone, *step.measure(folder / "step", CPU, group, tiny, classes=12, steps=2, warmup=1)


def test_the_backbones_and_steps_benchmarks(tmp_path: Path) -> None:
    ((alone, whole, parts),) = run_ranks(trained, 1, tmp_path)
    assert [str(row["backbone"]).rpartition(": ")[2] for row in alone] == [
        "arithmetic alone",
        "spherescale",
        "spherescale, deterministic",
        "the network in a bare loop",
    ]
    assert all(row["images/s"] > 0 for row in alone)
    assert len(whole) == 4
    assert all(row["× floor"] > 0 for row in whole)
    assert parts["spherescale"]["forward"] > 0


def test_the_readers_benchmark(tmp_path: Path) -> None:
    amount = reading.Amount(images=40, batch=4, batches=2, rounds=1, height=32, width=32)
    rows = reading.measure(tmp_path, CPU, amount, threads=1)
    assert len(rows) == 3 and all(row["images/s"] > 0 for row in rows)
    amount = reading.Amount(images=40, batch=4, batches=8, height=32, width=32)
    assert len(reading.bad_image_milliseconds(tmp_path, CPU, amount)) == 4
