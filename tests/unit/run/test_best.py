"""The best checkpoint: named in a file that is whole, kept by saves, and no danger to them when it is damaged."""

from pathlib import Path

import pytest

from pipeline.run.best import Best, kept_step, read_best, write_best
from pipeline.run.retention import superseded


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_best(tmp_path) is None
    assert kept_step(tmp_path) is None
    best = Best(2000, "lfw", 0.9876543210123)
    write_best(tmp_path, best)
    assert read_best(tmp_path) == best
    assert kept_step(tmp_path) == 2000
    assert [file.name for file in tmp_path.iterdir()] == ["best.json"]
    write_best(tmp_path, None)
    write_best(tmp_path, None)
    assert read_best(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 3}', '{"step": 3, "set": "a", "accuracy": 1, "x": 2}'])
def test_a_damaged_file_is_named_and_stops_no_save(tmp_path: Path, content: str) -> None:
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(ValueError, match=r"best\.json: .*, wanted step, set and accuracy"):
        read_best(tmp_path)
    assert kept_step(tmp_path) is None


def test_saves_keep_it_beside_the_newest() -> None:
    steps = [0, 10, 20, 30, 40, 50]
    assert superseded(steps, keep=2, keep_every=None) == [10, 20, 30]
    assert superseded(steps, keep=2, keep_every=None, best=20) == [10, 30]
    assert superseded(steps, keep=2, keep_every=30, best=10) == [20]
    assert superseded(steps, keep=2, keep_every=None, best=50) == [10, 20, 30]
