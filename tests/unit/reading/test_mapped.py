"""Mapped files: their bytes, no descriptor, read-only, and gone when nothing refers to them."""

from pathlib import Path

import pytest

from pipeline.reading.mapped import map_file


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(bytes(range(256)) * 40 + b"end")
    return path


def test_a_file_is_its_bytes_and_holds_no_descriptor(file: Path) -> None:
    before = descriptors()
    content = map_file(file)
    assert descriptors() == before
    assert content.tobytes() == file.read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        content[0] = 1


def test_a_map_lives_as_long_as_a_part_of_it(file: Path) -> None:
    content = map_file(file)
    part = content[5:10]
    del content
    assert mapped(file)
    assert part.tolist() == [5, 6, 7, 8, 9]
    del part
    assert not mapped(file)


def test_what_cannot_be_mapped_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        map_file(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(OSError, match=f"mmap: Invalid argument: .*{empty}"):
        map_file(empty)
