"""What a user keeps is whole or absent: on a full disk every writer names its file and leaves no part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backbones import BACKBONES
from pipeline.evaluation.embedding.people import People
from pipeline.evaluation.embedding.trained import TrainedBackbone
from pipeline.evaluation.protocols.insightface_bin import BinSet, extract
from pipeline.evaluation.protocols.overlap import Candidate, write_decisions
from pipeline.evaluation.protocols.pairs_file import Row, write_rows
from pipeline.evaluation.reports.overlap_page import write_page
from pipeline.evaluation.reports.report import write_report
from pipeline.evaluation.reports.study_page import write_tables
from pipeline.evaluation.results import Centred, Evaluation, Identification, Settings, Summary, save, save_summary
from pipeline.evaluation.scoring.rates import Rate, verify
from pipeline.evaluation.scoring.verification import ScoredPairs
from pipeline.evaluation.study import Study
from pipeline.files import NotWrittenError
from tests.full_disk import no_file_above

LIMIT = 1000  # bytes; everything below is longer


def evaluation() -> Evaluation:
    generator = np.random.default_rng(0)
    a, b = np.triu_indices(40, 1)
    pairs = ScoredPairs.of(
        generator.normal(size=780), a // 4 == b // 4, np.arange(780) % 2, identity_a=a // 4, identity_b=b // 4
    )
    settings = Settings(
        images="faces", pairs="p.tsv", pairs_sha256="0", weights_sha256="1", far=(0.1,), resamples=5, seed=0
    )
    summary = Summary(
        step=3,
        settings=settings,
        verification=verify(pairs, (0.1,), 5),
        centred=Centred(accuracy=0.5, deviation=0.1),
    )
    names = np.array([f"p{i // 4}/{i}.jpg" for i in range(40)])
    return Evaluation(summary, pairs, names[a], names[b])


def pairs_file(folder: Path) -> None:
    write_rows([Row("1", f"ann/{i}.jpg", f"bob/{i}.jpg", False) for i in range(100)], folder / "pairs.tsv")


def images_of_a_bin(folder: Path) -> None:
    extract(BinSet([bytes([i]) * 2000 for i in range(4)], [True, False]), folder)


def decisions(folder: Path) -> None:
    write_decisions(folder / "decisions.tsv", [Candidate(f"a{i}", f"b{i}", 0.5) for i in range(100)])


def overlap_page(folder: Path) -> None:
    nobody = People([], np.empty(0, np.int64), lambda _: [], "")
    write_page(folder / "overlap.html", [], nobody, nobody, {})


def scores(folder: Path) -> None:
    save(evaluation(), folder / "evaluations" / "set")


def identification(folder: Path) -> None:
    rate = Rate(value=0.5, low=0.4, high=0.6)
    result = Identification(
        step=0,
        weights_sha256="1",
        listing_sha256="2",
        cmc=(rate,) * 50,
        tar=(),
        trials=1,
        identities=1,
        distractors=1,
        confidence=0.95,
    )
    save_summary(result, folder)


def study_tables(folder: Path) -> None:
    study = Study.model_validate(
        {
            "title": "long " * 400,
            "recipe": "r",
            "shards": "s",
            "sets": {"LFW": {"images": "i", "pairs": "p"}},
            "seeds": [1],
            "arms": {"a": {}},
            "tables": [{"title": "t", "columns": {"A": "a"}}],
        }
    )
    write_tables(study, {"LFW": {}}, folder)


def embeddings(folder: Path) -> None:
    parquet = pytest.importorskip("pipeline.evaluation.embedding.parquet")
    rows = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    parquet.write_embeddings(folder / "e.parquet", [f"a/{i}.jpg" for i in range(100)], [rows], {})


def exported(folder: Path) -> None:
    package = pytest.importorskip("pipeline.export.package")
    torch.manual_seed(0)
    module = BACKBONES["sphereface4"](name="sphereface4", embedding_dim=8).build((32, 32)).eval()
    trained = TrainedBackbone(module, "sphereface4", 8, 1, (32, 32), "digest")
    package.export(trained, folder, folder, package.Form())


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (pairs_file, "pairs.tsv"),
        (images_of_a_bin, ".jpg"),
        (decisions, "decisions.tsv"),
        (overlap_page, "overlap.html"),
        (scores, "step-00000003.npz"),
        (identification, "step-00000000.json"),
        (study_tables, "study.md"),
        (embeddings, "e.parquet"),
        (exported, "backbone.onnx"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_on_a_full_disk_a_file_is_absent_and_named(tmp_path: Path, write: Callable[[Path], None], file: str) -> None:
    with no_file_above(LIMIT), pytest.raises(NotWrittenError) as caught:
        write(tmp_path)
    message = str(caught.value)
    assert message.endswith(f"{file}: not written: File too large")
    assert message.startswith(str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    write(tmp_path)  # with room again, the same call succeeds
    assert any(path.name.endswith(file) for path in tmp_path.rglob("*"))


def test_a_report_is_absent_and_named(tmp_path: Path) -> None:
    save(evaluation(), tmp_path / "evaluations" / "set")
    with no_file_above(LIMIT), pytest.raises(NotWrittenError, match=r"report\.html: not written: File too large"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not list(tmp_path.glob("report*"))


def test_an_old_file_outlives_a_new_one_that_does_not_fit(tmp_path: Path) -> None:
    rows = [Row("1", "ann/1.jpg", "bob/1.jpg", False)]
    write_rows(rows, tmp_path / "pairs.tsv")
    before = (tmp_path / "pairs.tsv").read_bytes()
    with no_file_above(LIMIT), pytest.raises(NotWrittenError):
        write_rows(rows * 100, tmp_path / "pairs.tsv")
    assert (tmp_path / "pairs.tsv").read_bytes() == before


def test_new_scores_never_stand_beside_an_old_summary(tmp_path: Path) -> None:
    old = evaluation()
    save(old, tmp_path)
    new = replace(old, pairs=replace(old.pairs, scores=np.random.default_rng(1).normal(size=780)))
    with no_file_above(LIMIT), pytest.raises(NotWrittenError, match=r"step-00000003\.npz: not written"):
        save(new, tmp_path)
    assert not (tmp_path / "step-00000003.json").exists()
