"""A checkpoint is verified wherever it is opened: what is damaged is passed over by name, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.evaluation.embedding.trained import load_trained
from pipeline.optim.sgd import SGD
from pipeline.recipe.schema import Data, Recipe
from pipeline.run.best import Best, write_best
from pipeline.run.checkpoint import BACKBONE, META, CheckpointError, read_meta
from pipeline.run.folder import RunFolder
from pipeline.run.whole import damage, load_backbone, newest_whole, whole_step
from tests.unit.run.saved import save_steps, spoil


def backbone_file(run: Path, step: int) -> Path:
    return RunFolder(run).checkpoint(step) / BACKBONE


def test_every_flipped_bit_of_a_meta_file_is_damage(tmp_path: Path) -> None:
    save_steps(tmp_path, 4)
    folder = RunFolder(tmp_path).checkpoint(4)
    content = (folder / META).read_bytes()
    assert read_meta(folder).step == 4
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / META).write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"meta.json: (not readable|format: got)"):
            read_meta(folder)


def test_a_meta_file_of_before_has_no_digest_and_is_read(tmp_path: Path) -> None:
    save_steps(tmp_path, 4)
    file = RunFolder(tmp_path).checkpoint(4) / META
    fields = json.loads(file.read_bytes())
    assert fields.pop("sha256")
    file.write_text(json.dumps(fields))
    assert damage(file.parent) == []


def test_a_damaged_backbone_is_passed_over_by_name_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_steps(tmp_path, 4, 8)
    assert load_backbone(tmp_path)[0] == 8
    spoil(backbone_file(tmp_path, 8))
    step, weights = load_backbone(tmp_path)
    assert step == 4 and torch.equal(weights["conv.weight"], torch.ones(64))
    assert "step-00000008/backbone.safetensors: damaged: got SHA-256" in caplog.text
    assert "passed over for the one before" in caplog.text
    assert newest_whole(tmp_path, None) == whole_step(tmp_path, None, None) == 4
    for refused in (lambda: load_backbone(tmp_path, 8), lambda: whole_step(tmp_path, 8, None)):
        with pytest.raises(CheckpointError, match=r"step-00000008/backbone.safetensors: damaged"):
            refused()
    spoil(backbone_file(tmp_path, 4))
    with pytest.raises(CheckpointError, match=r"got \[4, 8\], all of them damaged, wanted one whole"):
        load_backbone(tmp_path)


def test_damaged_rows_do_not_concern_who_wants_the_backbone(tmp_path: Path) -> None:
    save_steps(tmp_path, 4, 8)
    (rows,) = RunFolder(tmp_path).checkpoint(8).glob("rows-*")
    spoil(rows, 4)
    assert load_backbone(tmp_path)[0] == 8
    assert whole_step(tmp_path, None, None) == 4


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    for refused in (lambda: load_backbone(tmp_path), lambda: whole_step(tmp_path, None, None)):
        with pytest.raises(CheckpointError, match="got step last, wanted one of none saved yet"):
            refused()
    assert newest_whole(tmp_path, None) is None
    save_steps(tmp_path, 4)
    with pytest.raises(CheckpointError, match=r"got step 5, wanted one of \[4\]"):
        whole_step(tmp_path, 5, None)


def test_what_evaluates_embeds_and_exports_opens_no_damaged_network(tmp_path: Path) -> None:
    section = SphereFaceBackbone(name="sphereface4", embedding_dim=8)
    optimizer = SGD(steps=9, learning_rate=0.1)
    recipe = Recipe(data=Data(shards=tmp_path, global_batch=2), backbone=section, optimizer=optimizer)
    save_steps(tmp_path, 4, 8, backbone=section.build((112, 96)).state_dict())
    RunFolder(tmp_path).recipe.write_text(recipe.to_yaml())
    RunFolder(tmp_path).facts.write_text('{"image_size": [112, 96]}')
    write_best(tmp_path, Best(8, "lfw", 0.9))
    assert load_trained(tmp_path, None).step == load_trained(tmp_path, "best").step == 8
    with backbone_file(tmp_path, 8).open("r+b") as file:
        file.seek(8192)
        file.write(bytes(4096))
    assert load_trained(tmp_path, None).step == 4
    for step in (8, "best"):
        with pytest.raises(ValueError, match=r"step-00000008/backbone.safetensors: damaged"):
            load_trained(tmp_path, step)


def test_a_folder_that_is_no_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent: got no recipe.yaml in it, wanted the folder of a run$"):
        load_trained(tmp_path / "absent", None)
