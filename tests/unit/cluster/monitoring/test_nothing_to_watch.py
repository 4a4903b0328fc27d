"""A monitor of a run that does not train says so, since its page is empty."""

from __future__ import annotations

from pathlib import Path

from cluster.monitoring.live import nothing_to_watch


def test_only_a_run_that_serves_metrics_is_watched_in_silence(tmp_path: Path) -> None:
    words = nothing_to_watch(tmp_path)
    assert words.startswith(f"{tmp_path}: no rank serves metrics there now;") and f"{tmp_path}/metrics.jsonl" in words
    (tmp_path / "targets").mkdir()
    assert nothing_to_watch(tmp_path) == words
    (tmp_path / "targets/rank-0.json").write_text("[]")
    assert nothing_to_watch(tmp_path) == ""
