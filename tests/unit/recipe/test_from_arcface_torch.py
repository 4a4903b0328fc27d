"""Configs of arcface_torch become recipes that train alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cluster.stop import EXIT_REFUSED
from pipeline.head.margins import Margin
from pipeline.head.margins.arcface import ArcFace, Combined, CosFace
from pipeline.optim.adamw import AdamW
from pipeline.recipe.file import load_recipe
from pipeline.recipe.from_arcface_torch import convert, read_config
from pipeline.recipe.schema import RecipeError
from tests.faces import ROOT

# The keys of that project's ms1mv3_r50.py and wf42m_pfc02_16gpus_r100.py.
MS1MV3 = """
from easydict import EasyDict as edict
config = edict()
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r50"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 1.0
config.fp16 = True
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.2
config.verbose = 2000
config.dali = False
config.rec = "/train_tmp/ms1m-retinaface-t1"
config.num_classes = 93431
config.num_image = 5179510
config.num_epoch = 25
config.warmup_epoch = 2
config.val_targets = ['lfw', 'cfp_fp', "agedb_30"]
"""
WEBFACE = MS1MV3.replace("(1.0, 0.5, 0.0)", "(1.0, 0.0, 0.4)").replace("sample_rate = 1.0", "sample_rate = 0.2")


def config(folder: Path, text: str = MS1MV3) -> Path:
    path = folder / "config.py"
    path.write_text(text)
    return path


def test_schedule_batch_and_margin_are_those_of_the_config(tmp_path: Path) -> None:
    recipe = convert(read_config(config(tmp_path)), 8, tmp_path).recipe
    calls_an_epoch = 5179510 // (128 * 8)
    assert recipe.data.global_batch == 1024
    assert recipe.optimizer.steps == calls_an_epoch * 25
    assert recipe.optimizer.warmup_steps == calls_an_epoch * 2
    assert (recipe.optimizer.learning_rate, recipe.optimizer.power) == (0.2, 1.0)
    assert (recipe.optimizer.clip_norm, recipe.optimizer.clip_rows) == (5.0, False)
    assert (recipe.backbone.name, recipe.backbone.embedding_dim) == ("iresnet50", 512)
    assert recipe.head.margin == ArcFace(angle=0.5, scale=64.0)
    assert (recipe.precision, recipe.seed) == ("bfloat16", 2048)


@pytest.mark.parametrize(
    ("margins", "wanted"),
    [
        ("(1.0, 0.0, 0.4)", CosFace(cosine=0.4, scale=64.0)),
        ("(1.0, 0.3, 0.2)", Combined(m=1.0, angle=0.3, cosine=0.2, scale=64.0)),
    ],
)
def test_other_margins(tmp_path: Path, margins: str, wanted: Margin) -> None:
    head = convert(read_config(config(tmp_path, MS1MV3.replace("(1.0, 0.5, 0.0)", margins))), 8, tmp_path).recipe.head
    assert head.margin == wanted


def test_accumulation_makes_the_batch_larger_and_the_steps_fewer(tmp_path: Path) -> None:
    recipe = convert(read_config(config(tmp_path, MS1MV3 + "config.gradient_acc = 4\n")), 2, tmp_path).recipe
    assert (recipe.data.global_batch, recipe.data.accumulation) == (1024, 4)
    assert recipe.optimizer.steps == 5179510 // 256 * 25 // 4
    assert recipe.micro_batch(2) == 128


def test_adamw_is_torchs_with_its_own_defaults_for_what_the_config_does_not_say(tmp_path: Path) -> None:
    """That project's ``train_v2.py`` gives it rate and weight decay, no more."""
    text = MS1MV3.replace("lr = 0.2", 'lr = 0.001\nconfig.optimizer = "adamw"').replace("= 5e-4", "= 0.1")
    got = convert(read_config(config(tmp_path, text)), 8, tmp_path)
    torchs = torch.optim.AdamW([torch.zeros(1)]).defaults
    assert isinstance(got.recipe.optimizer, AdamW)
    assert (got.recipe.optimizer.learning_rate, got.recipe.optimizer.weight_decay) == (0.001, 0.1)
    assert (got.recipe.optimizer.beta1, got.recipe.optimizer.beta2) == torchs["betas"]
    assert got.recipe.optimizer.eps == torchs["eps"]
    assert not [note for note in got.notes if note.startswith("momentum")]


def test_base_beside_it_is_read_first(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("config.seed = 7\nconfig.lr = 0.9\n")
    recipe = convert(read_config(config(tmp_path)), 8, tmp_path).recipe
    assert (recipe.seed, recipe.optimizer.learning_rate) == (7, 0.2)


def test_what_has_no_counterpart_is_refused_by_name(tmp_path: Path) -> None:
    for old, new, message in (
        ('"r50"', '"vit_b"', r"network: got 'vit_b', wanted r18 or r34 or r50 or r100 or r200"),
        ("config.lr = 0.2", 'config.lr = 0.2\nconfig.optimizer = "lion"', "optimizer: got 'lion', wanted sgd or adamw"),
        ("config.num_epoch = 25", "", "num_epoch: not set"),
        ("config.num_epoch = 25", "config.num_epoch = epochs()", r"line 20: num_epoch: got epochs\(\), wanted a plain"),
        ("config = edict()", "config = (", "not Python"),
        ("sample_rate = 1.0", "sample_rate = 0.2\nconfig.gradient_acc = 2", "wanted accumulation 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            convert(read_config(config(tmp_path, MS1MV3.replace(old, new))), 8, tmp_path)
    with pytest.raises(RecipeError, match="No such file"):
        read_config(tmp_path / "absent.py")


def test_nothing_of_a_config_is_run(tmp_path: Path) -> None:
    text = f"open({str(tmp_path / 'run')!r}, 'w')\n" + MS1MV3
    read_config(config(tmp_path, text))
    assert not (tmp_path / "run").exists()


def test_the_stage_writes_a_recipe_that_loads_with_its_notes(tmp_path: Path) -> None:
    out = tmp_path / "webface.yaml"
    command = [sys.executable, ROOT / "stages" / "convert_recipe.py", config(tmp_path, WEBFACE), out]
    command += ["--ranks", "16", "--shards", tmp_path / "shards"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    recipe = load_recipe(out)
    assert (recipe.head.margin, recipe.head.sample_rate, recipe.data.global_batch) == (CosFace(cosine=0.4), 0.2, 2048)
    assert recipe.evaluation.sets["agedb_30"].pairs == tmp_path / "agedb_30.tsv"
    for text in (out.read_text(), done.stdout):
        assert f"python stages/shard.py /train_tmp/ms1m-retinaface-t1 {tmp_path / 'shards'}" in text
        assert f"stages/pairs.py bin /train_tmp/ms1m-retinaface-t1/agedb_30.bin {tmp_path / 'agedb_30.tsv'}" in text
    out.unlink()
    command[2] = tmp_path / "absent.py"
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_REFUSED, 1)
    assert done.stderr.startswith("convert_recipe: ")
    assert not out.exists()
