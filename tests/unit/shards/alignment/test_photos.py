"""Photographs to crops: real faces end to end, whoever aligns them and however often one stops."""

import io
import json
import shutil
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.shards.alignment.detector import Face, detect
from pipeline.shards.alignment.photos import align_photo, align_photos
from pipeline.shards.alignment.similarity import Points, crop, reference_points
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.sources.detect import open_source
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.workers import each_done
from tests.detector import needs_detector, orl_faces
from tests.shards import write_tar_of


def orl_face(person: int, number: int = 1, scale: float = 1.0) -> Image.Image:
    path = orl_faces() / f"s{person}" / f"{number}.pgm"
    with Image.open(path) as image:
        return image.convert("RGB").resize((round(92 * scale), round(112 * scale)), Image.Resampling.BICUBIC)


def photograph(*faces: tuple[Image.Image, int, int], angle: float = 0) -> bytes:
    """Faces on a grey wall; JPEG."""
    wall = Image.new("RGB", (500, 400), (90, 90, 90))
    for face, x, y in faces:
        wall.paste(face, (x, y))
    buffer = io.BytesIO()
    wall.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(90, 90, 90)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@needs_detector
@pytest.mark.parametrize("size", [(112, 96), (112, 112)])
@pytest.mark.parametrize(("angle", "scale"), [(0, 1), (20, 1.5), (-15, 2.5)])
def test_landmarks_of_a_crop_lie_on_the_reference(size: tuple[int, int], angle: float, scale: float) -> None:
    image, what, face = align_photo(photograph((orl_face(1, scale=scale), 120, 60), angle=angle), size, 32)
    assert what == "aligned"
    assert face is not None and face.landmarks.shape == (5, 2)
    with Image.open(io.BytesIO(image)) as cut:
        assert (cut.height, cut.width) == size
        # The detector misses a face that fills its image, so the crop gets a margin.
        framed = Image.new("RGB", (300, 300), (90, 90, 90))
        framed.paste(cut, (100, 90))
    faces = detect(np.asarray(framed))
    assert len(faces) == 1
    distance = np.linalg.norm(faces[0].landmarks - (100, 90) - reference_points(*size), axis=1)
    assert distance.mean() < 5  # a person's own proportions, and the detector's error


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    images = {
        "ann/one.jpg": photograph((orl_face(1), 200, 140)),
        "ann/sideways.jpg": photograph((orl_face(1, 2), 200, 140), angle=15),
        "ann/two faces.jpg": photograph((orl_face(2), 30, 20), (orl_face(1, 3), 210, 150)),
        "bob/wall.jpg": photograph(),
        "bob/far.jpg": photograph((orl_face(3, scale=0.4), 230, 180)),
        "bob/near.png": photograph((orl_face(3), 200, 140)),
        "bob/broken.jpg": photograph()[:2000],
    }
    for name, data in images.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    return tmp_path / "photos"


def crops(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*.*")}


@needs_detector
def test_photographs_become_crops_and_a_list(photos: Path, tmp_path: Path) -> None:
    ends = align_photos(scan_folder(photos), tmp_path / "out")
    assert set(crops(tmp_path / "out")) == {
        "ann/one.jpg",
        "ann/sideways.jpg",
        "ann/two faces.jpg",
        "bob/near.png.jpg",
    }
    lines = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert [path for path, _ in lines] == ["path", "ann/two faces.jpg", "bob/broken.jpg", "bob/far.jpg", "bob/wall.jpg"]
    assert [what.partition(":")[0] for _, what in lines[1:]] == [
        "several faces, the nearest the centre taken",
        "unreadable",
        "tiny face",
        "no face",
    ]
    assert ends["aligned"] == 3
    assert sum(ends.values()) == 7


@needs_detector
def test_the_crops_do_not_depend_on_workers_or_on_a_stop(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scan_folder(photos)
    monkeypatch.setattr("pipeline.shards.alignment.photos.BATCH", 2)
    align_photos(source, tmp_path / "two", workers=2)

    def stop(_photos: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align_photos(source, tmp_path / "one", progress=stop)
    with pytest.raises(ShardError, match="holds crops with another size, min_face"):
        align_photos(source, tmp_path / "one", size=(112, 112), min_face=3)
    assert (tmp_path / "one" / ".progress" / "0.json").exists()
    (tmp_path / "one" / "ann" / "one.jpg.0123456789ab.part").write_bytes(b"half")
    align_photos(source, tmp_path / "one")
    assert crops(tmp_path / "one") == crops(tmp_path / "two")
    assert (tmp_path / "one.tsv").read_text() == (tmp_path / "two.tsv").read_text()
    before = crops(tmp_path / "one")
    assert align_photos(source, tmp_path / "one") == align_photos(source, tmp_path / "three")
    assert crops(tmp_path / "one") == before
    with pytest.raises(ShardError, match="holds crops with another min_face; choose another folder or remove it"):
        align_photos(source, tmp_path / "one", min_face=3)
    (tmp_path / "four").mkdir()
    (tmp_path / "four" / "thesis.tex").touch()
    with pytest.raises(ShardError, match="is not empty, wanted a new folder"):
        align_photos(source, tmp_path / "four")


@needs_detector
def test_parts_make_the_same_crops_and_list(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = scan_folder(photos)
    monkeypatch.setattr("pipeline.shards.alignment.photos.BATCH", 2)
    whole = align_photos(source, tmp_path / "whole")
    ends = [align_photos(source, tmp_path / "parts", part=(part, 3)) for part in (2, 0, 2)]
    assert not (tmp_path / "parts.tsv").exists()
    ends.append(align_photos(source, tmp_path / "parts", part=(1, 3)))
    assert ends[0] == ends[2]
    assert ends[0] + ends[1] + ends[3] == whole
    assert crops(tmp_path / "parts") == crops(tmp_path / "whole")
    assert (tmp_path / "parts.tsv").read_text() == (tmp_path / "whole.tsv").read_text()
    assert not (tmp_path / "parts" / ".progress").exists()


@needs_detector
@pytest.mark.parametrize("kind", ["CMYK", "WEBP", "BMP", "TIFF"])
def test_photographs_of_other_formats_give_nearly_the_same_crop(kind: str) -> None:
    with Image.open(io.BytesIO(photograph((orl_face(1), 200, 140)))) as photo:
        buffer = io.BytesIO()
        if kind == "CMYK":
            photo.convert("CMYK").save(buffer, "JPEG", quality=100)
        else:
            photo.save(buffer, kind, lossless=True)
        wanted, _, _ = align_photo(photograph((orl_face(1), 200, 140)), (112, 96), 32)
    found, what, _ = align_photo(buffer.getvalue(), (112, 96), 32)
    assert what == "aligned"
    with Image.open(io.BytesIO(found)) as one, Image.open(io.BytesIO(wanted)) as other:
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).mean() < 6


@needs_detector
def test_the_table_of_crops_is_a_source_that_has_the_landmarks(photos: Path, tmp_path: Path) -> None:
    align_photos(scan_folder(photos), tmp_path / "out")
    source = open_source(tmp_path / "out.csv")
    read = {one.key: one for one in source.read_many(np.arange(len(source.labels)))}
    assert {f"out/{path}": data for path, data in crops(tmp_path / "out").items()} == {
        key: one.image for key, one in read.items()
    }
    assert [source.identities[label] for label in source.labels] == ["ann", "ann", "ann", "bob"]
    for key, one in read.items():
        landmarks, box = np.array(one.fields["photo_landmarks"]), np.array(one.fields["photo_box"])
        assert one.fields["key"] == key.removeprefix("out/").replace(".png.jpg", ".png")
        assert (landmarks > box[:2]).all() and (landmarks < box[2:]).all()
        # The crop that these landmarks make of the photograph is the one that is there.
        with Image.open(photos / str(one.fields["key"])) as photo:
            again = crop(photo.convert("RGB"), landmarks, 112, 96)
        assert isinstance(one.image, bytes)
        with Image.open(io.BytesIO(one.image)) as there:
            assert np.abs(np.asarray(again, int) - np.asarray(there, int)).mean() < 4


@needs_detector
def test_photographs_of_any_source_become_crops(photos: Path, tmp_path: Path) -> None:
    """As from their folders: from a tar, whose samples have keys and fields of their own, and from a list."""
    align_photos(scan_folder(photos), tmp_path / "out")
    wanted = {(path.split("/")[0], data) for path, data in crops(tmp_path / "out").items()}
    members: list[tuple[str, bytes]] = []
    for number, path in enumerate(sorted(photos.glob("*/*"))):
        note = {"label": path.parent.name, "key": f"../{path.name}", "quality": number}
        members += [(f"{number}.jpg", path.read_bytes()), (f"{number}.json", json.dumps(note).encode())]
    write_tar_of(tmp_path / "photos.tar", members)
    align_photos(open_source(tmp_path / "photos.tar"), tmp_path / "of tar")
    assert {(path.split("/")[0], data) for path, data in crops(tmp_path / "of tar").items()} == wanted
    assert "ann/%2E.%2Fone.jpg" in crops(tmp_path / "of tar")
    source = open_source(tmp_path / "of tar.csv")
    found = {one.fields["key"]: one.fields["quality"] for one in source.read_many(np.arange(len(source.labels)))}
    assert found["../one.jpg"] == 0
    (tmp_path / "list.txt").write_text("".join(f"{path}\t{path.parent.name}\n" for path in photos.glob("*/*")))
    align_photos(open_source(tmp_path / "list.txt"), tmp_path / "of list", workers=2)
    assert {(path.split("/")[0], data) for path, data in crops(tmp_path / "of list").items()} == wanted


def test_two_photographs_with_one_crop_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("ann/1.jpg\tann\nann/1.jpg\tann\n1.jpg\tann\n")
    with pytest.raises(ShardError, match=r"ann/1\.jpg and 1\.jpg: got one crop, ann/1\.jpg, for two photographs"):
        align_photos(open_source(tmp_path / "list.txt"), tmp_path / "out")
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("ann/1.jpg", name)
    with pytest.raises(ShardError, match=r"ann/1\.jpg and ann/1\.jpg: got one crop, ann/1\.jpg, for two photographs"):
        align_photos(open_source(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_photograph_may_be_listed_twice_but_for_one_person(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("1.jpg\tann\n2.jpg\tann\n1.jpg\tann\ngone.jpg\tann\ngone.jpg\tann\n")
    align_photos(open_source(tmp_path / "list.txt"), tmp_path / "out")
    (tmp_path / "list.txt").write_text("1.jpg\tann\n2.jpg\tann\n1.jpg\tbob\n")
    with pytest.raises(ShardError, match=r"^1\.jpg: got several people of one photograph, wanted one"):
        align_photos(open_source(tmp_path / "list.txt"), tmp_path / "other")


@needs_detector
def test_new_and_changed_photographs_are_added_to_finished_crops(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.shards.alignment.photos.BATCH", 2)
    late = {name: (photos / name).read_bytes() for name in ("ann/one.jpg", "bob/far.jpg", "bob/near.png")}
    (photos / "ann/one.jpg").write_bytes(photograph((orl_face(9), 200, 140)))
    for name in ("bob/far.jpg", "bob/near.png"):
        (photos / name).unlink()
    (photos / "bob/gone.jpg").write_bytes(photograph((orl_face(5), 200, 140)))
    align_photos(scan_folder(photos), tmp_path / "out")
    first = crops(tmp_path / "out")
    began = json.loads((tmp_path / "out" / ".aligned.json").read_bytes())["began"]
    while time.time() <= began + 0.05:  # a file that changes within a tick of the clock has the time of before
        time.sleep(0.01)
    for name, data in late.items():
        (photos / name).write_bytes(data)
    for name in ("bob/gone.jpg", "bob/wall.jpg"):
        (photos / name).unlink()

    def stop(_photos: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align_photos(scan_folder(photos), tmp_path / "out", progress=stop)
    seen: list[int] = []
    ends = align_photos(scan_folder(photos), tmp_path / "out", progress=seen.append, part=(0, 1))
    assert sum(seen) == sum(ends.values()) == 3
    assert "2 photographs are not in the source any more; their crops stay" in caplog.text
    align_photos(scan_folder(photos), tmp_path / "whole")
    wanted = crops(tmp_path / "whole") | {"bob/gone.jpg": first["bob/gone.jpg"]}
    assert crops(tmp_path / "out") == wanted
    assert first["ann/one.jpg"] != wanted["ann/one.jpg"]
    assert (tmp_path / "out.tsv").read_text() == (tmp_path / "whole.tsv").read_text()
    table = (tmp_path / "out.csv").read_text().splitlines()
    anew = (tmp_path / "whole.csv").read_text().replace("whole/", "out/").splitlines()
    assert sorted(anew) == sorted(line for line in table if "gone" not in line)
    before = (tmp_path / "out.csv").stat().st_mtime_ns
    whole = align_photos(scan_folder(photos), tmp_path / "out", progress=seen.append)
    assert (sum(seen), whole) == (3, align_photos(scan_folder(photos), tmp_path / "whole"))
    assert (tmp_path / "out.csv").stat().st_mtime_ns == before


@needs_detector
def test_photographs_that_are_added_are_aligned_though_records_of_a_finished_plan_are_left(
    photos: Path, tmp_path: Path
) -> None:
    late = photos / "ann" / "one.jpg"
    content = late.read_bytes()
    late.unlink()

    def keep(_photos: int) -> None:
        shutil.copytree(tmp_path / "out" / ".progress", tmp_path / "records")

    align_photos(scan_folder(photos), tmp_path / "out", progress=keep)
    shutil.copytree(tmp_path / "records", tmp_path / "out" / ".progress")  # as a kill leaves them
    late.write_bytes(content)
    assert align_photos(scan_folder(photos), tmp_path / "out") == {"aligned": 1}
    assert "ann/one.jpg" in crops(tmp_path / "out")


@needs_detector
def test_a_photograph_that_lost_its_face_loses_its_crop(photos: Path, tmp_path: Path) -> None:
    align_photos(scan_folder(photos), tmp_path / "out")
    began = json.loads((tmp_path / "out" / ".aligned.json").read_bytes())["began"]
    while time.time() <= began + 0.05:
        time.sleep(0.01)
    (photos / "ann/one.jpg").write_bytes(photograph())
    assert align_photos(scan_folder(photos), tmp_path / "out") == {"no face": 1}
    assert "ann/one.jpg" not in crops(tmp_path / "out")
    assert "ann/one.jpg\tno face" in (tmp_path / "out.tsv").read_text()
    assert "ann/one.jpg" not in (tmp_path / "out.csv").read_text()


@needs_detector
def test_crops_of_other_photographs_are_not_added_to(photos: Path, tmp_path: Path) -> None:
    align_photos(scan_folder(photos), tmp_path / "out")
    (tmp_path / "others" / "eve").mkdir(parents=True)
    (tmp_path / "others" / "eve" / "1.jpg").write_bytes(photograph((orl_face(5), 200, 140)))
    with pytest.raises(ShardError, match="out: holds crops of other photographs; choose another folder or remove it"):
        align_photos(scan_folder(tmp_path / "others"), tmp_path / "out")


@pytest.mark.parametrize("landmarks", [np.full((5, 2), 50.0), np.full((5, 2), np.nan), np.full((5, 2), np.inf)])
def test_landmarks_that_are_no_face_are_no_face(landmarks: Points, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector may put all five in one place, or nowhere."""
    face = Face(np.array([20.0, 20, 90, 90]), landmarks)
    monkeypatch.setattr("pipeline.shards.alignment.photos.detect", lambda _photo: [face])
    image, what, _ = align_photo(photograph(), (112, 96), 32)
    assert (image, what.partition(":")[0]) == (b"", "no face")


def one_part(photos: Path, out: Path, part: int) -> int:
    return sum(align_photos(scan_folder(photos), out, part=(part, 4)).values())


@needs_detector
def test_parts_at_the_same_time_make_the_same_crops_and_list(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.shards.alignment.photos.BATCH", 2)
    align_photos(scan_folder(photos), tmp_path / "whole")
    assert sum(each_done(partial(one_part, photos, tmp_path / "parts"), range(4), 4)) == 7
    assert crops(tmp_path / "parts") == crops(tmp_path / "whole")
    assert (tmp_path / "parts.tsv").read_text() == (tmp_path / "whole.tsv").read_text()


def test_a_person_whose_photographs_are_missing_is_not_taken_for_the_whole_source(tmp_path: Path) -> None:
    (tmp_path / "bob.jpg").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("".join(f"{n}.jpg\tann\n" for n in range(200)) + "bob.jpg\tbob\n")
    align_photos(open_source(tmp_path / "list.txt"), tmp_path / "out")
    lines = (tmp_path / "out.tsv").read_text()
    assert (lines.count("No such file"), lines.count("does not decode")) == (200, 1)


def test_photographs_that_went_all_together_are_not_listed_as_unreadable(tmp_path: Path) -> None:
    there, away = tmp_path / "photos" / "ann", tmp_path / "away"
    there.mkdir(parents=True)
    for number in range(64):
        (there / f"{number}.jpg").write_bytes(b"no image")
    source = scan_folder(tmp_path / "photos")
    there.rename(away)
    with pytest.raises(
        ShardError, match=r"none of 64 images could be read, the last is ann/9\.jpg: unreadable: No such"
    ):
        align_photos(source, tmp_path / "out")
    away.rename(there)
    align_photos(source, tmp_path / "out")
    assert (tmp_path / "out.tsv").read_text().count("does not decode") == 64
