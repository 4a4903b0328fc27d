"""Lists of faces in every form that they are handed around in: who is on which image, and what is noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.protocols.face_lists import in_both, is_noise, read_faces, read_noise

PATHS = ["ann/1 #.jpg", "bob/x/2.jpg", "3.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in PATHS:
        (tmp_path / "faces" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / path).write_bytes(b"")
    return tmp_path / "faces"


def write(folder: Path, name: str, content: str) -> Path:
    (folder.parent / name).write_text(content, encoding="utf-8")
    return folder.parent / name


def write_matlab(folder: Path, **variables: Any) -> Path:
    file = folder.parent / "probe_img_ID_pairs.mat"
    pytest.importorskip("scipy.io").savemat(file, variables)
    return file


def column(names: list[str]) -> np.ndarray:
    """A cell array, as MATLAB stores names."""
    cells = np.empty((len(names), 1), object)
    cells[:, 0] = names
    return cells


def test_a_folder_gives_its_images_and_their_folders(folder: Path) -> None:
    faces = read_faces(folder)
    assert faces.paths == ("3.jpg", "ann/1 #.jpg", "bob/x/2.jpg")
    assert faces.people == (".", "ann", "bob/x")
    with pytest.raises(
        ValueError, match=r"--probes: got 1 of 3 images without a person, such as 3.jpg in .*, wanted a"
    ):
        faces.require_people("--probes")
    faces.among(np.array([False, True, True])).require_people("--probes")


def test_every_form_of_a_list_is_read(folder: Path) -> None:
    people = ("a", "7", "a")
    lines = "".join(f"{path}\t{person}\n" for path, person in zip(PATHS, people, strict=True))
    lists = [
        write(folder, "list.txt", "\ufeff" + lines + "\n"),
        write(folder, "features_list.json_1000000_1", "\n " + json.dumps({"id": people, "path": PATHS})),
        write_matlab(folder, probe_set=column(PATHS), probe_ids=column(list(people))),
    ]
    found = [read_faces(folder, file) for file in lists]
    for faces in found:
        assert (faces.paths, faces.people) == (tuple(PATHS), people)
        assert faces.digest == found[0].digest
    numbers = read_faces(folder, write_matlab(folder, set_of="x", probe_set=column(PATHS[:1]), probe_ids=np.uint16(4)))
    assert (numbers.paths, numbers.people) == (("ann/1 #.jpg",), ("4",))
    for name, text in (("plain", "\n".join(PATHS)), ("plain.json", json.dumps({"path": PATHS}))):
        faces = read_faces(folder, write(folder, name, text))
        assert (faces.paths, faces.people) == (tuple(PATHS), ("ann", "bob/x", "."))
        assert faces.digest != found[0].digest


def test_a_list_may_begin_with_images_that_are_gone(folder: Path) -> None:
    assert read_faces(folder, write(folder, "list", "gone.jpg\n3.jpg\n")).paths == ("gone.jpg", "3.jpg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list: got no images, wanted some"),
        ("a.jpg\tann\nb.jpg\n", r"list: got \['b.jpg'\], wanted path, tab, person in each line"),
        ("a.jpg\t\n", r"list: got \['a.jpg', ''\], wanted path, tab, person in each line"),
        ("a.jpg\nb.jpg\tbob\n", r"list: got \['b.jpg', 'bob'\], wanted a path in each line"),
        ("a.jpg\nb.jpg\n", r"list: names a.jpg and 1 more, wanted images below .*faces"),
        ('{"paths": []}', r"list: KeyError\('path'\), wanted"),
        ('{"path": ["3.jpg"], "id": []}', r"list: got 0 ids for 1 paths, wanted one for each"),
        ("{", r"list: JSONDecodeError"),
    ],
)
def test_a_faulty_list_is_named(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_faces(folder, write(folder, "list", text))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"none: cannot be read: No such file"):
        read_faces(folder, folder.parent / "none")


def test_a_faulty_matlab_file_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs.mat: got 2 ids for 1 names, wanted one for each"):
        read_faces(folder, write_matlab(folder, probe_set=column(PATHS[:1]), probe_ids=np.array([1, 2])))
    with pytest.raises(ValueError, match=r"pairs.mat: not a MATLAB list of images"):
        read_faces(folder, write_matlab(folder, names=column(PATHS)))
    with pytest.raises(ValueError, match=r"bad.mat: not a MATLAB list of images"):
        read_faces(folder, write(folder, "bad.mat", "no MATLAB"))


def test_noise_is_named_by_a_file_or_by_the_end_of_a_path(tmp_path: Path) -> None:
    (tmp_path / "facescrub").write_text("# noise\nann 1.png\n\nbob_2.png\n")
    (tmp_path / "megaface").write_text("0.9\t100/100@N/3.jpg\tblurred\n")
    noise = read_noise([tmp_path / "facescrub", tmp_path / "megaface"])
    assert noise == {"ann 1.png", "bob_2.png", "100/100@N/3.jpg"}
    paths = [
        "ann/ann 1.png",
        "ann/xann 1.png",
        "bob_2.png",
        "Flickr/100/100@N/3.jpg",
        "Flickr/200/100@N/3.jpg",
        "3.jpg",
    ]
    assert is_noise(paths, noise).tolist() == [True, False, True, True, False, False]
    assert is_noise([], noise).shape == (0,)
    with pytest.raises(ValueError, match="none: cannot be read"):
        read_noise([tmp_path / "none"])


def test_people_in_both_lists_are_found_but_not_those_of_no_folder(folder: Path) -> None:
    one = read_faces(folder)
    other = read_faces(folder, write(folder, "list", "3.jpg\tann\nann/1 #.jpg\teve\n"))
    assert in_both(one, other) == ["ann"]
    assert in_both(one, one) == ["ann", "bob/x"]
