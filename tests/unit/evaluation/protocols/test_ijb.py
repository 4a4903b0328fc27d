"""IJB's files are read by column, and their faults are named."""

from pathlib import Path

import pytest

from pipeline.evaluation.protocols.ijb import read_media, read_subjects, read_template_pairs


def test_the_meta_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "media").write_text("1.jpg 1 69544\n2.jpg 1 69544\n1.jpg 7 3\n")
    media = read_media(tmp_path / "media")
    assert (media.names.tolist(), media.template.tolist()) == (["1.jpg", "2.jpg", "1.jpg"], [1, 1, 7])
    (tmp_path / "odd").write_text("\ufeffa b#1.jpg 1 2\n\n#c.jpg  3\t4\n", encoding="utf-8")
    assert read_media(tmp_path / "odd").names.tolist() == ["a b#1.jpg", "#c.jpg"]
    assert read_media(tmp_path / "odd").medium.tolist() == [2, 4]
    (tmp_path / "pairs").write_text("1 7 1\n7 1 0\n")
    assert [column.tolist() for column in read_template_pairs(tmp_path / "pairs")] == [[1, 7], [7, 1], [True, False]]
    (tmp_path / "list").write_text(
        "TEMPLATE_ID,SUBJECT_ID,FILENAME\n9,100,img/1.jpg\n9,100,img/2.jpg\n4,50,img/3.jpg\n"
    )
    assert [column.tolist() for column in read_subjects(tmp_path / "list")] == [[4, 9], [50, 100]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n", r"bad: got 2 columns in 1 lines, wanted: template template label"),
        ("1 2 x\n", r"bad: .*wanted lines of: template template label"),
        ("1 2 3\n", r"bad: got a label that is neither 0 nor 1"),
    ],
)
def test_a_bad_meta_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_template_pairs(tmp_path / "bad")
    (tmp_path / "bad").write_text("a.jpg 1\n")
    with pytest.raises(ValueError, match=r"bad: .*wanted lines of: name template media"):
        read_media(tmp_path / "bad")
    with pytest.raises(ValueError, match=r"none: cannot be read"):
        read_media(tmp_path / "none")
