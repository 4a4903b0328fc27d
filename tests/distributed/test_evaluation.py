"""Verification while training: the numbers of the saved checkpoint on any number of ranks, and training as without."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from cluster.ranks.collectives import SENT, gather_objects
from cluster.ranks.watchdog import Watchdog
from cluster.stopwatch import STEP
from pipeline.backbones.iresnet import IResNetBackbone
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.evaluation.embedding.embed import files_of, means_of_runs
from pipeline.evaluation.embedding.source import How, image_files
from pipeline.evaluation.embedding.trained import load_trained
from pipeline.evaluation.results import load, result_file
from pipeline.evaluation.sets import judge, sets_of
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim.sgd import SGD
from pipeline.recipe.schema import (
    Checkpoint,
    Data,
    Evaluation,
    EvaluationSet,
    Head,
    Recipe,
    RecipeError,
)
from pipeline.run import saver
from pipeline.run.best import Best, read_best
from pipeline.run.checkpoint import complete_steps
from pipeline.run.folder import RunFolder
from pipeline.shards.alignment.similarity import SHIFTS
from pipeline.training.evaluator import Evaluated, Evaluator
from pipeline.training.loop import Trainer
from pipeline.training.observed import train_observed
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import write_faces, write_shards
from tests.full_disk import no_file_above

STEPS = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_strangers(tmp_path_factory.mktemp("strangers"))


def write_strangers(folder: Path) -> Path:
    """Nineteen images of four people, which no number of ranks divides, one person with a video; and their pairs."""
    faces = write_faces(folder / "faces", identities=4, images=4, seed=9)
    video = faces / "person003" / "video"
    video.mkdir()
    for number in range(3):
        (video / f"{number}.jpg").write_bytes((faces / f"person003/{number:04d}.jpg").read_bytes())
    shots = [f"person{p:03d}/{shot:04d}.jpg" for p in range(4) for shot in range(4)] + ["person003/video"]
    lines = ["fold\tpath_a\tpath_b\tsame"]
    for i, (a, b) in enumerate(combinations(shots, 2)):
        lines.append(f"{i % 3}\t{a}\t{b}\t{int(a.split('/')[0] == b.split('/')[0])}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return folder


def recipe(shards: Path, strangers: Path, **changes: Any) -> Recipe:
    chosen = EvaluationSet(images=strangers / "faces", pairs=strangers / "pairs.tsv")
    fields: dict[str, Any] = {
        "seed": 3,
        "data": Data(shards=shards, global_batch=12, streams=2, decode_threads=1),
        "backbone": SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        "head": Head(margin=ASoftmax(lambda_max=50, lambda_gamma=0.5)),
        "optimizer": SGD(steps=STEPS, learning_rate=0.02),
        "checkpoint": Checkpoint(every=2, keep=1),
        "evaluation": Evaluation(sets={"strangers": chosen}, batch_size=4, resamples=10),
    }
    return Recipe(**{**fields, **changes})


def train_on(rank: int, ranks: int, plan: Recipe, run: Path, evaluates: bool) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run)
    evaluator = Evaluator(trainer, sets_of(plan))
    losses, found, left = [], [], []
    for record in trainer.train():
        losses.append(record.loss)
        if evaluates and plan.evaluates_after(record.step):
            before = [part.training for part in trainer.engine.module.modules()]
            found.append(evaluator.evaluate())
            assert [part.training for part in trainer.engine.module.modules()] == before
            left.append((STEP.take(), SENT.take()))
    return {
        "losses": losses,
        "found": found,
        "left": left,
        "backbone": {name: value.clone() for name, value in trainer.engine.parameters().items()},
        "rows": trainer.head.weight_SD.detach().clone(),
    }


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (1, {}),
        (2, {}),
        (3, {}),
        (2, {"zero_stage": 1}),
        (3, {"zero_stage": 3}),
        (2, {"backbone": IResNetBackbone(name="iresnet18", embedding_dim=8)}),  # its statistics differ between ranks
    ],
    ids=["1", "2", "3", "2 ZeRO 1", "3 ZeRO 3", "2 BatchNorm"],
)
def test_it_finds_what_the_saved_checkpoint_gives_and_changes_nothing(
    shards: Path, strangers: Path, tmp_path: Path, ranks: int, changes: dict[str, Any]
) -> None:
    plan = recipe(shards, strangers, checkpoint=Checkpoint(every=2, keep=9), **changes)
    results = run_ranks(train_on, ranks, plan, tmp_path / "run", True)
    plain = run_ranks(train_on, ranks, plan, tmp_path / "plain", False)
    for with_it, without in zip(results, plain, strict=True):
        assert with_it["losses"] == without["losses"]
        assert torch.equal(with_it["rows"], without["rows"])
        assert with_it["backbone"].keys() == without["backbone"].keys()
        for name, value in with_it["backbone"].items():
            assert torch.equal(value, without["backbone"][name]), name
        assert with_it["left"] == [({}, 0)] * 3, "time or traffic left for the next step"
    (tmp_path / "run/recipe.yaml").write_text(plan.to_yaml())
    (chosen,) = sets_of(plan)
    for number, step in enumerate((2, 4, 6)):
        trained = load_trained(tmp_path / "run", step)
        files, counts = files_of(strangers / "faces", chosen.pairs)
        rows = trained.source.features(image_files(strangers / "faces", files), How(7))
        features = means_of_runs(np.concatenate(list(rows)), counts)
        settings = chosen.settings(trained.weights_sha256, 10)
        alone = judge(chosen, features, settings, step)
        stored = load(result_file(tmp_path / "run/evaluations/strangers", step))
        assert stored.summary.settings == settings
        np.testing.assert_allclose(stored.pairs.scores, alone.pairs.scores, atol=1e-5)
        assert stored.path_b.tolist() == alone.path_b.tolist()
        for result in results:
            one: Evaluated = result["found"][number]
            assert one.results["strangers"] == stored.summary.verification
            assert one.results["strangers"].accuracy.value == alone.summary.verification.accuracy.value
            assert (one.step, one.faults) == (step, [])


def fake_accuracy(file: Path, accuracy: float) -> None:
    content = json.loads(file.read_text())
    content["verification"]["accuracy"]["value"] = accuracy
    file.write_text(json.dumps(content))


def keep_the_best(rank: int, ranks: int, plan: Recipe, run: Path) -> list[tuple[int, Best | None, list[int]]]:
    """Train with made-up accuracies, best after step 4; what is best and what is there after each evaluation."""
    trainer, seen = trainer_of(rank, ranks, plan, run), []
    evaluator = Evaluator(trainer, sets_of(plan))
    for record in trainer.train():
        if plan.evaluates_after(record.step):
            evaluator.evaluate()
            if rank == 0:
                fake_accuracy(result_file(run / "evaluations/strangers", record.step), 1 - abs(record.step - 4) / 100)
            found = evaluator.evaluate()  # it is stored: the made-up number is believed
            seen.append((record.step, found.best, complete_steps(run)))
    return seen


def go_on(rank: int, ranks: int, plan: Recipe, run: Path, step: int) -> list[int]:
    trainer = trainer_of(rank, ranks, plan, run)
    trainer.resume(step)
    Evaluator(trainer, sets_of(plan)).look_back()
    dist.barrier()
    best = read_best(run)
    list(trainer.train())
    return [best.step if best else -1, *complete_steps(run)]


def test_the_best_checkpoint_stays_through_saves_and_resume(shards: Path, strangers: Path, tmp_path: Path) -> None:
    plan = recipe(shards, strangers, optimizer=SGD(steps=10, learning_rate=0.02))
    for seen in run_ranks(keep_the_best, 2, plan, tmp_path):
        assert [(step, best.step, best.accuracy) for step, best, _ in seen] == [
            (2, 2, 0.98),
            (4, 4, 1.0),
            (6, 4, 1.0),
            (8, 4, 1.0),
            (10, 4, 1.0),
        ]
        assert seen[-1][2] == [0, 4, 10]
    longer = plan.model_copy(update={"optimizer": SGD(steps=14, learning_rate=0.02)})
    assert run_ranks(go_on, 1, longer, tmp_path, 10) == [[4, 0, 4, 14]]
    # From before the best: what came after is not best any more, though its result still lies there.
    first = {file.name: file.stat().st_ino for file in RunFolder(tmp_path).checkpoint(0).iterdir()}
    assert run_ranks(go_on, 1, plan, tmp_path, 0)[0][0] == -1
    assert first == {file.name: file.stat().st_ino for file in RunFolder(tmp_path).checkpoint(0).iterdir()}, (
        "a run resumed from its first checkpoint wrote that again"
    )


def evaluate_beside_a_long_save(rank: int, ranks: int, plan: Recipe, run: Path) -> tuple[list[int], int]:
    """How many files of the save this rank had written at each exchange of an evaluation, and how many there are."""
    trainer = trainer_of(rank, ranks, plan, run)
    saving: Any = saver
    evaluating: Any = sys.modules[Evaluator.__module__]
    evaluator, write = Evaluator(trainer, sets_of(plan)), saving.write_tensors
    began, written, seen = threading.Event(), [], []

    def write_long(*arguments: Any) -> Any:
        began.wait()
        time.sleep(2)
        written.append(arguments)
        return write(*arguments)

    def gather(value: Any, group: Any) -> list[Any]:
        seen.append(len(written))
        began.set()
        return gather_objects(value, group)

    for record in trainer.train():
        if record.step == 1:  # the save of step 0 is over, that of step 2 to come
            saving.write_tensors, evaluating.gather_objects = write_long, gather
        elif record.step == 2:
            evaluator.evaluate()
            return seen, len(written)
    raise AssertionError("two steps are too many")


def test_every_rank_waits_for_the_save_and_not_in_an_exchange(shards: Path, strangers: Path, tmp_path: Path) -> None:
    """An exchange has `timeout_seconds`, a save as long as the disk takes."""
    for seen, written in run_ranks(evaluate_beside_a_long_save, 2, recipe(shards, strangers), tmp_path):
        assert seen[0] == 0 and seen[-1] == written


def stop_in_the_last_step(rank: int, ranks: int, plan: Recipe, run: Path) -> list[tuple[bool, bool]]:
    """Of a start that is stopped there, and of the next: whether an evaluation is left, and its result there."""
    found = []
    for stops, resume in ((True, None), (False, STEPS)):
        trainer = trainer_of(rank, ranks, plan, run, resume)
        watchdog = Watchdog(dist.HashStore(), trainer.topology, 300)

        def asked(trainer: Trainer = trainer, stops: bool = stops) -> bool:
            return stops and trainer.step == STEPS - 1

        left = train_observed(trainer, Evaluator(trainer, sets_of(plan)), [], watchdog, asked)
        found.append((left, result_file(run / "evaluations/strangers", STEPS).is_file()))
    return found


def test_a_run_that_is_stopped_in_its_last_step_is_not_finished_before_it_is_evaluated(
    shards: Path, strangers: Path, tmp_path: Path
) -> None:
    (found,) = run_ranks(stop_in_the_last_step, 1, recipe(shards, strangers), tmp_path)
    assert found == [(True, False), (False, True)]


def break_in_mid_run(rank: int, ranks: int, plan: Recipe, run: Path, image: Path) -> list[Evaluated]:
    trainer, found = trainer_of(rank, ranks, plan, run), []
    evaluator = Evaluator(trainer, sets_of(plan))
    evaluator.check()
    for record in trainer.train():
        if plan.evaluates_after(record.step):
            dist.barrier()
            if record.step == 4 and rank == 0:
                image.unlink()
            dist.barrier()
            found.append(evaluator.evaluate())
    return found


def test_an_image_that_goes_in_mid_run_costs_its_set_not_the_run(shards: Path, tmp_path: Path) -> None:
    plan = recipe(shards, write_strangers(tmp_path), zero_stage=3)
    image = tmp_path / "faces/person001/0002.jpg"
    for first, second, third in run_ranks(break_in_mid_run, 2, plan, tmp_path / "run", image):
        assert list(first.results) == ["strangers"]
        for later in (second, third):
            assert later.results == {}
            assert later.faults == [
                f"evaluation.sets.strangers: {image}: cannot be read, wanted images 32 high and 32 wide"
            ]
            assert later.best is not None
            assert later.best.step == 2


def spoil_the_disk(rank: int, ranks: int, plan: Recipe, run: Path) -> list[Evaluated]:
    """No file takes a byte while step 4 is evaluated; what is written after step 6 finds its places taken."""
    trainer, found = trainer_of(rank, ranks, plan, run), []
    evaluator = Evaluator(trainer, sets_of(plan))
    places = (run / "evaluations" / "strangers", run / "best.json")
    for record in trainer.train():
        if not plan.evaluates_after(record.step):
            continue
        trainer.saves.saver.wait()
        if record.step == 6 and rank == 0:
            for place in places:
                place.rename(place.with_suffix(".kept"))
            places[0].touch()
            places[1].mkdir()
        with no_file_above(0) if record.step == 4 else nullcontext():
            found.append(evaluator.evaluate())
        if record.step == 6 and rank == 0:
            places[0].unlink()
            places[1].rmdir()
            for place in places:
                place.with_suffix(".kept").rename(place)
    return found


def test_a_disk_that_takes_no_results_costs_the_files_and_not_the_run(
    shards: Path, strangers: Path, tmp_path: Path
) -> None:
    plan = recipe(shards, strangers, optimizer=SGD(steps=8, learning_rate=0.02))
    first, second = run_ranks(spoil_the_disk, 2, plan, tmp_path)
    results = tmp_path / "evaluations" / "strangers"
    best = tmp_path / "best.json"
    for found in (first, second):
        assert [one.step for one in found] == [2, 4, 6, 8]
        assert [list(one.results) for one in found] == [["strangers"]] * 4
        assert [one.faults for one in found] == [
            [],
            [
                f"evaluation.sets.strangers: {results / 'step-00000004.npz'}: not written: File too large",
                f"{best}: not written: File too large",
            ],
            [f"evaluation.sets.strangers: {results}: File exists", f"{best}: not written: Is a directory"],
            [],
        ]
        accuracies = [one.results["strangers"].accuracy.value for one in found]
        assert found[1].highest["strangers"] == max(accuracies[:2])  # step 4's is in no file
        assert [one.highest for one in found] == [one.highest for one in first]
    assert sorted(file.name for file in results.iterdir()) == [
        f"step-0000000{step}.{kind}" for step in (2, 8) for kind in ("json", "npz")
    ]
    assert read_best(tmp_path) == first[-1].best
    assert max(complete_steps(tmp_path)) == 8
    assert not list(tmp_path.rglob("*.part"))


def check(rank: int, ranks: int, torn: Recipe, sound: Recipe, run: Path) -> tuple[str, bool, Evaluated]:
    """What is said of a torn image, whether anything was written then, and what is found on sound sets."""
    SHIFTS.update({(32, 32): 0.0, (32, 48): 8.0})
    with pytest.raises(RecipeError) as refused:
        Evaluator(trainer_of(rank, ranks, torn, run), sets_of(torn)).check()
    written = run.exists()
    dist.barrier()
    evaluator = Evaluator(trainer_of(rank, ranks, sound, run), sets_of(sound))
    evaluator.check()
    return str(refused.value), written, evaluator.evaluate()


def widened(faces: Path, folder: Path) -> Path:
    """The same images with 8 columns more at each side."""
    shutil.copytree(faces, folder)
    for file in folder.rglob("*.jpg"):
        pixels = np.pad(np.asarray(Image.open(file)), ((0, 0), (8, 8), (0, 0)), mode="edge")
        Image.fromarray(pixels).save(file, "PNG")
    return folder


def test_a_torn_image_is_refused_on_every_rank_and_crops_of_another_size_are_fitted(
    shards: Path, strangers: Path, tmp_path: Path
) -> None:
    torn = recipe(shards, write_strangers(tmp_path))
    image = tmp_path / "faces/person002/0001.jpg"
    image.write_bytes(image.read_bytes()[:300])
    sets = {
        name: EvaluationSet(images=images, pairs=strangers / "pairs.tsv")
        for name, images in (("own", strangers / "faces"), ("wide", widened(strangers / "faces", tmp_path / "wide")))
    }
    sound = recipe(shards, strangers, evaluation=Evaluation(sets=sets, best="own", batch_size=4, resamples=10))
    wanted = f"evaluation.sets.strangers: {image}: cannot be decoded, wanted images 32 high and 32 wide"
    for message, written, found in run_ranks(check, 2, torn, sound, tmp_path / "run"):
        assert (message, written, found.faults) == (wanted, False, [])
        assert found.results["own"] == found.results["wide"]
    own, wide = (load(result_file(tmp_path / f"run/evaluations/{name}", 0)).pairs.scores for name in sets)
    np.testing.assert_allclose(wide, own, atol=1e-6)
