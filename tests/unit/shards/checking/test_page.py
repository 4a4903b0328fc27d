"""The page about a set: its numbers are those of the set, and nothing in a name can break it."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.shards.checking.page import histogram, reasons, write_page
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.sources.loss import TooManyRejectedError, check_loss, summary


@given(counts=st.lists(st.integers(0, 5000), min_size=1, max_size=200))
@settings(deadline=None)
def test_the_histogram_counts_every_identity_in_its_class(counts: list[int]) -> None:
    bars = histogram(np.array(counts))
    assert sum(identities for _, identities, _ in bars) == len(counts)
    assert max(share for _, _, share in bars) == 100
    for name, identities, _ in bars:
        low, _, high = name.replace(",", "").partition("–")
        assert identities == sum(int(low) <= count <= int(high or low) for count in counts)


def test_classes_double() -> None:
    assert [name for name, _, _ in histogram(np.array([1, 2000]))] == [
        *("1", "2", "3–4", "5–8", "9–16", "17–32", "33–64", "65–128", "129–256", "257–512", "513–1,024", "1,025–2,048")
    ]


def test_reasons_that_differ_in_numbers_are_one() -> None:
    listed = [
        SetAside("a", "wrong size: got 1x2, wanted 3x4"),
        SetAside("b", "wrong size: got 9x9, wanted 3x4"),
        SetAside("c", "empty file"),
    ]
    assert reasons(listed) == [(2, "wrong size: … wanted 3x4", "a"), (1, "empty file", "c")]


def test_a_summary_has_three_reasons_each_with_its_first_path_and_a_limit_may_be_reached() -> None:
    listed = [SetAside("a\nb", "cut", 2), SetAside("c", "cut"), *(SetAside(f"d{n}", f"odd {n}", 0) for n in "123")]
    assert summary(listed) == r"3 × cut (a\nb); 1 × odd 1 (d1); 1 × odd 2 (d2); and 1 other reason"
    assert summary([*listed, SetAside("e", "even")]).endswith("; and 2 other reasons")
    check_loss("faces", 27, listed, 0.1)
    with pytest.raises(TooManyRejectedError, match=r"faces: 3 of 29 samples set aside \(10.3%\), wanted at most 10.0%"):
        check_loss("faces", 26, listed, 0.1)


def test_the_page_shows_the_set(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for person, images in {"<b>ann</b>": 3, "bob & co": 1}.items():
        (tmp_path / "faces" / person.replace("/", "")).mkdir(parents=True)
        for number in range(images):
            buffer = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (8, 6, 3), dtype=np.uint8)).save(buffer, "JPEG")
            (tmp_path / "faces" / person.replace("/", "") / f"{number}.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "faces" / "bob & co" / "bad.jpg").touch()
    source = scan_folder(tmp_path / "faces")
    make_shards(make_plan(source, tmp_path / "set", seed=0, samples_per_tar=2, size=(8, 6)))
    write_page(tmp_path / "set", tmp_path / "page.html", "8 streams & more")
    page = (tmp_path / "page.html").read_text()
    assert Counter(page.split()).get("<b>ann<b>", 0) == 0
    assert "&lt;b&gt;ann&lt;b&gt;" in page
    assert page.count("data:image/jpeg;base64,") == 4
    for text in (
        "<b>4</b><span>samples",
        "<b>2</b><span>identities",
        "8 × 6",
        "empty file",
        "bob &amp; co/bad.jpg",
        "8 streams &amp; more",
    ):
        assert text in page
    assert "<p>8 streams &amp; more</p>" in page
    assert "What training sees" not in page
    write_page(tmp_path / "set", tmp_path / "page.html", "", np.full((4, 6, 3), 7, np.uint8))
    with_sheet = (tmp_path / "page.html").read_text()
    assert "What training sees" in with_sheet
    assert with_sheet.count("data:image/png;base64,") == 1
