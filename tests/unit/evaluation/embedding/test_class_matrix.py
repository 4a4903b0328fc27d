"""Class matrices by other people's names, of any number of ranks, become rows in the order of the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.evaluation.embedding.class_matrix import in_rank_order, read_class_matrix
from tests.unit.evaluation.embedding.ir_network import IR

ROWS_CD = torch.arange(23 * 4, dtype=torch.float32).reshape(23, 4)
BACKBONE = IR(18, 4, (16, 16)).state_dict()

SHAPES: dict[str, Any] = {
    "arcface_torch": {"state_dict_backbone": BACKBONE, "state_dict_softmax_fc": {"weight": ROWS_CD}, "epoch": 3},
    "a tensor": ROWS_CD,
    "opensphere": {"backbone": BACKBONE, "head": {"w": ROWS_CD, "norm.weight": torch.ones(4)}},
    "opensphere's checkpoint": {"model": {"backbone": BACKBONE, "head": {"w": ROWS_CD}}, "step": 7},
    "AdaFace": {"state_dict": {f"model.{k}": v for k, v in BACKBONE.items()} | {"head.kernel": ROWS_CD.T}},
    "facenet-pytorch": {
        "last_linear.weight": torch.ones(4, 9),
        "logits.weight": ROWS_CD,
        "logits.bias": torch.ones(23),
    },
    "half": {"module.classifier.weight": ROWS_CD.half()},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_is_found_by_its_name(tmp_path: Path, shape: str) -> None:
    torch.save(SHAPES[shape], tmp_path / "theirs.pt")
    (rows_CD,) = read_class_matrix([tmp_path / "theirs.pt"], 4)
    assert rows_CD.dtype == torch.float32
    assert torch.equal(rows_CD, ROWS_CD)


@pytest.mark.parametrize("ranks", [1, 2, 3, 11])
def test_the_files_of_all_ranks_are_joined_in_their_order(tmp_path: Path, ranks: int) -> None:
    files = [tmp_path / f"epoch_3_checkpoint_gpu_{rank}.pt" for rank in range(ranks)]
    for file, part in zip(files, ROWS_CD.tensor_split(ranks), strict=True):
        torch.save({"state_dict_softmax_fc": {"weight": part.clone()}}, file)
    by_shell = sorted(files)  # gpu_10 before gpu_2
    assert torch.equal(torch.cat(list(read_class_matrix(by_shell, 4))), ROWS_CD)


def test_what_is_no_whole_matrix_is_named(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("gpu_0.pt", "gpu_1.pt", "gpu_3.pt", "gpu_01.pt", "gpu.pt")]
    for wrong, message in (
        ((files[0], files[1], files[2]), "got no file of rank 2 among 3, wanted all ranks'"),
        ((files[1], files[3]), r"gpu_01.pt: got rank 01 twice, wanted one of it and .*gpu_1.pt"),
        ((files[0], files[4]), r"gpu.pt: got no rank in its name"),
    ):
        with pytest.raises(ValueError, match=message):
            in_rank_order(wrong)
    torch.save(BACKBONE, tmp_path / "backbone.pt")
    with pytest.raises(ValueError, match=r"backbone.pt: got 0 class matrices \[\], wanted one"):
        list(read_class_matrix([tmp_path / "backbone.pt"], 4))
    torch.save({"head.weight": ROWS_CD, "head.kernel": ROWS_CD.T}, files[4])
    with pytest.raises(ValueError, match=r"gpu.pt: got 2 class matrices \['head.kernel', 'head.weight'\], wanted one"):
        list(read_class_matrix([files[4]], 4))
    torch.save(ROWS_CD, files[4])
    with pytest.raises(ValueError, match=r"gpu.pt: weight: got \[23, 4\], wanted 8 numbers a class"):
        list(read_class_matrix([files[4]], 8))
