"""The report: complete, well-formed, self-contained, and safe from what a run's files may hold."""

import html
import json
import re
import weakref
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.reports.report import write_report
from pipeline.evaluation.results import (
    Centred,
    Evaluation,
    Gallery,
    Identification,
    Settings,
    Summary,
    TemplateResult,
    load,
    save,
    save_summary,
)
from pipeline.evaluation.scoring.angles import class_angles
from pipeline.evaluation.scoring.rates import Rate, TarAtFar, TpirAtFpir, verify
from pipeline.evaluation.scoring.verification import ScoredPairs

CENTRED = Centred(accuracy=0.625, deviation=0.0375)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Outline(HTMLParser):
    """Fails on tags that do not nest; collects ids, addresses and visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.collect(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.collect(attrs)

    def collect(self, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for name, value in attrs if name == "id"]
        self.addresses += [str(value) for name, value in attrs if name in {"href", "src", "xlink:href", "srcset"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text.append(data)


def parse(page: str) -> tuple[Outline, str]:
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    return outline, re.sub(r"\s+", " ", " ".join(outline.text))


def make_run(folder: Path) -> Path:
    """A run as training and evaluation leave it, with faces of six people."""
    images = folder / "faces"
    folder.mkdir(exist_ok=True)
    for person in range(6):
        for shot in range(4):
            file = images / f"p{person}" / f"{shot}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 28), (40 * person, 60 * shot, 90)).save(file)
    run = folder / "quick"
    run.mkdir()
    lines = [
        {
            "step": step,
            "loss": 5 - step / 100,
            "margin_lambda": 1500 / (1 + step),
            "learning_rate": 0.1,
            "global_samples_per_second": 90.0,
            "step_part_seconds": {"forward": 0.2, "backward": 0.4, "data_wait": 0.01},
        }
        for step in range(0, 100, 10)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 100, "lo')
    facts = {"command": "deepspeed train.py --set a='<b>'", "versions": {"torch": "9.8.7"}, "ranks": 2}
    (run / "run.json").write_text(json.dumps(facts))
    (run / "recipe.yaml").write_text("backbone:\n  name: sphereface4\n")
    for step, gain in ((0, 0.1), (90, 2.0)):
        save(make_evaluation(images, step, gain), run / "evaluations" / "held_out")
    return run


def make_evaluation(images: Path, step: int, gain: float) -> Evaluation:
    identity = np.repeat(np.arange(6), 4)
    names = np.array([f"p{person}/{shot}.jpg" for person in range(6) for shot in range(4)])
    a, b = np.triu_indices(24, 1)
    same = identity[a] == identity[b]
    scores = np.tanh(np.random.default_rng(step).normal(gain * same, 1))
    fold = (identity[a] + identity[b]) % 3
    pairs = ScoredPairs.of(scores, same, fold, identity_a=identity[a], identity_b=identity[b])
    settings = Settings(
        images=str(images), pairs="x.tsv", pairs_sha256="00", weights_sha256="11", far=(0.1,), resamples=10, seed=0
    )
    summary = Summary(step=step, settings=settings, verification=verify(pairs, (0.1,), 10), centred=CENTRED)
    features = np.random.default_rng(step).normal(size=(24, 8)) + gain * np.eye(8)[identity]
    return Evaluation(summary, pairs, names[a], names[b], class_angles(features, identity, [f"p{i}" for i in range(6)]))


def report_of(run: Path) -> Path:
    return write_report([run], run / "report.html")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report_of(make_run(tmp_path_factory.mktemp("report"))).read_text()


def test_the_report_holds_what_it_promises(page: str, tmp_path: Path) -> None:
    _, text = parse(page)
    promised = [
        "quick",
        "held_out",
        "before training",
        "after step 90",
        "accuracy",
        "TAR at FAR 0.1",
        "AUC",
        "62.50% ± 3.75%",
    ]
    promised += [
        "loss",
        "λ",
        "learning rate",
        "throughput",
        "time of a step",
        "ROC",
        "DET",
        "equal error rate",
        "accuracy by fold",
        "threshold",
        "angles within and between people",
        "angles by person",
        "People with the least room",
    ]
    promised += ["torch 9.8.7", "name: sphereface4", "deepspeed train.py", "2 ranks", "Different people, most alike"]
    for words in promised:
        assert words in text, words
    assert page.count("<svg") == 5 + 7
    assert page.count("data:image/jpeg;base64,") == 2 * 2 * 8
    final = make_evaluation(tmp_path / "faces", 90, 2.0).summary.verification
    assert f"{final.accuracy.value:.2%} ({final.accuracy.low:.1%} to {final.accuracy.high:.1%})" in text
    first = make_evaluation(tmp_path / "faces", 0, 0.1).summary.verification
    assert f"; before training in {first.accuracy.value:.2%}." in text
    angles = make_evaluation(tmp_path / "faces", 90, 2.0).angles
    assert angles is not None
    tar = final.tar[0]
    assert f"at FAR 0.1 {first.tar[0].threshold:.4f} {tar.threshold:.4f}" in text
    assert (
        f"fold 2 {first.thresholds[1]:.4f}: {first.folds[1]:.2%} {final.thresholds[1]:.4f}: {final.folds[1]:.2%}"
        in text
    )
    worst = int(angles.worst(1)[0])
    median, high = angles.within[worst, 1:]
    words = f"p{worst} 4 {median:.0f}° {high:.0f}° p{angles.neighbour[worst]} {angles.nearest[worst]:.0f}°"
    assert words in re.sub(r"\s+", " ", text)


def test_the_report_needs_nothing_from_outside(page: str) -> None:
    outline, _ = parse(page)
    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "<script" not in page


def test_every_reference_of_a_plot_finds_its_own_plot(page: str) -> None:
    outline, _ = parse(page)
    assert len(outline.ids) == len(set(outline.ids))
    referenced = set(re.findall(r"url\(#([^)]+)\)", page)) | {a[1:] for a in outline.addresses if a.startswith("#")}
    assert referenced <= set(outline.ids)


def test_several_comparisons_have_a_list_of_contents(page: str, tmp_path: Path) -> None:
    assert "<nav" not in page  # one has none
    run = make_run(tmp_path)
    other = make_evaluation(tmp_path / "faces", 90, 1.0)
    settings = other.summary.settings.model_copy(update={"pairs_sha256": "22"})
    save(replace(other, summary=other.summary.model_copy(update={"settings": settings})), run / "evaluations" / "other")
    outline, text = parse(report_of(run).read_text())
    assert "Verification on held_out Verification on other Training" in text
    links = [address[1:] for address in outline.addresses if re.fullmatch(r"#(verification-\d|training)", address)]
    assert links == ["verification-1", "verification-2", "training"]
    assert set(links) <= set(outline.ids)


def test_what_a_run_wrote_cannot_become_markup(page: str) -> None:
    assert "&lt;b&gt;" in page
    assert "a='<b>'" not in page


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert report_of(run).read_bytes() == write_report([run], tmp_path / "again.html").read_bytes()


def test_a_run_with_evaluations_alone_still_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in ("metrics.jsonl", "run.json", "recipe.yaml"):
        (run / name).unlink()
    _, text = parse(report_of(run).read_text())
    assert "held_out" in text
    assert "Training" not in text


def test_a_run_without_evaluations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got no evaluation, wanted one under evaluations/"):
        report_of(tmp_path)


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    """Two runs, one of which was evaluated on a set of its own as well."""
    one = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b").rename(tmp_path / "b" / "slow")
    alone = make_evaluation(tmp_path / "b/faces", 90, 3.0)
    settings = alone.summary.settings.model_copy(update={"pairs_sha256": "77"})
    summary = alone.summary.model_copy(update={"settings": settings})
    save(replace(alone, summary=summary), other / "evaluations" / "alone")
    save(make_evaluation(tmp_path / "a/faces", 40, 1.0), one / "evaluations" / "held_out")
    outline, text = parse(write_report([one, other], tmp_path / "both.html").read_text())
    assert text.count("accuracy while training, 95% intervals shaded") == 1
    assert "quick slow accuracy" in text
    assert "accuracy above quick, points – +0.00 (+0.0 to +0.0)" in text
    assert "before training" not in text
    assert "Verification on alone" in text
    assert text.count("name: sphereface4") == 2
    assert len(outline.ids) == len(set(outline.ids))
    twins = write_report([one, one.parent / "." / ".." / "a" / "quick"], tmp_path / "twins.html").read_text()
    assert str(one) in twins


def test_a_run_may_have_any_name(tmp_path: Path) -> None:
    """Matplotlib takes what stands between two $ for a formula, and leaves labels that begin with _ out of a legend."""
    names = ("_base", r"a$\frac$ & <b>")
    runs = [make_run(tmp_path / str(number)).rename(tmp_path / name) for number, name in enumerate(names)]
    page = write_report(runs, tmp_path / "page.html").read_text()
    parse(page)
    words = [html.unescape(found).strip("\u200b") for found in re.findall(r"<text[^>]*>([^<]*)</text>", page)]
    assert [words.count(name) for name in names] == [8, 8]  # in seven legends and the title of a histogram


def test_what_is_compared_decides_and_not_its_name(tmp_path: Path) -> None:
    """One list of pairs under two names is one comparison; one name of two lists is two."""
    one = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b").rename(tmp_path / "b" / "slow")
    (other / "evaluations" / "held_out").rename(other / "evaluations" / "renamed")
    _, text = parse(write_report([one, other], tmp_path / "both.html").read_text())
    assert text.count("Verification on held_out, renamed") == 1
    changed = make_evaluation(tmp_path / "b/faces", 90, 2.0)
    settings = changed.summary.settings.model_copy(update={"pairs_sha256": "99"})
    save(
        replace(changed, summary=changed.summary.model_copy(update={"settings": settings})),
        other / "evaluations/held_out",
    )
    _, text = parse(write_report([one, other], tmp_path / "both.html").read_text())
    assert text.count("Verification on held_out") == 4  # two headings, and the contents
    assert "Verification on held_out, renamed quick slow" in text


def test_the_best_of_a_row_is_bold_and_every_lead_says_whose_it_is(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b").rename(tmp_path / "b" / "slow")
    save(make_evaluation(tmp_path / "b/faces", 90, 3.0), other / "evaluations" / "held_out")
    page = write_report([one, other], tmp_path / "both.html").read_text()
    rates = [make_evaluation(tmp_path, 90, gain).summary.verification.accuracy for gain in (2.0, 3.0)]
    assert rates[0].value < rates[1].value
    worse, better = (f"{rate.value:.2%} ({rate.low:.1%} to {rate.high:.1%})" for rate in rates)
    assert f'<tr><th>accuracy</th><td>{worse}</td><td class="best">{better}</td></tr>' in page
    lead = re.search(r'<p class="lead">(.*?)</p>', page, re.S)
    assert lead is not None
    assert "<b>slow</b> tells same from different" in lead[1] and "; quick in" in lead[1]
    alone = report_of(one).read_text()
    assert "<b>quick</b> after step 90 tells same from different" in alone


def test_a_network_of_another_origin_has_its_name_and_no_steps(tmp_path: Path) -> None:
    folder = tmp_path / "w600k"
    folder.mkdir()
    (folder / "network.json").write_text('{"name": "w600k_r50", "file": "/models/w600k_r50.onnx", "digest": "1"}')
    save(make_evaluation(tmp_path / "faces", 0, 2.0), folder / "evaluations" / "held_out")
    _, text = parse(report_of(folder).read_text())
    assert "before training" not in text
    assert "w600k tells same from different" in text
    assert "/models/w600k_r50.onnx" in text


def test_images_without_features_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    whole = make_evaluation(tmp_path / "faces", 90, 2.0)
    summary = whole.summary.model_copy(update={"left_out": ("p9/1.jpg", "p9/2.jpg")})
    save(replace(whole, summary=summary), run / "evaluations" / "torn")
    _, text = parse(report_of(run).read_text())
    assert "2 images gave no features and are left out: p9/1.jpg, p9/2.jpg." in text


def test_templates_have_their_table_and_roc(tmp_path: Path) -> None:
    rate = Rate(value=0.9, low=0.8, high=0.95)
    result = TemplateResult(
        step=90,
        weights_sha256="",
        templates=12,
        genuine=6,
        impostors=30,
        tar=(TarAtFar(far=0.1, tar=rate, threshold=0.4),),
        galleries=(Gallery(name="G1", ranks=(rate, rate, rate), tpir=(TpirAtFpir(fpir=0.1, tpir=rate),)),),
        curve=((0.03, 0.2), (1.0, 1.0)),
    )
    run = tmp_path / "quick"
    save_summary(result, run / "ijb" / "ijbc")
    _, text = parse(report_of(run).read_text())
    for words in (
        "Templates of ijbc",
        "On ijbc , 36 pairs of templates, quick after step 90 accepts 90.00% of the same people at a FAR of 0.1",
        "G1, rank 10 90.00% (80.0% to 95.0%)",
        "G1, TPIR at FPIR 0.1 90.00%",
        "ROC of templates",
    ):
        assert words in text, words


def test_checkpoints_between_are_drawn_over_the_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "accuracy while training" not in report_of(run).read_text()
    save(make_evaluation(tmp_path / "faces", 40, 1.0), run / "evaluations" / "held_out")
    _, text = parse(report_of(run).read_text())
    assert "accuracy while training" in text
    assert "before training after step 90 accuracy" in text


def test_the_scores_of_checkpoints_between_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run has hundreds of evaluations, of megabytes each."""
    run = make_run(tmp_path)
    for step in range(1, 9):
        save(make_evaluation(tmp_path / "faces", step, 1.0), run / "evaluations" / "held_out")
    held: list[weakref.ref[ScoredPairs]] = []

    def loaded(file: Path) -> Evaluation:
        found = load(file)
        held.append(weakref.ref(found.pairs))
        assert sum(pairs() is not None for pairs in held) <= 3, "the first, the last, and the one that is read"
        return found

    monkeypatch.setattr("pipeline.evaluation.reports.report.load", loaded)
    report_of(run)
    assert len(held) == 10


def test_identification_has_its_table_and_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rates = tuple(Rate(value=0.5 + r / 10, low=0.4, high=0.95) for r in range(4))
    for step in (0, 90):
        result = Identification(
            step=step,
            weights_sha256="",
            listing_sha256="",
            cmc=rates,
            tar=(TarAtFar(far=1e-6, tar=rates[1], threshold=0.6),),
            trials=1234,
            identities=6,
            distractors=1_000_000,
            confidence=0.95,
        )
        save_summary(result, run / "identifications" / "crowd")
    _, text = parse(report_of(run).read_text())
    for words in (
        "Identification among crowd",
        "1,234 searches for 6 people, each hidden among 1,000,000 distractors",
        "rank 1 50.00% (40.0% to 95.0%)",
        "rank 4 80.00%",
        "TAR at FAR 1e-06 60.00%",
        "CMC",
    ):
        assert words in text, words
