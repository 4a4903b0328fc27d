"""Files are whole or absent, whatever goes wrong, and an error names the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from pipeline.files import NotWrittenError, append, held, locked, named, remove_asides, sync, write_file, written_whole
from pipeline.shards.workers import each_done


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


@pytest.mark.parametrize("hold", [lambda path: locked(path / "lock"), held])
def test_an_error_while_a_lock_is_held_is_not_the_locks(
    tmp_path: Path, hold: Callable[[Path], AbstractContextManager[None]]
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), hold(tmp_path):
        (tmp_path / "nowhere").read_bytes()


def test_a_folder_that_was_held_is_as_before(tmp_path: Path) -> None:
    with held(tmp_path / "deep" / "new"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep"]
    (tmp_path / "deep" / "file").touch()
    (tmp_path / "deep" / ".lock").touch()  # of a holder that was killed
    with held(tmp_path / "deep"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", tmp_path / "deep" / "file"]


@pytest.mark.parametrize("link", [False, True])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, link: bool) -> None:
    if link:
        (tmp_path / "file").symlink_to("nowhere")
    else:
        (tmp_path / "file").touch()
    with pytest.raises(NotWrittenError, match="file: not written: File exists"):
        held(tmp_path / "file").__enter__()
    with pytest.raises(NotWrittenError, match=r"file/deep: not written: (Not a directory|File exists)"):
        held(tmp_path / "file" / "deep").__enter__()


def count_up(folder: Path, _job: int) -> int:
    """Add one to a number in a file outside the folder, which is empty whenever nobody holds it."""
    for _ in range(100):
        with held(folder):
            number = int(folder.with_name("number").read_text())
            folder.with_name("number").write_text(str(number + 1))
    return 0


def test_one_process_at_a_time_holds_a_folder(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    assert sum(each_done(partial(count_up, tmp_path / "folder"), range(4), 4)) == 0
    assert (tmp_path / "number").read_text() == "400"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_lines_are_appended_whole_after_a_torn_one(tmp_path: Path) -> None:
    append(tmp_path / "log", "one\n")
    append(tmp_path / "log", "two\nthree\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"
    os.truncate(tmp_path / "log", 10)
    append(tmp_path / "log", "four\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\nth\nfour\n"
    with pytest.raises(NotWrittenError, match="nowhere/log: not written: No such file"):
        append(tmp_path / "nowhere" / "log", "")


def test_the_innermost_name_stays(tmp_path: Path) -> None:
    outer, inner = named(tmp_path), named(tmp_path / "inner", "not removed")
    with pytest.raises(NotWrittenError, match="inner: not removed: why"), outer, inner:
        raise OSError(5, "why")


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_file(tmp_path / "exported", b"weights")
    finally:
        os.umask(before)
    assert stat.filemode((tmp_path / "exported").stat().st_mode) == "-rw-r--r--"


def test_what_is_left_of_a_file_goes_and_nothing_of_another(tmp_path: Path) -> None:
    names = [
        "a[1].csv.1.part",
        "a1.csv.1.part",
        "a[1].csv",
        "tar-1.tar.1.part",
        "tar-1.idx.1.part",
        "tar-10.tar.1.part",
    ]
    for name in names:
        (tmp_path / name).touch()
    remove_asides(tmp_path, "a[1].csv")
    remove_asides(tmp_path, "tar-1")
    assert {path.name for path in tmp_path.iterdir()} == {"a1.csv.1.part", "a[1].csv", "tar-10.tar.1.part"}
    remove_asides(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].csv"}
