"""Weights of elsewhere become a run's folder, which loads, exports and is started from as a run of ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.backbones.iresnet import IResNetBackbone
from pipeline.evaluation.embedding.feeding import Given
from pipeline.evaluation.embedding.trained import load_trained
from pipeline.evaluation.embedding.weights import load_weights
from pipeline.run.checkpoint import read_rows
from pipeline.run.folder import RunFolder
from pipeline.run.tensor_file import TensorFile
from pipeline.run.whole import damage
from pipeline.training.inherit import match, old_identities
from stages.import_weights import main

SIZE, DIM, CLASSES = (16, 16), 6, 7
ROWS_CD = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What arcface_torch leaves of a training on two ranks, and the names of its classes."""
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    network = IResNetBackbone(name="iresnet18", embedding_dim=DIM).build(SIZE)
    network(torch.randn(4, 3, *SIZE))  # batch norms that have seen something
    for rank, part in enumerate(ROWS_CD.tensor_split(2)):
        content = {"state_dict_backbone": network.state_dict(), "state_dict_softmax_fc": {"weight": part.clone()}}
        torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")
    (folder / "people.txt").write_text("".join(f"person {number}\n" for number in range(CLASSES)))
    return folder


@pytest.fixture
def imported(tmp_path: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Import into ``tmp_path / "run"`` with these options; the exit code."""

    def run(*options: object) -> int:
        command = ["import_weights.py", theirs / "checkpoint_gpu_0.pt", tmp_path / "run", "--network", "iresnet18"]
        monkeypatch.setattr(sys, "argv", [str(part) for part in [*command, "--size", "16x16", *options]])
        return main()

    return run


@pytest.mark.parametrize("flags", [(), ("--channels", "BGR", "--scale", "0.01", "0.02", "0.03")])
def test_the_run_embeds_as_the_weights_do(
    tmp_path: Path, theirs: Path, imported: Callable[..., int], flags: tuple[str, ...]
) -> None:
    assert imported(*flags) == 0
    given = Given(SIZE, "BGR", None, (0.01, 0.02, 0.03)) if flags else Given(SIZE)
    source = load_weights(theirs / "checkpoint_gpu_0.pt", "iresnet18", given)
    trained = load_trained(tmp_path / "run", None)
    images = (torch.randint(0, 256, (3, 3, *SIZE)) - 127.5) / 128
    with torch.no_grad():
        wanted, found = source.module(images), trained.module(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert (trained.name, trained.step, trained.image_size) == ("iresnet18", 0, SIZE)
    facts = json.loads(RunFolder(tmp_path / "run").facts.read_text())
    assert facts["imported"]["input_there"]["channels"] == ("BGR" if flags else "RGB")


def test_rows_go_by_the_names_of_a_list(tmp_path: Path, theirs: Path, imported: Callable[..., int]) -> None:
    files = sorted(theirs.glob("*.pt"), reverse=True)
    assert imported("--identities", theirs / "people.txt", "--rows", *files) == 0
    run = tmp_path / "run"
    assert damage(RunFolder(run).checkpoint(0)) == []
    old_rows = match(old_identities(run, 0), ["somebody new", "person 6", "person 0"])
    assert old_rows.tolist() == [-1, 6, 0]
    for classes in (range(7), range(3, 5)):
        blocks = list(read_rows(RunFolder(run).checkpoint(0), classes))
        assert torch.equal(torch.cat([rows for _, rows in blocks]), ROWS_CD[classes.start : classes.stop])


def test_rows_beyond_the_names_are_left_out_and_names_beyond_the_rows_refused(
    tmp_path: Path, theirs: Path, imported: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{number}\n" for number in range(CLASSES + 1)))
    assert imported("--identities", names, "--rows", *theirs.glob("*.pt")) == 65
    assert "identities: got 8 names for 7 rows" in capsys.readouterr().err
    names.write_text("".join(f"{number}\n" for number in range(CLASSES - 1)))  # and the folder takes it now
    assert imported("--identities", names, "--rows", *theirs.glob("*.pt")) == 0
    assert old_identities(tmp_path / "run", 0) == [str(number) for number in range(CLASSES - 1)]
    written = RunFolder(tmp_path / "run").checkpoint(0).glob("rows-*")
    rows = 0
    for file in written:
        with TensorFile(file) as tensors:
            rows += len(tensors.read("rows"))
    assert rows == CLASSES - 1
    assert imported() == 65
    assert "holds a run; wanted a folder of another name" in capsys.readouterr().err


def test_what_cannot_be_imported_is_one_line(imported: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--mean", "120"], "input: got mean [120.0], NCHW, float32, wanted mean 127.5"),
        (["--rows", "a.pt"], "--rows and --identities: got one without the other"),
        (["--size", "32x32"], "weights do not fit iresnet18 at 32 × 32"),
    ):
        assert imported(*options) == 65
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
