"""People in both sets: candidates as by brute force, decisions that survive, faults named."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.protocols.overlap import (
    NEAREST,
    Candidate,
    excluded_people,
    find_candidates,
    merge,
    read_decisions,
    write_decisions,
)

HEADER = "train_person\ttest_person\tsimilarity\tdecision\n"


def test_candidates_are_those_of_a_float64_brute_force() -> None:
    generator = np.random.default_rng(0)
    train, test = (generator.normal(size=(count, 6)) for count in (40, 15))
    train, test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    train[3] = test[2] = 0  # nobody could be decoded
    expected = []
    for j in range(15):
        scores = sorted(((float(train[i] @ test[j]), i) for i in range(40)), reverse=True)[:NEAREST]
        expected += [(f"a{i}", f"b{j}", score) for score, i in scores if score > 0.3 and i != 3]
    expected.sort(key=lambda pair: -pair[2])
    names = [f"a{i}" for i in range(40)], [f"b{j}" for j in range(15)]
    found = find_candidates(train.astype(np.float32), names[0], test.astype(np.float32), names[1], 0.3)
    assert [(pair.train, pair.test) for pair in found] == [pair[:2] for pair in expected]
    np.testing.assert_allclose([pair.similarity for pair in found], [pair[2] for pair in expected], atol=6e-5)
    assert find_candidates(train[3:4], ["a"], test, names[1], 0.0) == []


def test_decisions_are_kept_and_completed(tmp_path: Path) -> None:
    decided = [
        Candidate("ann", "anna", 0.7, "same"),
        Candidate("bob", "rob", 0.6, "different"),
        Candidate("eve", "eva", 0.5),  # still open, and no candidate any more
    ]
    file = tmp_path / "decisions.tsv"
    write_decisions(file, decided)
    assert read_decisions(file) == decided
    found = [Candidate("ann", "anna", 0.65), Candidate("joe", "jo", 0.9)]
    assert merge(found, read_decisions(file)) == [
        Candidate("joe", "jo", 0.9),
        Candidate("ann", "anna", 0.65, "same"),
        Candidate("bob", "rob", 0.6, "different"),
    ]
    assert excluded_people(file) == {"anna"}


def test_an_editor_may_strip_the_last_tab(tmp_path: Path) -> None:
    file = tmp_path / "decisions.tsv"
    file.write_text(HEADER + "ann\tanna\t0.7\n\nbob\trob\t0.6\t same \r\n")
    assert [pair.decision for pair in read_decisions(file)] == ["", "same"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"got the header '', wanted train_person, test_person"),
        ("a\tb\n", r"got the header 'a\\tb', wanted train_person"),
        (HEADER + "ann\tanna\n", r"line 2: got 2 values, wanted 4"),
        (HEADER + "ann\tanna\t0.5\tyes\n", r"line 2: decision: got 'yes', wanted same, different or nothing"),
        (HEADER + "ann\tanna\t0.5\t\nbob\tb\tx\t\n", r"line 3: similarity: got 'x', wanted a number"),
    ],
)
def test_a_faulty_decision_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "decisions.tsv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_decisions(file)
    assert str(file) in str(caught.value)
    with pytest.raises(ValueError, match=r"none.tsv: cannot be read"):
        read_decisions(tmp_path / "none.tsv")


def test_decisions_pass_through_an_editor_and_names_may_have_any_letter(tmp_path: Path) -> None:
    """A spreadsheet puts a byte order mark before UTF-8; a name may have what some take for the end of a line."""
    file = tmp_path / "decisions.tsv"
    decided = [Candidate("zoë\u2028k.", "bo\x85b", 0.7, "same")]
    write_decisions(file, decided)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_decisions(file) == decided
    file.write_bytes(HEADER.encode() + "zoë\tbob\t0.7\tsame\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"decisions.tsv, line 2: got byte 0xeb, wanted UTF-8"):
        read_decisions(file)
