"""A set as a source: what was selected, joined or cleaned becomes tars that hold its samples and nothing else."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards.checking.verify import verify
from pipeline.shards.format.index import open_index
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.names import read_identities
from pipeline.shards.making.plan import make_plan
from pipeline.shards.making.sequential import make_set
from pipeline.shards.sources.detect import open_source
from pipeline.shards.sources.finished import open_set
from pipeline.shards.sources.tar_folder import open_tars
from pipeline.shards.stores.transfer import push
from pipeline.shards.views.hygiene import clean
from pipeline.shards.views.select import merge
from pipeline.shards.views.subset import subset
from tests.shards import HEIGHT, WIDTH, contents, made, noise, plan_of, write_people

GONE = "person 4"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets a and b of the same people with other images; a view that joins them, cleaned, without one person of a."""
    root = tmp_path_factory.mktemp("sets")
    made(plan_of(write_people(root / "faces a"), root / "a"))
    for number in range(9):
        folder = root / "faces b" / f"person {number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number // 5}.JPG").write_bytes(noise(100 + number, "JPEG", HEIGHT, WIDTH))
    made(plan_of(root / "faces b", root / "b", per_tar=4))
    merge([root / "a", root / "b"], root / "both", same_people=False)
    (root / "names").write_text(f"a/{GONE}\n")
    subset(root / "both", root / "fewer", drop=root / "names")
    clean(root / "fewer", root / "view")
    return root


def copy(view: Path, out: Path, seed: int = 0) -> Manifest:
    manifest = Manifest.load(view)
    size = manifest.image_height, manifest.image_width
    copied = make_set(make_plan(open_set(view), out, seed=seed, samples_per_tar=7, size=size))
    assert copied is not None
    return copied


def images_of(folder: Path) -> Counter[tuple[str, bytes]]:
    """Identity and image of every sample, as training finds them."""
    manifest = Manifest.load(folder)
    names, rows = read_identities(folder, manifest), open_index(folder, manifest)
    tar_of = np.searchsorted(manifest.first_rows, np.arange(len(rows)), side="right") - 1
    found = Counter[tuple[str, bytes]]()
    for tar, (offset, size, label) in zip(tar_of.tolist(), rows.tolist(), strict=True):
        with (folder / manifest.tars[tar].name).open("rb") as file:
            file.seek(offset)
            found[names[label], file.read(size)] += 1
    return found


def test_a_copy_holds_the_samples_of_the_view_and_no_others(sets: Path, tmp_path: Path) -> None:
    view, copied = Manifest.load(sets / "view"), copy(sets / "view", tmp_path / "copy")
    assert (copied.samples, copied.identities, copied.set_aside) == (32, 11, 0)
    assert (copied.made.source, copied.made.source_sha256) == ("set", view.digest)
    assert images_of(tmp_path / "copy") == images_of(sets / "view")
    held = b"".join(path.read_bytes() for path in tmp_path.rglob("*.tar"))
    everybody = {image for _, image in images_of(sets / "both")}
    assert {image for image in everybody if image in held} == {image for _, image in images_of(sets / "view")}
    assert len(everybody) == 37
    assert verify(tmp_path / "copy", decode_every=1) == []
    assert open_source(sets / "view").digest() == view.digest


def test_a_copy_is_shuffled_by_its_seed_and_made_once(sets: Path, tmp_path: Path) -> None:
    first, second = copy(sets / "view", tmp_path / "1"), copy(sets / "view", tmp_path / "2", seed=2)
    assert first.tars != second.tars
    for tar in sets.rglob("*.tar"):  # newer than the copy, with the bytes that it was made of
        os.utime(tar)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "1").iterdir()}
    assert copy(sets / "view", tmp_path / "1") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "1").iterdir()} == times
    with pytest.raises(
        ShardError, match=r"holds other shards \(source_sha256: got \w+, wanted \w+\): 5 samples came, 0"
    ):
        copy(sets / "both", tmp_path / "1")


def test_a_copy_is_a_set_like_any_other(sets: Path, tmp_path: Path) -> None:
    """It can be pushed, sharded again, cut and copied, by those who have nothing else."""
    copy(sets / "view", tmp_path / "x" / "copy")
    push(tmp_path / "x" / "copy", f"file://{tmp_path}/there")
    shutil.rmtree(tmp_path / "x")
    there = tmp_path / "there"
    again = open_tars(there)
    assert Counter(contents(again).values()) <= images_of(sets / "view")
    keys = [again.key(sample) for sample in range(len(again.labels))]
    assert sorted(keys) == sorted(open_set(sets / "view").key(sample) for sample in range(32))
    assert keys.count("person 0/0.JPG") == 2  # of a and of b
    subset(there, tmp_path / "one", people=1)
    assert copy(tmp_path / "one", tmp_path / "one copy").identities == 1
    assert verify(tmp_path / "one copy") == []


def test_nothing_of_those_left_out_is_in_a_copy(sets: Path, tmp_path: Path) -> None:
    copy(sets / "view", tmp_path / "copy")
    assert verify(tmp_path / "copy", without=[f"a/{GONE}", "nobody"]) == []
    of_view = verify(sets / "view", without=[f"a/{GONE}"])
    assert {file for file, _ in of_view} <= {tar.name for tar in Manifest.load(sets / "view").tars}
    assert all("are of no sample of the set, and may be anybody's: 0000" in what for _, what in of_view)
    lost = sum(int(what.split()[0]) for _, what in of_view)
    assert lost >= 3  # files at least, one image with label and key


def test_who_is_there_is_found_by_name_key_and_stray_file(sets: Path, tmp_path: Path) -> None:
    copy(sets / "both", tmp_path / "copy")
    found = verify(tmp_path / "copy", without=[GONE])
    of_names = [what for file, what in found if file == "identities.txt"]
    assert of_names == [f"has 'a/{GONE}'", f"has 'b/{GONE}'"]
    of_tars = [what for file, what in found if file.endswith(".tar")]
    assert sum(int(what.split()[0]) for what in of_tars) == 6
    assert all("samples have the key of somebody who should not be there: person 4/" in what for what in of_tars)
    (tmp_path / "copy" / "faces-000009.tar.0123456789ab.part").touch()
    (tmp_path / "copy" / "rejected.tsv").write_text(f"path\treason\n{GONE}/9.jpg\tempty file\n")
    more = sorted(
        {file: what for file, what in verify(tmp_path / "copy", without=[GONE]) if (file, what) not in found}.items()
    )
    assert more == [
        (
            "faces-000009.tar.0123456789ab.part",
            "is no tar of manifest.json: wanted no others, which may hold anybody's images",
        ),
        ("rejected.tsv", f"has '{GONE}/9.jpg'"),
    ]


def test_a_copy_wants_the_tars_of_the_view(sets: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "both", "fewer", "view"):
        shutil.copytree(sets / name, tmp_path / name)
    os.truncate(tmp_path / "a" / "faces-000001.tar", 100)
    with pytest.raises(ShardError, match=r"faces-000001\.tar: got 100 bytes, wanted \d+ as in manifest\.json"):
        open_set(tmp_path / "view")
    shutil.rmtree(tmp_path / "a")
    made(plan_of(sets / "faces a", tmp_path / "a", seed=5))
    with pytest.raises(ShardError, match=r"faces-00000\d\.tar: got \d+ bytes|a, which was made anew"):
        open_set(tmp_path / "view")
    with pytest.raises(ShardError, match=r"nowhere/manifest\.json: not found, wanted a finished shard folder"):
        open_set(tmp_path / "nowhere")
