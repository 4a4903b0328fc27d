"""Names of identities: their spelling, and lists of them."""

from pathlib import Path

import pytest

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.names import read_names, usable_name

# Ideographic and no-break spaces, joiners and leading zeros belong to a name, also at its end.
KEPT = ["0000045", "佐藤\u3000健", "नी\u200dरज", "Ann\u00a0Lee", "健\u3000", " ann", "m.0_bob", "👩\u200d🔬"]


@pytest.mark.parametrize("name", KEPT)
def test_a_name_keeps_its_spelling(name: str) -> None:
    assert usable_name(name) == name


@pytest.mark.parametrize(
    ("name", "kept"),
    [("bob \t ", "bob"), ("\ufeffbob", "bob"), ("Zoe\u0308", "Zo\u00eb"), ("\u1112\u1161\u11ab", "한")],
)
def test_what_editors_leave_is_trimmed(name: str, kept: str) -> None:
    assert usable_name(name) == kept


@pytest.mark.parametrize("name", ["", " \t", "\ufeff", "a\nb", "a\x07b", "a\u2028b", "a\x85b", "\udcff"])
def test_what_does_not_fit_a_line_is_no_name(name: str) -> None:
    assert usable_name(name) is None


def test_a_list_has_a_name_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "drop.txt"
    path.write_bytes("\n".join([*KEPT, "", "last"]).encode())
    assert read_names(path) == [*KEPT, "last"]
    assert not caplog.records
    path.write_bytes("\ufeffann\r\n\r\nbob \t\r\nZoe\u0308\r\n".encode())
    assert read_names(path) == ["ann", "bob", "Zo\u00eb"]
    assert caplog.messages == [
        f"{path}: 3 names are kept without blanks behind them, without a byte-order mark, in Unicode's composed form"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"ann\nb\x07b\n", r"line 2: got 'b\\x07b', wanted a printable name"), (b"\xff\n", "not UTF-8")],
)
def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "l").write_bytes(content)
    with pytest.raises(ShardError, match=message):
        read_names(tmp_path / "l")
    with pytest.raises(ShardError, match="nowhere: No such file or directory"):
        read_names(tmp_path / "nowhere")
