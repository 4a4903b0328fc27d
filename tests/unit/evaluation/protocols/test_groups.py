"""A file of groups: found by image and by person, faults named with their line."""

from pathlib import Path

import pytest

from pipeline.evaluation.protocols.groups import NO_GROUP, read_groups

IMAGES = ["ann/1.jpg", "ann/2.jpg", "bob/1.jpg", "cem/1.jpg"]


def write(folder: Path, text: str) -> Path:
    file = folder / "groups.tsv"
    file.write_bytes(text.encode())
    return file


def test_a_group_is_of_an_image_or_of_a_person(tmp_path: Path) -> None:
    file = write(
        tmp_path, '\ufeffpath\tnote\tgroup\r\nann\t\tyoung\r\nann/2.jpg\tlater\told\r\nbob/\t\told\r\n"dan"\t\told\r\n'
    )
    found = read_groups(file, IMAGES)
    assert found.names == ["old", "young"]
    assert found.numbers(IMAGES).tolist() == [1, 0, 0, NO_GROUP]
    assert found.numbers(['"dan"/1.jpg']).tolist() == [0], "a name may have quotes"
    other = write(tmp_path, "path\tgroup\nann\tyoung\nzo\u2028e\told\n")
    assert read_groups(other, IMAGES).sha256 != found.sha256
    assert read_groups(other, IMAGES).numbers(["zo\u2028e/1.jpg"]).tolist() == [0], "which some take for two lines"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\tage\nann\told\n", r"got columns \['path', 'age'\], wanted path and group"),
        ("path\tgroup\nann\told\nbob\t\n", r"line 3: got path 'bob' and group '', wanted both"),
        ("path\tgroup\nann\n", r"line 2: got path 'ann' and group None, wanted both"),
        ("path\tgroup\nann\told\nann\tyoung\n", "line 3: got ann as young and as old, wanted one"),
        ("path\tgroup\ndan\told\n", "got 1 paths, none of an image of the pairs such as ann/1.jpg"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_groups(write(tmp_path, text), IMAGES)


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "groups.tsv").write_bytes(b"path\tgroup\nann\t\xff\n")
    with pytest.raises(ValueError, match=r"groups.tsv, line 2: got byte 0xff, wanted UTF-8"):
        read_groups(tmp_path / "groups.tsv", IMAGES)
    with pytest.raises(ValueError, match=r"none.tsv: cannot be read: No such file"):
        read_groups(tmp_path / "none.tsv", IMAGES)
