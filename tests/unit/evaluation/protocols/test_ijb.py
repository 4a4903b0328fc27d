"""IJB's files as they are distributed: read by name and by column, their faults named, and what is missing said."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.protocols.ijb import (
    read_detections,
    read_media,
    read_protocol,
    read_subjects,
    read_template_pairs,
)

POINTS = "1 2 3 4 5 6 7 8 9 10.5"


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_the_meta_files_are_read(tmp_path: Path) -> None:
    media = read_media(write(tmp_path, "media", "1.jpg 1 69544\n2.jpg 1 69544\n1.jpg 7 3\n"))
    assert (media.names.tolist(), media.template.tolist()) == (["1.jpg", "2.jpg", "1.jpg"], [1, 1, 7])
    odd = read_media(write(tmp_path, "odd", "\ufeffa b#1.jpg 1 2\n\n#c.jpg  3\t4\n"))
    assert (odd.names.tolist(), odd.template.tolist(), odd.medium.tolist()) == (["a b#1.jpg", "#c.jpg"], [1, 3], [2, 4])
    pairs = read_template_pairs(write(tmp_path, "pairs", "1 7 1\n7 1 0\n"))
    assert [column.tolist() for column in pairs] == [[1, 7], [7, 1], [True, False]]


def test_subjects_are_read_from_their_columns_wherever_they_stand(tmp_path: Path) -> None:
    text = 'FILENAME,SUBJECT_ID,"NOTE, LONG",TEMPLATE_ID\nimg/1.jpg,100,"a, b",9\nimg/2.jpg,100,,9\nimg/3.jpg,50,,4\n'
    found = read_subjects(write(tmp_path, "list", "\ufeff" + text))
    assert (found.template.tolist(), found.subject.tolist()) == ([4, 9], [50, 100])


def test_points_and_scores_are_found_by_image(tmp_path: Path) -> None:
    found = read_detections(write(tmp_path, "points", f"a b.jpg {POINTS} 0.9\n2.jpg {POINTS[::-1]} 0.25\n"))
    two = found.of(np.array(["2.jpg", "a b.jpg", "2.jpg"]))
    assert two.scores.tolist() == [0.25, 0.9, 0.25]
    assert two.points[1].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10.5]]
    twice = read_detections(write(tmp_path, "twice", f"2.jpg {POINTS} 1\n2.jpg {POINTS} 1\n"))
    assert twice.of(np.array(["2.jpg"])).scores.tolist() == [1], "one face that is listed twice is one"
    with pytest.raises(ValueError, match=r"points: got no line of 3.jpg and 1 more, wanted one for each"):
        found.of(np.array(["3.jpg", "2.jpg", "4.jpg"]))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("pairs", "1 2\n", r"bad: got 2 columns in 1 lines, wanted: template template label"),
        ("pairs", "1 2 x\n", r"bad: .*wanted lines of: template template label"),
        ("pairs", "1 2 3\n", r"bad: got a label that is neither 0 nor 1"),
        ("media", "", r"bad: got no lines, wanted lines of: name template media"),
        ("media", "a.jpg 1 2\nb.jpg 1\n", r"bad, line 2: got 'b.jpg 1', wanted: name template media"),
        ("media", "a.jpg 1 x\n", r"bad: .*'x', wanted lines of: name template media"),
        ("points", f"a.jpg {POINTS}\n", r"bad, line 1: got 'a.jpg 1 .*, wanted: name, x and y of five points, score"),
        ("points", f"a.jpg {POINTS} 1\na.jpg {POINTS} 0.5\n", r"bad: got two faces for a.jpg, wanted one"),
        ("subjects", "TEMPLATE_ID,SUBJECT\n1,2\n", r"bad: got no column SUBJECT_ID, wanted TEMPLATE_ID and SUBJECT_ID"),
        ("subjects", "TEMPLATE_ID,SUBJECT_ID\n1,2\n1\n", r"bad, line 3: got 1, None, wanted whole numbers"),
        ("subjects", "TEMPLATE_ID,SUBJECT_ID\n1,2\n1,3\n", r"bad: template 1: got two subjects, wanted one"),
        ("subjects", "TEMPLATE_ID,SUBJECT_ID\n", r"bad: got no templates, wanted some"),
    ],
)
def test_a_bad_meta_file_is_named(tmp_path: Path, kind: str, text: str, message: str) -> None:
    read = {
        "pairs": read_template_pairs,
        "media": read_media,
        "points": read_detections,
        "subjects": read_subjects,
    }[kind]
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, "bad", text))
    with pytest.raises(ValueError, match=r"none: cannot be read"):
        read(tmp_path / "none")


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """IJB-B with two subjects, one in each gallery, and no points."""
    write(tmp_path, "ijbb_face_tid_mid.txt", "1.jpg 1 1\n2.jpg 2 2\n3.jpg 3 3\n4.jpg 4 4\n")
    write(tmp_path, "ijbb_template_pair_label.txt", "1 2 1\n1 3 0\n")
    for name, rows in (("gallery_S1", "1,10"), ("gallery_S2", "3,30"), ("probe_mixed", "2,10\n4,30")):
        write(tmp_path, f"ijbb_1N_{name}.csv", f"TEMPLATE_ID,SUBJECT_ID\n{rows}\n")
    return tmp_path


def test_a_protocol_has_the_galleries_of_its_set(meta: Path) -> None:
    found = read_protocol(meta, "ijbb")
    assert {name: one.subject.tolist() for name, one in found.galleries.items()} == {"S1": [10], "S2": [30]}
    assert found.subject_of == {1: 10, 3: 30, 2: 10, 4: 30}
    assert (found.missing, found.detections) == ((), None)
    write(meta, "ijbb_name_5pts_score.txt", f"1.jpg {POINTS} 1\n")
    assert read_protocol(meta, "ijbb").detections is not None
    assert read_protocol(meta, "ijbb").digest == found.digest
    digests = {found.digest}
    for name, text in (
        ("ijbb_template_pair_label.txt", "1 2 1\n1 4 0\n"),
        ("ijbb_1N_gallery_S2.csv", "TEMPLATE_ID,SUBJECT_ID\n4,30\n"),
        ("ijbb_1N_probe_mixed.csv", "TEMPLATE_ID,SUBJECT_ID\n2,10\n"),
    ):
        write(meta, name, text)
        digests.add(read_protocol(meta, "ijbb").digest)
    assert len(digests) == 4
    write(meta, "ijbb_1N_probe_mixed.csv", "TEMPLATE_ID,SUBJECT_ID\n8,10\n")
    with pytest.raises(ValueError, match=r"probe_mixed.csv: template 8: got no images"):
        read_protocol(meta, "ijbb")


def test_what_is_missing_is_said_and_a_template_without_images_is_refused(meta: Path) -> None:
    (meta / "ijbb_1N_gallery_S2.csv").unlink()
    found = read_protocol(meta, "ijbb")
    assert list(found.galleries) == ["S1"]
    assert found.missing == (f"{meta}/ijbb_1N_gallery_S2.csv: not found: no 1:N search of it",)
    (meta / "ijbb_1N_probe_mixed.csv").unlink()
    found = read_protocol(meta, "ijbb")
    assert (found.galleries, found.probes) == ({}, None)
    assert found.missing[-1] == f"{meta}/ijbb_1N_probe_mixed.csv: not found: no 1:N search"
    write(meta, "ijbb_1N_gallery_S1.csv", "TEMPLATE_ID,SUBJECT_ID\n9,10\n")
    with pytest.raises(
        ValueError, match=r"gallery_S1.csv: template 9: got no images in .*face_tid_mid.txt, wanted some"
    ):
        read_protocol(meta, "ijbb")
    with pytest.raises(ValueError, match=r"ijbc_face_tid_mid.txt: cannot be read: No such file"):
        read_protocol(meta, "ijbc")
