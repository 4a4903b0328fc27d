"""A study's tables: cells by hand, what is missing shown as missing, and a page that needs nothing beside it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.reports.study_page import comparisons, lead, markdown, page, rows, write_tables
from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.study import Study

STUDY = Study.model_validate(
    {
        "title": "losses & <margins>",
        "recipe": "base.yaml",
        "shards": "shards",
        "sets": {"LFW": {"images": "lfw", "pairs": "lfw.tsv"}, "YTF": {"images": "ytf", "pairs": "ytf.tsv"}},
        "seeds": [1, 2],
        "arms": {"softmax": {}, "m4": {}, "m5": {"seeds": [1]}},
        "tables": [
            {
                "title": "margin",
                "columns": {"Softmax": "softmax", "m = 4": "m4", "m = 5": "m5"},
                "source": "somebody's table 2",
                "published": {"LFW": [97.88, 99.42, None]},
            }
        ],
    }
)


def flat(value: float) -> Draws:
    return Draws.of_trials(np.array([value]), np.full((100, 1), value), 100)


SAMPLES = {
    "LFW": {("softmax", 1): flat(0.70), ("softmax", 2): flat(0.70), ("m4", 2): flat(0.75)},
    "YTF": {("m4", 1): flat(0.9)},
}


def test_the_cells_are_published_ours_and_the_gain_on_common_seeds() -> None:
    lfw, ytf = comparisons(STUDY, SAMPLES)
    assert rows(lfw) == [
        ("published", ["97.88%", "99.42%", "–"]),
        ("here (95% interval)", ["70.00% (70.0% to 70.0%)", "75.00% (75.0% to 75.0%)", "–"]),
        ("each seed", ["70.0%, 70.0%", "75.0%", "–"]),
        ("above Softmax, points", ["–", "+5.00 (+5.0 to +5.0)", "–"]),
        ("seeds done", ["2 of 2", "1 of 2", "0 of 1"]),
    ]
    assert ("above Softmax, points", ["–", "–", "–"]) in rows(ytf)  # no seed in common


def test_a_network_from_elsewhere_is_compared_with_every_seed() -> None:
    networks = {"theirs": {"onnx": "a.onnx"}, "others": {"onnx": "b.onnx"}}
    columns = {"theirs": "theirs", "Softmax": "softmax", "others": "others", "m = 5": "m5"}
    tree = {**STUDY.model_dump(), "networks": networks, "tables": [{"title": "given", "columns": columns}]}
    spread = np.random.default_rng(0).normal(0, 0.01, (100, 1))
    seeds = {seed: Draws.of_trials(np.array([0.7]), 0.7 + spread, 100) for seed in (1, 2)}
    theirs = Draws.of_trials(np.array([0.8]), 0.8 + spread, 100)  # what is hard for one is hard for the other
    samples = {("theirs", 0): theirs, ("others", 0): flat(0.9), **{("softmax", s): run for s, run in seeds.items()}}
    (table, _) = comparisons(Study.model_validate(tree), {"LFW": samples, "YTF": {}})
    here, _, gains, done = (cells for _, cells in rows(table))
    assert here[0].startswith("80.00% (7")
    assert gains[:2] == ["–", "-10.00 (-10.0 to -10.0)"]
    assert gains[2].startswith("+10.00 (+8") and gains[3] == "–"
    assert done == ["1 of 1", "2 of 2", "1 of 1", "0 of 1"]
    turned = {"title": "turned", "columns": {"Softmax": "softmax", "theirs": "theirs"}}
    (table, _) = comparisons(Study.model_validate({**tree, "tables": [turned]}), {"LFW": samples, "YTF": {}})
    assert dict(rows(table))["above Softmax, points"] == ["–", "+10.00 (+10.0 to +10.0)"]


def test_it_leads_with_what_is_best_and_by_how_much() -> None:
    found = comparisons(STUDY, SAMPLES)
    sentence = "On LFW, m = 4 is right in 75.00% of pairs, +5.00 (+5.0 to +5.0) points above Softmax."
    assert lead(found) == sentence
    assert markdown(STUDY, found).splitlines()[2] == sentence
    assert f'<p class="lead">{sentence}</p>' in page(STUDY, found)
    assert lead(found[1:]) == "On YTF, m = 4 is right in 90.00% of pairs."  # nothing to compare with
    best_first = comparisons(STUDY, {"LFW": {("softmax", 1): flat(0.8), ("m4", 1): flat(0.7)}, "YTF": {}})
    assert lead(best_first) == "On LFW, Softmax is right in 80.00% of pairs."
    assert lead(comparisons(STUDY, {"LFW": {}, "YTF": {}})) == "No run is done yet."


def test_the_chart_ends_at_100_percent() -> None:
    """The mark of 100% is at the upper end of the axes, not below it."""
    samples = {"LFW": {("softmax", 1): flat(0.99), ("softmax", 2): flat(1.0)}, "YTF": {}}
    text = page(STUDY, comparisons(STUDY, samples))
    (frame, *_) = re.findall(r'patch_2">\s*<path d="([^"]*)"', text)
    top = min(float(y) for y in re.findall(r"[\d.]+ ([\d.]+) ?\n", frame))
    ticks = re.findall(r'y="([\d.]+)"[^>]*/>\s*</g>\s*</g>\s*<g [^>]*>\s*<text[^>]*>([\d.]+)%', text)
    assert next(float(y) for y, mark in ticks if mark == "100.0") == pytest.approx(top, abs=1e-3)


def test_an_interval_of_few_seeds_stays_within_what_is_possible() -> None:
    samples = {"LFW": {("softmax", 1): flat(0.99), ("softmax", 2): flat(0.97)}, "YTF": {}}
    assert rows(comparisons(STUDY, samples)[0])[1][1][0].endswith("to 100.0%)")


def test_the_markdown_is_a_table_of_equal_rows() -> None:
    text = markdown(STUDY, comparisons(STUDY, SAMPLES))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {5}
    assert "| | Softmax | m = 4 | m = 5 |" in lines
    assert "Published: somebody's table 2" in text


def test_the_page_is_self_contained_and_escapes_what_the_study_says(tmp_path: Path) -> None:
    text = page(STUDY, comparisons(STUDY, SAMPLES))
    assert "losses &amp; &lt;margins&gt;" in text
    assert text.count("<svg") == 2
    assert not re.search(r'(?:src|href)="(?!#)', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    write_tables(STUDY, SAMPLES, tmp_path)
    assert (tmp_path / "study.html").read_text() == text
    assert (tmp_path / "study.md").exists()


def test_runs_that_ended_no_better_than_guessing_are_named_below_the_tables(tmp_path: Path) -> None:
    write_tables(STUDY, SAMPLES, tmp_path, {"m4-seed1": 0.3, "m5-seed1": 1.024, "m5-seed2": 1.0})
    named = (
        "No better than guessing at the end, by the loss over that of guessing: m5-seed1 (1.02 ×), m5-seed2 (1.00 ×)."
    )
    for name in ("study.md", "study.html"):
        text = (tmp_path / name).read_text()
        assert named in text and "m4-seed1 (" not in text
    write_tables(STUDY, SAMPLES, tmp_path, {"m4-seed1": 0.999})
    assert "guessing" not in (tmp_path / "study.md").read_text()


def test_a_study_without_a_finished_run_has_tables_all_the_same() -> None:
    text = page(STUDY, comparisons(STUDY, {"LFW": {}, "YTF": {}}))
    assert "0 of 2" in text
