"""One self-contained HTML page about a run: what was reached, where it fails, how it was trained.

The page holds its style, its plots (inline SVG) and its faces (base64 JPEG): it can be mailed, and opens without a
network or the run's folder.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from pipeline.evaluation import plots
from pipeline.evaluation.metrics_log import mean_seconds, read_metrics, series
from pipeline.evaluation.pairs import frames_of
from pipeline.evaluation.results import Evaluation, Rate, load_all
from pipeline.evaluation.verification import roc

HARDEST = 8  # pairs of each kind that are shown
CURVES = (("loss", "loss", False), ("lambda", "λ", True), ("learning_rate", "learning rate", False))


@dataclass(frozen=True)
class Row:
    """One line of a results table: a quantity, and what each model reaches."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Tile:
    """One hard pair: both faces (data URIs, empty where an image is gone), scores by model, right or wrong."""

    faces: tuple[str, str]
    names: tuple[str, str]
    scores: tuple[str, ...]
    wrong: bool


def write_report(run: Path, out: Path | None = None) -> Path:
    """Render the report of a run folder to `out` (``report.html`` in the folder) and return its path.

    Parts of the run that do not exist, such as the training log of a run trained elsewhere, are left out. Raises
    ValueError when the folder holds no evaluation.
    """
    sections = [
        evaluation_section(folder.name, before_and_after(load_all(folder)))
        for folder in sorted((run / "evaluations").glob("*/"))
        if any(folder.glob("step-*.json"))
    ]
    if not sections:
        raise ValueError(f"{run}: got no evaluation, wanted one under evaluations/: run stages/evaluate.py first")
    out = out or run / "report.html"
    page = _template().render(
        run=run.resolve().name,
        facts=_read_facts(run / "run.json"),
        recipe=_read_text(run / "recipe.yaml"),
        training=training_section(read_metrics(run / "metrics.jsonl")),
        sections=sections,
    )
    aside = out.with_name(out.name + ".part")
    aside.write_text(page, encoding="utf-8")
    aside.replace(out)
    return out


def before_and_after(evaluations: list[Evaluation]) -> dict[str, Evaluation]:
    """The first and the last evaluated step, under the names that the report gives them."""
    first, last = evaluations[0], evaluations[-1]
    if first.summary.step == last.summary.step:
        return {_step_name(last.summary.step): last}
    return {_step_name(first.summary.step): first, _step_name(last.summary.step): last}


def training_section(records: list[dict[str, Any]]) -> list[str]:
    """Plots of the training log; a quantity that was not logged has none."""
    drawn = []
    for key, title, log in (*CURVES, ("images_per_second", "throughput, images/s", False)):
        steps, values = series(records, key)
        if len(steps):
            drawn.append(plots.line_plot(steps, values, title, log))
    seconds = mean_seconds(records)
    return [*drawn, plots.time_split_plot(seconds)] if seconds else drawn


def evaluation_section(name: str, models: dict[str, Evaluation]) -> dict[str, Any]:
    """What the template shows of one evaluation set, models side by side; the last one is the one that counts."""
    final = list(models.values())[-1]
    limits = _score_limits(list(models.values()))
    histograms = [
        plots.histogram_plot(e.pairs, float(np.nanmean(e.summary.verification.thresholds)), label, limits)
        for label, e in models.items()
    ]
    return {
        "name": name,
        "models": tuple(models),
        "result": final.summary.verification,
        "others": [(label, e.summary.verification.accuracy.value) for label, e in list(models.items())[:-1]],
        "rows": result_rows([e.summary.verification for e in models.values()]),
        "plots": [
            plots.roc_plot({label: roc(e.pairs) for label, e in models.items()}),
            plots.fold_plot({label: e.summary.verification.folds for label, e in models.items()}),
            *histograms,
        ],
        "missed": hardest_tiles(list(models.values()), same=True),
        "fooled": hardest_tiles(list(models.values()), same=False),
    }


def result_rows(results: list[Any]) -> list[Row]:
    """The table of rates, a column for each model; a FAR that one of them lacks shows a dash there."""
    fars = sorted({entry.far for result in results for entry in result.tar}, reverse=True)
    rows = [
        Row("accuracy", tuple(_with_interval(result.accuracy) for result in results)),
        Row("deviation over folds", tuple(f"± {result.deviation:.2%}" for result in results)),
        Row("AUC", tuple(_with_interval(result.auc) for result in results)),
    ]
    for far in fars:
        tars = [{entry.far: entry.tar for entry in result.tar}.get(far) for result in results]
        rows.append(Row(f"TAR at FAR {far:g}", tuple(_with_interval(tar) if tar else "–" for tar in tars)))
    return rows


def hardest_tiles(models: list[Evaluation], same: bool) -> list[Tile]:
    """The last model's lowest-scoring same pairs or highest-scoring different ones, hardest first."""
    final = models[-1]
    pairs = final.pairs
    kind = np.flatnonzero(pairs.same == same)
    hardest = kind[np.argsort(pairs.scores[kind] * (1 if same else -1), kind="stable")][:HARDEST]
    images = Path(final.summary.settings.images)
    tiles = []
    for i in hardest:
        threshold = final.summary.verification.thresholds[pairs.fold[i]]
        one, other = str(final.path_a[i]), str(final.path_b[i])
        tiles.append(
            Tile(
                faces=(_first_face(images, one), _first_face(images, other)),
                names=(one, other),
                scores=tuple(f"{score:.2f}" for score in _scores_of(models, i)),
                wrong=bool((pairs.scores[i] >= threshold) != same),
            )
        )
    return tiles


def _first_face(images: Path, path: str) -> str:
    """The image that `path` names, or a video's first frame."""
    frames = frames_of(images, path)
    return face_uri(images / frames[0]) if frames else ""


def face_uri(file: Path) -> str:
    """The image as a data URI: a JPEG's own bytes, anything else re-encoded; empty when it cannot be read."""
    try:
        data = file.read_bytes()
        if not data.startswith(b"\xff\xd8"):
            stream = io.BytesIO()
            Image.open(io.BytesIO(data)).convert("RGB").save(stream, "JPEG", quality=90)
            data = stream.getvalue()
    except OSError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _scores_of(models: list[Evaluation], i: int) -> list[float]:
    """Pair `i`'s score under each model that was evaluated on the same list of pairs."""
    final = models[-1]
    return [e.pairs.scores[i] for e in models if e.summary.settings.pairs_sha256 == final.summary.settings.pairs_sha256]


def _with_interval(rate: Rate) -> str:
    return f"{rate.value:.2%} ({rate.low:.1%} to {rate.high:.1%})"


def _step_name(step: int) -> str:
    return "before training" if step == 0 else f"after step {step:,}"


def _score_limits(evaluations: list[Evaluation]) -> tuple[float, float]:
    """One axis for every histogram, so that models can be compared by eye."""
    low = min(float(e.pairs.scores.min()) for e in evaluations)
    return max(-1.0, low - 0.05), 1.0


def _read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _read_facts(file: Path) -> dict[str, Any]:
    """``run.json``, with an empty value for each fact that the template asks for and the file lacks."""
    facts: dict[str, Any] = {"command": "", "versions": {}, "started": "", "ranks": None, "device": ""}
    if not file.is_file():
        return facts
    try:
        return {**facts, **json.loads(file.read_text(encoding="utf-8"))}
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{file}: {error}, wanted a JSON object") from None


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
