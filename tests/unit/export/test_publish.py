"""A run is published with a card that says what it is, to a folder, a store, or the Hub at its interface's edge."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml

pytest.importorskip("onnxscript")

from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.run.imported import write_imported
from stages.publish import main

SIZE = (16, 16)
FILES = ["README.md", "backbone.json", "backbone.onnx", "backbone.safetensors", "recipe.yaml"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "casia20"
    torch.manual_seed(0)
    backbone = SphereFaceBackbone(name="sphereface4", embedding_dim=6)
    facts = {"file": "/data/theirs.pth", "sha256": "0123456789abcdef"}
    write_imported(folder, backbone, backbone.build(SIZE).state_dict(), SIZE, facts)
    (folder / "report.html").write_text("<p>")
    return folder


@pytest.fixture
def publish(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def call(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["publish.py", str(run), *options])
        return main()

    return call


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of nothing in the place of an export."""

    def export(_: object, folder: Path, *__: object) -> list[Path]:
        folder.mkdir(exist_ok=True)
        files = [folder / name for name in ("backbone.onnx", "backbone.safetensors", "backbone.json", "MODEL_CARD.md")]
        for file in files:
            file.write_bytes(b"0")
        return files

    monkeypatch.setattr("pipeline.export.package.export", export)


def test_the_card_heads_a_repository(publish: Callable[..., int], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert publish("--out", str(out), "--license", "mit", "--report") == 0
    assert sorted(file.name for file in out.iterdir()) == [*FILES, "report.html"]
    _, head, text = (out / "README.md").read_text().split("---\n", maxsplit=2)
    assert yaml.safe_load(head)["license"] == "mit"
    assert text.startswith("\n# sphereface4 of casia20, step 0\n")
    assert "Elsewhere: weights of theirs.pth, SHA-256 `0123456789ab`." in text
    assert "(pixel - 127.5) × 0.0078125" in text


def test_it_goes_to_any_store(run: Path, publish: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert publish("memory://models/casia20") == 0
    store = fsspec.filesystem("memory")
    assert sorted(Path(name).name for name in store.ls("/models/casia20", detail=False)) == FILES
    assert store.cat("/models/casia20/README.md") == (run / "published" / "README.md").read_bytes()
    assert capsys.readouterr().out.endswith("memory://models/casia20\n")


class Hub:
    """What is used of `huggingface_hub`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def HfApi(self) -> Hub:
        return self

    def CommitOperationAdd(self, path_in_repo: str, path_or_fileobj: str) -> str:
        assert Path(path_or_fileobj).is_file()
        return path_in_repo

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append((repo_id, private, exist_ok))

    def create_commit(self, repo_id: str, operations: list[str], *, commit_message: str) -> None:
        if repo_id == "team/refused":
            raise RuntimeError("403 Forbidden\nwith a page")
        self.calls.append((repo_id, sorted(operations), commit_message))


@pytest.mark.usefixtures("quickly")
def test_it_goes_to_the_hub_privately(
    publish: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert publish("hf://team/casia20") == 0
    assert hub.calls == [
        ("team/casia20", True, True),
        ("team/casia20", FILES, "casia20: sphereface4 after 0 steps"),
    ]
    assert capsys.readouterr().out.endswith("https://huggingface.co/team/casia20\n")
    assert publish("hf://team/casia20", "--public") == 0
    assert hub.calls[2] == ("team/casia20", False, True)
    assert publish("hf://team/refused") == 65
    assert capsys.readouterr().err == "publish: hf://team/refused: 403 Forbidden\n"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://casia20", "publish: hf://casia20: got no repository, wanted hf://owner/name\n"),
        ("hf://team/casia20/a", "publish: hf://team/casia20/a: got no repository, wanted hf://owner/name\n"),
        ("team/casia20", "publish: team/casia20: got no URL, wanted hf://owner/name, s3://"),
        ("nosuch://a/b", "publish: nosuch://a/b: "),
    ],
)
def test_what_is_no_place_is_refused(
    publish: Callable[..., int], capsys: pytest.CaptureFixture[str], url: str, message: str
) -> None:
    assert publish(url) == 65
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
