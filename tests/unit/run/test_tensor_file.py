"""Files of tensors: what is written comes back, by rows too, and is what safetensors reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from pipeline.files import NotWrittenError
from pipeline.run.tensor_file import TensorFile, file_facts, write_tensors


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 3, generator=generator)
    return {
        "rows": rows,
        "half": rows.to(torch.bfloat16),
        "transposed": rows.T,
        "count": torch.tensor(41),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "double": rows.double(),
        "ids": torch.arange(5),
    }


def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", tensors())
    with TensorFile(tmp_path / "t") as file:
        assert file.names == list(tensors())
        for name, wanted in tensors().items():
            got = file.read(name)
            assert got.dtype == wanted.dtype
            assert torch.equal(got, wanted), name


def test_rows_are_read_alone(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", tensors())
    with TensorFile(tmp_path / "t") as file:
        for start, stop in ((0, 7), (2, 5), (6, 7), (3, 3)):
            assert torch.equal(file.read("rows", slice(start, stop)), tensors()["rows"][start:stop])


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    facts = write_tensors(tmp_path / "t", tensors())
    content = (tmp_path / "t").read_bytes()
    assert (facts.bytes, facts.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert file_facts(tmp_path / "t") == facts


def test_safetensors_reads_it(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    write_tensors(tmp_path / "t", tensors())
    loaded = load_file(tmp_path / "t")
    assert loaded.keys() == tensors().keys()
    assert all(torch.equal(loaded[name], wanted) for name, wanted in tensors().items())


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotWrittenError, match=r"none/t: not written: No such file or directory"):
        write_tensors(tmp_path / "none" / "t", tensors())


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02" + bytes(7) + b"{]"])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ValueError, match=r"/t: no header of tensors \("):
        TensorFile(tmp_path / "t")
    with pytest.raises(FileNotFoundError, match="none"):
        TensorFile(tmp_path / "none")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"rows": torch.ones(10, 4)})
    content = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(content[:-5])
    with TensorFile(tmp_path / "t") as file, pytest.raises(ValueError, match="rows: ends 5 bytes early"):
        file.read("rows")
