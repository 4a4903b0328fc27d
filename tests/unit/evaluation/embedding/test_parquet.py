"""The Parquet of embeddings: every row, in order, whatever the batches; complete or absent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from pipeline.evaluation.embedding import parquet  # noqa: E402
from pipeline.evaluation.embedding.parquet import read_embeddings, write_embeddings  # noqa: E402


@pytest.mark.parametrize("batch", [1, 3, 8, 50])
def test_rows_come_back_in_order(tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_OF_GROUP", 8)
    rows = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    paths = [f"p{i % 4}/{i}.jpg" for i in range(20)]
    file = tmp_path / "out" / "e.parquet"
    write_embeddings(file, paths, (rows[i : i + batch] for i in range(0, 20, batch)), {"step": "7"})
    table = pq.read_table(file)
    assert table.column("path").to_pylist() == paths
    assert table.column("identity").to_pylist() == [f"p{i % 4}" for i in range(20)]
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), np.float32), rows)
    assert table.schema.metadata[b"step"] == b"7"
    assert [p.name for p in file.parent.iterdir()] == ["e.parquet"]


def test_a_failure_leaves_no_file_under_its_name(tmp_path: Path) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield np.ones((2, 3), np.float32)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_embeddings(tmp_path / "e.parquet", ["a", "b", "c"], failing(), {})
    with pytest.raises(ValueError, match=r"e.parquet: got 2 embeddings, wanted 3"):
        write_embeddings(tmp_path / "e.parquet", ["a", "b", "c"], [np.ones((2, 3), np.float32)], {})
    assert not (tmp_path / "e.parquet").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0, 3.0], [4.0]], "got 2 rows with 3, 1 numbers, wanted the same number in each row"),  # 2 on average
        ([[1.0, 2.0], None], "got 2 rows with 2, None numbers"),
        ([[], []], "got 2 rows with 0 numbers"),
        ([], "got 0 rows with no numbers"),
    ],
)
def test_rows_of_different_lengths_are_no_embeddings(tmp_path: Path, rows: list[Any], message: str) -> None:
    paths = [f"{number}.jpg" for number in range(len(rows))]
    kinds = pa.schema([("path", pa.string()), ("embedding", pa.list_(pa.float32()))])
    pq.write_table(pa.table({"path": paths, "embedding": rows}, schema=kinds), tmp_path / "made.parquet")
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "made.parquet")
