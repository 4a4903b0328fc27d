"""Configs of arcface_torch become recipes that train alike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from cluster.stop import EXIT_REFUSED
from pipeline.backbones import BACKBONES
from pipeline.backbones.vit import Block, ViT
from pipeline.head.margins import Margin, Target
from pipeline.head.margins.arcface import ArcFace, CosFace
from pipeline.optim.adamw import AdamW
from pipeline.recipe.arcface_config import ArcfaceConfig, Assignments, read_config
from pipeline.recipe.file import load_recipe
from pipeline.recipe.from_arcface_torch import NETWORKS, UNNEEDED, convert
from pipeline.recipe.schema import RecipeError
from tests.faces import ROOT
from tests.warm_stage import run_warm

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
    assert recipe.head.margin == ArcFace(angle=0.5, scale=64.0, detached=True)
    assert (recipe.precision, recipe.seed) == ("bfloat16", 2048)


@pytest.mark.parametrize(
    ("margins", "wanted"),
    [
        ("(1.0, 0.0, 0.4)", CosFace(cosine=0.4, scale=64.0)),
        ("(1.2, 0.3, 0.2)", CosFace(cosine=0.2, scale=64.0)),  # with m3, m1 and m2 are not read
        ("(1.0, 0.5, 0.0)\nconfig.interclass_filtering_threshold = 0.4", ArcFace(detached=True, filter=0.4)),
        ("[1, 0, 0]", ArcFace(angle=0.0, scale=64.0, detached=True)),
    ],
)
def test_other_margins(tmp_path: Path, margins: str, wanted: Margin) -> None:
    converted = convert(read_config(config(tmp_path, MS1MV3.replace("(1.0, 0.5, 0.0)", margins))), 8, tmp_path)
    assert converted.recipe.head.margin == wanted
    assert ("1.2 and 0.3 are not read" in "\n".join(converted.notes)) == margins.startswith("(1.2")


def test_arcface_has_the_gradient_of_theirs_whose_margin_runs_without_one(tmp_path: Path) -> None:
    margin = convert(read_config(config(tmp_path)), 8, tmp_path).recipe.head.margin
    assert isinstance(margin, ArcFace)
    exact = margin.model_copy(update={"detached": False})
    draw = torch.Generator().manual_seed(0)
    x_GD, rows_CD = (torch.randn(size, 16, dtype=torch.float64, generator=draw) for size in (5, 7))
    rows_CD[:5] += x_GD  # target angles of about 45 degrees: a trained network's
    theirs = gradient(x_GD, rows_CD, their_target_logit)
    ours, other = (gradient(x_GD, rows_CD, target_logit_of(which)) for which in (margin, exact))
    assert (ours - theirs).norm() < 1e-12 * theirs.norm()
    assert (other - theirs).norm() > 0.1 * theirs.norm()


TargetLogit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def target_logit_of(margin: Margin) -> TargetLogit:
    return lambda x_GD, rows_GD: margin.target_logit(Target(x_GD, rows_GD), None, {})


def their_target_logit(x_GD: torch.Tensor, rows_GD: torch.Tensor) -> torch.Tensor:
    """64 cos(θ + 0.5), where angle and cosine are replaced in place while no graph is recorded."""
    cosine_G = (normalize(x_GD) * normalize(rows_GD)).sum(1)
    with torch.no_grad():
        cosine_G.data = torch.cos(torch.acos(cosine_G) + 0.5)
    return cosine_G * 64


def gradient(x_GD: torch.Tensor, rows_CD: torch.Tensor, target_logit: TargetLogit) -> torch.Tensor:
    """Of the softmax loss in the rows; the class of sample i is i."""
    rows_CD = rows_CD.clone().requires_grad_()
    labels = torch.arange(len(x_GD))
    logits_GC = 64 * normalize(x_GD) @ normalize(rows_CD).T
    logits_GC = logits_GC.scatter(1, labels[:, None], target_logit(x_GD, rows_CD[labels])[:, None])
    (grad,) = torch.autograd.grad(cross_entropy(logits_GC, labels), [rows_CD])
    return grad


# Their names, as `get_model` reads them: width, blocks, drop-path, share of the patches masked in training.
VITS = {
    "vit_t": (256, 12, 0.1, 0.1),
    "vit_t_dp005_mask0": (256, 12, 0.05, 0.0),
    "vit_s": (512, 12, 0.1, 0.1),
    "vit_s_dp005_mask_0": (512, 12, 0.05, 0.0),
    "vit_b": (512, 24, 0.1, 0.1),
    "vit_b_dp005_mask_005": (512, 24, 0.05, 0.1),
    "vit_l_dp005_mask_005": (768, 24, 0.05, 0.1),
}


@pytest.mark.parametrize("name", VITS)
def test_vision_transformers_are_those_of_their_table(tmp_path: Path, name: str) -> None:
    width, blocks, drop_path, masked = VITS[name]
    got = convert(read_config(config(tmp_path, MS1MV3.replace('"r50"', f'"{name}"'))), 8, tmp_path)
    with torch.device("meta"):
        network = got.recipe.backbone.build((112, 112))
    assert isinstance(network, ViT)
    assert (network.pos_embed.shape[2], len(network.blocks)) == (width, blocks)
    assert isinstance(network.blocks[-1], Block) and network.blocks[-1].drop1.rate == pytest.approx(drop_path)
    assert network.masking.kept == int(144 * (1 - masked))
    assert got.recipe.backbone.activation_checkpointing == (blocks == 24)
    assert [note for note in got.notes if note.startswith("network: masks")] == (
        ["network: masks 10% of the patches there too, whatever its name says"] if name.endswith("005") else []
    )


def test_every_network_of_theirs_that_is_taken_has_one_here(tmp_path: Path) -> None:
    assert set(get_args(ArcfaceConfig.model_fields["network"].annotation)) == NETWORKS.keys()
    for name in NETWORKS.keys() - set(BACKBONES):
        with pytest.raises(
            ValueError, match=rf"got '{name}', wanted one of .*; did you mean {NETWORKS[name]['name']}\?$"
        ):
            BACKBONES[name]
    for name, ours in (("mbf", "mobilefacenet"), ("mbf_large", "mobilefacenet_large")):
        text = MS1MV3.replace('"r50"', f'"{name}"')
        assert convert(read_config(config(tmp_path, text)), 8, tmp_path).recipe.backbone.name == ours


def test_added_means_become_a_batch_with_other_rates_and_fewer_steps(tmp_path: Path) -> None:
    added = "config.gradient_acc = 4\n"
    recipe = convert(read_config(config(tmp_path, MS1MV3 + added)), 2, tmp_path).recipe
    assert (recipe.data.global_batch, recipe.data.accumulation) == (1024, 4)
    assert recipe.optimizer.steps == 5179510 // 256 * 25 // 4
    assert recipe.micro_batch(2) == 128
    # one step of torch's SGD on four gradients that were added is one on their mean
    weight, gradients = torch.tensor([2.0, -3.0], dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    theirs = weight - 0.2 * (gradients.sum(0) + 5e-4 * weight)
    ours = weight - recipe.optimizer.learning_rate * (gradients.mean(0) + recipe.optimizer.weight_decay * weight)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=0)
    assert recipe.optimizer.clip_norm == 5 / 4
    assert (recipe.checkpoint.every, recipe.log.every) == (500, 2)
    notes = [convert(read_config(config(tmp_path, MS1MV3 + more)), 2, tmp_path).notes for more in ("", added)]
    assert [any(note.startswith("memory: head.fused_update") for note in of) for of in notes] == [True, False]
    many = convert(read_config(config(tmp_path, MS1MV3 + "config.gradient_acc = 5000\n")), 2, tmp_path).recipe
    assert (many.optimizer.steps, many.checkpoint.every, many.log.every) == (20232 * 25 // 5000, 1, 1)


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
    # the gradient's size makes no difference, so sums need no other rate
    summed = convert(read_config(config(tmp_path, text + "config.gradient_acc = 4\n")), 8, tmp_path).recipe.optimizer
    assert (summed.learning_rate, summed.weight_decay, summed.clip_norm) == (0.001, 0.1, 5 / 4)


def test_base_beside_it_is_read_first(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("config.seed = 7\nconfig.lr = 0.9\n")
    recipe = convert(read_config(config(tmp_path)), 8, tmp_path).recipe
    assert (recipe.seed, recipe.optimizer.learning_rate) == (7, 0.2)


def test_numbers_are_computed_from_numbers_and_earlier_keys(tmp_path: Path) -> None:
    text = MS1MV3.replace("warmup_epoch = 2", "warmup_epoch = config.num_epoch // 10 + -(4 - 5) % 2")
    keys = read_config(config(tmp_path, text + "config.num_classes = 30 * 10000\nconfig.lr = 1 / 4\n")).keys
    assert (keys["warmup_epoch"], keys["num_classes"], keys["lr"]) == (25 // 10 + 1, 300_000, 0.25)
    recipe = convert(read_config(config(tmp_path, MS1MV3 + "config.warmup_epoch = -1\n")), 8, tmp_path).recipe
    assert recipe.optimizer.warmup_steps == 0  # as their scheduler computes it


def test_weights_and_biases_are_carried_without_their_key(tmp_path: Path) -> None:
    more = {"using_wandb": True, "wandb_project": "faces", "wandb_entity": None, "wandb_key": "0123456789abcdef"}
    (sink,) = convert(Assignments(read_config(config(tmp_path)).keys | more), 8, tmp_path).recipe.log.sinks
    assert sink.model_dump() == {"name": "wandb", "project": "faces", "entity": None, "mode": "online"}


# Every key that the 42 configs of arcface_torch and their base.py set, with a value other than MS1MV3's or base.py's.
KEYS: dict[str, object] = {
    "margin_list": [1.0, 0.0, 0.4],
    "network": "r18",
    "resume": True,
    "save_all_states": True,
    "output": "work",
    "embedding_size": 256,
    "sample_rate": 0.2,
    "interclass_filtering_threshold": 0.4,
    "fp16": False,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 0.1,
    "momentum": 0.8,
    "weight_decay": 1e-4,
    "verbose": 500,
    "frequent": 20,
    "dali": True,
    "dali_aug": True,
    "gradient_acc": 2,
    "seed": 1,
    "num_workers": 4,
    "wandb_key": "0123456789abcdef",
    "suffix_run_name": "a",
    "using_wandb": True,
    "wandb_entity": "team",
    "wandb_project": "faces",
    "wandb_log_all": False,
    "save_artifacts": True,
    "wandb_resume": True,
    "rec": "synthetic",
    "num_classes": 300_000,
    "num_image": 100_000,
    "num_epoch": 30,
    "warmup_epoch": -1,
    "val_targets": ["lfw"],
}
REFUSED = ("rec",)


def test_augmentation_that_is_only_read_with_dali_is_not_carried_without(tmp_path: Path) -> None:
    keys = read_config(config(tmp_path)).keys
    without = convert(Assignments(keys | {"dali_aug": True}), 8, tmp_path)
    assert [one.name for one in without.recipe.data.augment] == ["mirror"]
    assert not any(note.startswith("dali_aug") for note in without.notes)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_theirs_is_carried_or_named(tmp_path: Path, key: str) -> None:
    with_dali = {"dali": True} if key == "dali_aug" else {}
    keys = read_config(config(tmp_path)).keys | with_dali
    old = convert(Assignments(keys), 8, tmp_path)
    assigned = Assignments(keys | {key: KEYS[key]})
    if key in REFUSED:
        with pytest.raises(RecipeError, match=rf"^{key}: got {re.escape(json.dumps(KEYS[key]))}, wanted "):
            convert(assigned, 8, tmp_path)
        return
    new = convert(assigned, 8, tmp_path)
    assert "0123456789abcdef" not in "\n".join(new.notes)
    if key in UNNEEDED:
        (unneeded,) = (note for note in new.notes if note.startswith("not needed: "))
        assert key in re.findall(r"\w+", unneeded)
        assert new.recipe == old.recipe
    else:
        assert new.recipe != old.recipe or any(note.startswith(f"{key}: ") for note in set(new.notes) - set(old.notes))


def test_what_has_no_counterpart_is_refused_by_name_all_at_once(tmp_path: Path) -> None:
    broken = {
        '"r50"': ('"r2060"', "network: got \"r2060\", wanted 'r18', 'r34', 'r50', 'r100', 'r200', 'mbf', "),
        "config.lr = 0.2": ('config.lr = "0.2"', 'lr: got "0.2", wanted a valid number'),
        "config.num_image = 5179510": ("", "num_image: not set, wanted by the schedule, the network or the data"),
        "config.num_epoch = 25": ("config.num_epoch = epochs()", "line 21: num_epoch: got epochs(), wanted a value"),
        "config.verbose = 2000": ("config.verboze = 2000", "verboze: unknown key; did you mean verbose?"),
        "config.dali = False": (
            "config.update(dali=True)",
            "line 17: got config.update(dali=True), wanted config.key =",
        ),
        "(1.0, 0.5, 0.0)": ("(1.35, 0.0, 0.0)", "margin_list: got [1.35, 0.0, 0.0], wanted (1.0, angle, 0.0) or"),
        "sample_rate = 1.0": ("sample_rate = 0.2\nconfig.gradient_acc = 2", "gradient_acc: got 2 with sample_rate 0.2"),
    }
    text = MS1MV3
    for old, (new, _) in broken.items():
        text = text.replace(old, new)
    with pytest.raises(RecipeError) as refused:
        convert(read_config(config(tmp_path, text)), 8, tmp_path)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(broken)
    for _, reason in broken.values():
        assert sum(reason in line for line in lines) == 1, reason


def test_a_fault_of_base_is_one_line_and_an_angle_below_0_is_one(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("config.lr = rate()\n")
    text = MS1MV3.replace("config.lr = 0.2\n", "").replace("(1.0, 0.5, 0.0)", "(1.0, -0.5, 0.0)")
    with pytest.raises(RecipeError) as refused:
        convert(read_config(config(tmp_path, text)), 8, tmp_path)
    first, second = str(refused.value).splitlines()
    assert "base.py: line 1: lr: got rate(), wanted a value or arithmetic" in first
    assert second.startswith("margin_list: got [1.0, -0.5, 0.0], wanted (1.0, angle, 0.0) or")


def test_what_is_no_config_is_refused(tmp_path: Path) -> None:
    for text, message in (
        ("config = (", "line 1: not Python"),
        ("config.lr = 1 / 0", "lr: got 1 / 0, wanted a value or arithmetic"),
        ("config.lr = 2 ** 9 ** 9 ** 9", "wanted a value or arithmetic"),
        ("config.rec = 'a' * 10 ** 9", "rec: got 'a' "),
        ("from configs.ms1mv3_r50 import config", "line 1: got from configs.ms1mv3_r50 import config"),
        ("if True:\n    config.lr = 1", "line 1: got if True:, wanted config.key"),
    ):
        with pytest.raises(RecipeError, match=re.escape(message)):
            convert(read_config(config(tmp_path, text)), 8, tmp_path)
    with pytest.raises(RecipeError, match="No such file"):
        read_config(tmp_path / "absent.py")


def test_nothing_of_a_config_is_run(tmp_path: Path) -> None:
    text = f"open({str(tmp_path / 'run')!r}, 'w')\n" + MS1MV3
    read_config(config(tmp_path, text))
    assert not (tmp_path / "run").exists()


def test_the_stage_writes_a_recipe_that_loads_with_its_notes(tmp_path: Path) -> None:
    out = tmp_path / "webface.yaml"
    stage = ROOT / "stages" / "convert_recipe.py"
    options = [str(out), "--ranks", "16", "--shards", str(tmp_path / "shards")]
    done = run_warm(stage, config(tmp_path, WEBFACE), *options)
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(out)
    assert (recipe.head.margin, recipe.head.sample_rate, recipe.data.global_batch) == (CosFace(cosine=0.4), 0.2, 2048)
    assert recipe.evaluation.sets["agedb_30"].pairs == tmp_path / "agedb_30.tsv"
    assert out.read_text().startswith("# From config.py of arcface_torch, for 16 GPUs.\n# shards: ")
    for text in (out.read_text(), done.stdout):
        assert "(x − 127.5) / 127.5 there" in text
        assert f"python stages/shard.py /train_tmp/ms1m-retinaface-t1 {tmp_path / 'shards'}" in text
        assert f"stages/pairs.py bin /train_tmp/ms1m-retinaface-t1/agedb_30.bin {tmp_path / 'agedb_30.tsv'}" in text
    out.unlink()
    done = run_warm(stage, tmp_path / "absent.py", *options)
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_REFUSED, 1)
    assert done.stderr.startswith("convert_recipe: ")
    assert not out.exists()
