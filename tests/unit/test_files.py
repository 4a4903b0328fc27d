"""Files are whole or absent, whatever goes wrong, and an error names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.files import NotWrittenError, locked, named, sync, write_file, written_whole


def test_a_file_appears_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for synced in (True, False):
        write_file(tmp_path / "a", b"x" * 100, synced=synced)
        assert (tmp_path / "a").read_bytes() == b"x" * 100
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_in_mid_file_leaves_what_was_there(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"before")

    def stopped() -> None:
        with written_whole(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        stopped()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"before")]


@pytest.mark.parametrize(("path", "reason"), [("none/a", "No such file or directory"), ("a/b", "Not a directory")])
def test_errors_of_the_system_name_the_file(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "a").write_text("a file")
    file = tmp_path / path
    for attempt in (lambda: write_file(file, b""), lambda: sync(file), lambda: locked(file).__enter__()):
        with pytest.raises(NotWrittenError) as found:
            attempt()
        assert str(found.value).startswith(f"{file}: not ") and str(found.value).endswith(reason)


def test_the_innermost_name_stays(tmp_path: Path) -> None:
    outer, inner = named(tmp_path), named(tmp_path / "inner", "not removed")
    with pytest.raises(NotWrittenError, match="inner: not removed: why"), outer, inner:
        raise OSError(5, "why")
