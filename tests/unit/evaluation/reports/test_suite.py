"""A suite's table: the same numbers in every format, dashes for what is missing, the best in bold."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.evaluation.reports.suite import Column, Entry, pairs_column, templates_column, with_average, write_suite
from pipeline.evaluation.results import TemplateResult
from pipeline.evaluation.scoring.estimates import paired_differences
from pipeline.evaluation.scoring.rates import Rate, TarAtFar, verify
from tests.unit.evaluation.test_results import make_evaluation

NETWORKS = ["ours_1", "theirs & co"]


def templates(value: float, far: float = 1e-4) -> TemplateResult:
    rate = Rate(value=value, low=value - 0.1, high=value + 0.1)
    return TemplateResult(
        step=3,
        weights_sha256="",
        templates=12,
        genuine=6,
        impostors=30,
        tar=(TarAtFar(far=far, tar=rate, threshold=0.4),),
        galleries=(),
    )


@pytest.fixture
def columns() -> list[Column]:
    ours = make_evaluation(3)
    better = replace(ours.pairs, scores=ours.pairs.scores + 0.3 * ours.pairs.same)
    summary = ours.summary.model_copy(update={"verification": verify(better, (0.1,), 20, 3)})
    theirs = replace(ours, pairs=better, summary=summary)
    return [
        pairs_column("LFW", dict(zip(NETWORKS, [ours, theirs], strict=True))),
        pairs_column("CFP-FP", {NETWORKS[0]: ours}),
        templates_column("IJB-C", dict(zip(NETWORKS, [templates(0.8), templates(0.7)], strict=True))),
        templates_column("IJB-B", dict(zip(NETWORKS, [templates(0.5, far=1e-5), templates(0.6)], strict=True))),
    ]


def test_every_format_has_the_same_numbers(columns: list[Column], tmp_path: Path) -> None:
    files = write_suite("ours_1 on 4 sets", NETWORKS, columns, tmp_path)
    assert [file.name for file in files] == ["suite.html", "suite.md", "suite.tex", "suite.csv"]
    page, text, latex = (file.read_text() for file in files[:3])
    ours, theirs = (columns[0].entries[name] for name in NETWORKS)
    assert ours.gain is None and theirs.gain is not None
    assert ours.value < theirs.value
    first, second = ("{:.2%} ({:.1%} to {:.1%})".format(e.value, *(e.interval or ())) for e in (ours, theirs))
    gain = f"{100 * theirs.gain.mean:+.2f} ({100 * theirs.gain.low:+.1f} to {100 * theirs.gain.high:+.1f})"
    assert f"| ours_1 | {first} | {first} | {ours.value:.2%} | **80.00% (70.0% to 90.0%)** | – |" in text
    assert f"| theirs & co | **{second}** | – | – | 70.00% (60.0% to 80.0%) | 60.00% (50.0% to 70.0%) |" in text
    assert f"| theirs & co above ours_1, points | {gain} | – | – | – | – |" in text
    assert f'<td class="best">{second}</td>' in page and f"<td>{gain}</td>" in page
    assert "theirs &amp; co" in page and "<span>TAR at FAR 0.0001</span>" in page
    percent = f"{100 * ours.value:.2f}"
    assert rf"ours\_1 & {percent} & {percent} & {percent} & \textbf{{80.00}} & -- \\" in latex
    assert r"theirs \& co & \textbf{" in latex
    assert latex.count(r"\\") == 3
    rows = list(csv.DictReader(files[3].read_text().splitlines()))
    assert [(row["network"], row["set"]) for row in rows] == [
        ("ours_1", "LFW"),
        ("theirs & co", "LFW"),
        ("ours_1", "CFP-FP"),
        ("ours_1", "average"),
        ("ours_1", "IJB-C"),
        ("theirs & co", "IJB-C"),
        ("theirs & co", "IJB-B"),
    ]
    assert float(rows[1]["value"]) == theirs.value
    assert (float(rows[3]["value"]), rows[3]["low"]) == (ours.value, "")
    assert float(rows[1]["above_first"]) == theirs.gain.mean
    assert rows[0]["above_first"] == ""


def test_the_average_is_of_pairs_and_of_networks_that_have_them_all(columns: list[Column]) -> None:
    lfw, cfp, *templates = columns
    assert with_average([lfw, *templates]) == [lfw, *templates]  # of one set there is none
    other = Column("AgeDB-30", "accuracy", {name: Entry(0.5 + 0.25 * i) for i, name in enumerate(NETWORKS)})
    *_, average, first, _ = with_average([lfw, other, *templates])
    assert (average.name, first) == ("average", templates[0])
    ours, theirs = (lfw.entries[name].value for name in NETWORKS)
    assert average.entries == {NETWORKS[0]: Entry((ours + 0.5) / 2), NETWORKS[1]: Entry((theirs + 0.75) / 2)}
    assert list(with_average([lfw, cfp])[-1].entries) == NETWORKS[:1]


def test_the_difference_is_that_of_the_report(columns: list[Column]) -> None:
    ours = make_evaluation(3)
    better = replace(ours.pairs, scores=ours.pairs.scores + 0.3 * ours.pairs.same)
    assert columns[0].entries[NETWORKS[1]].gain == paired_differences(better, ours.pairs, (), 200)[0]
