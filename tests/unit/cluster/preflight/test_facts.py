"""The facts of a host."""

from __future__ import annotations

from pathlib import Path

from cluster.preflight.facts import describe_shards


def test_shards_differ_by_manifest_and_by_tars(tmp_path: Path) -> None:
    assert describe_shards(tmp_path) == "no manifest (No such file or directory)"
    (tmp_path / "manifest.json").write_text("{}")
    empty = describe_shards(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"1234")
    full = describe_shards(tmp_path)
    (tmp_path / "manifest.json").write_text("{ }")
    assert len({empty, full, describe_shards(tmp_path)}) == 3
    assert full.endswith("1 tars of 4 bytes")
