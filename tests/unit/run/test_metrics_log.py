"""Reading the training log through tears, repeats and keys that come and go."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.reports.plots import running_median
from pipeline.run.metrics_log import last_step, mean_seconds, read_metrics, series


def test_torn_lines_are_skipped_and_the_last_word_on_a_step_counts(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 2, "loss": 9}\n{"step": 3, "lo{"step": 1, "loss": 5}\n7\n{"loss": 1}\n{"step": 2, "loss": 4}\n'
    )
    assert read_metrics(file) == [{"step": 2, "loss": 4}]
    with file.open("a") as stream:
        stream.write('{"step": 1, "loss": 6}\n{"step": 3, "los')
    assert [record["step"] for record in read_metrics(file)] == [1, 2]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_the_last_step_is_that_of_the_last_whole_record_however_long_the_log(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert last_step(file) == 0
    file.write_text('{"step": 3}\n{"step": 4}\n{"event": "saved"}\n7\n{"step": 5')
    assert last_step(file) == 4
    with file.open("w") as log:
        for step in range(20_000):
            log.write(json.dumps({"step": step, "loss": 1 / 3}) + "\n")
    assert last_step(file) == 19_999
    with file.open("ab") as log:
        log.write(b'\xff\x00\n8\n{"ste')  # what a power cut or a kill leaves
    assert last_step(file) == 19_999


def test_a_series_leaves_out_what_is_missing_or_not_finite() -> None:
    records: list[dict[str, Any]] = [
        {"step": 0, "x": 1},
        {"step": 1},
        {"step": 2, "x": float("nan")},
        {"step": 3, "x": None},
        {"step": 4, "x": 2.5},
    ]
    steps, values = series(records, "x")
    assert (steps.tolist(), values.tolist()) == ([0, 4], [1, 2.5])
    assert [array.tolist() for array in series(records, "y")] == [[], []]


def test_the_time_split_leaves_out_the_first_tenth() -> None:
    records = [{"step": i, "step_part_seconds": {"a": 1.0, "b": 2.0}} for i in range(20)]
    records[0]["step_part_seconds"] = records[1]["step_part_seconds"] = {"a": 100.0, "b": 0.0}
    records.append({"step": 20})
    assert mean_seconds(records) == {"b": 2.0, "a": 1.0}
    assert list(mean_seconds(records)) == ["b", "a"]
    assert mean_seconds(records[:1]) == {"a": 100.0, "b": 0.0}
    assert mean_seconds([]) == {}


def test_a_running_median_equals_a_loop() -> None:
    values = np.random.default_rng(0).normal(size=80)
    padded = [values[0]] * 7 + values.tolist() + [values[-1]] * 7
    expected = [sorted(padded[i : i + 15])[7] for i in range(80)]
    np.testing.assert_array_equal(running_median(values), expected)
    assert running_median(values[:59]) is None


def test_what_an_evaluation_reached_stands_in_the_record_of_its_step(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 2, "loss": 9}\n{"step": 2, "evaluation": {"lfw": {"accuracy": 0.5}}}\n'
        '{"step": 4, "evaluation": {}}\n{"step": 4, "loss": 3}\n{"step": 5, "evaluation": {}}\n'
    )
    assert read_metrics(file) == [
        {"step": 2, "loss": 9, "evaluation": {"lfw": {"accuracy": 0.5}}},
        {"step": 4, "loss": 3},  # gone through again since
        {"step": 5, "evaluation": {}},
    ]


def test_rows_of_before_are_read_under_the_names_of_today(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    before = (
        '{"step": 1, "time": 7.5, "epoch": 0.1, "loss": 2.0, "lambda": 5.0, "learning_rate": 0.1, "own_cosine": 0.25, '
        '"norm": 3.0, "gradient_norm": 4.0, "loss_over_chance": 0.5, "angle_quantiles": [1.0, 1.1, 1.2, 1.3, 1.4], '
        '"beyond_pi": 0.75, "images_per_second": 90.0, "step_seconds": 0.5, "seconds": {"head": 0.25}, '
        '"decode_failures": 2, "checkpoint_stall_seconds": null, "checkpoint_seconds": 1.5}\n'
    )
    file.write_text(before + '{"step": 2, "margin_lambda": 4.0}\n')
    assert read_metrics(file) == [
        {
            "step": 1,
            "time": 7.5,
            "epoch": 0.1,
            "loss": 2.0,
            "margin_lambda": 5.0,
            "learning_rate": 0.1,
            "target_cosine": 0.25,
            "embedding_norm": 3.0,
            "gradient_norm": 4.0,
            "loss_over_chance_ratio": 0.5,
            "target_angle_radians": {"p05": 1.0, "p25": 1.1, "p50": 1.2, "p75": 1.3, "p95": 1.4},
            "margin_angle_beyond_pi_ratio": 0.75,
            "global_samples_per_second": 90.0,
            "step_seconds": 0.5,
            "step_part_seconds": {"head": 0.25},
            "decode_failures_total": 2,
            "checkpoint_stall_seconds": None,
            "checkpoint_save_seconds": 1.5,
        },
        {"step": 2, "margin_lambda": 4.0},
    ]
