"""The rows of a classifier that was trained elsewhere: a matrix in one file, or in one for each rank."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.embedding.weights import read_weights

# Keys under which a checkpoint keeps its classifier: arcface_torch's, and opensphere's.
WRAPPERS = ("state_dict_softmax_fc", "model", "state_dict", "head")
# Names of a matrix, its last word -> whether its columns are the classes. arcface_torch, CVLface and facenet-pytorch
# have "weight", opensphere "w", AdaFace "kernel".
MATRICES = {"weight": False, "w": False, "kernel": True}
# What stands before that word where a backbone's weights are beside it.
HEADS = ("head", "classifier", "logits", "margin", "partial_fc")


def in_rank_order(files: Sequence[Path]) -> list[Path]:
    """The files of all ranks, by the last number of their names, which are 0, 1, 2 and so on; one file passes.

    Raises ValueError naming a rank that is missing or there twice.
    """
    if len(files) == 1:
        return list(files)
    by_rank: dict[int, Path] = {}
    for file in files:
        numbers = re.findall(r"\d+", file.stem)
        if not numbers:
            raise ValueError(f"{file}: got no rank in its name, wanted one such as checkpoint_gpu_0.pt")
        if (other := by_rank.setdefault(int(numbers[-1]), file)) != file:
            raise ValueError(f"{file}: got rank {numbers[-1]} twice, wanted one of it and {other}")
    for rank in range(len(files)):
        if rank not in by_rank:
            raise ValueError(f"{files[0].parent}: got no file of rank {rank} among {len(files)}, wanted all ranks'")
    return [by_rank[rank] for rank in range(len(files))]


def read_class_matrix(files: Sequence[Path], embedding_dim: int) -> Iterator[torch.Tensor]:
    """Rows [n, D] float32 of each file, in the order of the classes; one file at a time is in memory.

    Raises ValueError naming a file without such a matrix.
    """
    for file in in_rank_order(files):
        name, matrix = _matrix_of(read_weights(file), file)
        rows = matrix.T if MATRICES[name.rpartition(".")[2]] else matrix
        if rows.shape[1] != embedding_dim:
            raise ValueError(
                f"{file}: {name}: got {list(matrix.shape)}, wanted {embedding_dim} numbers a class, as the backbone has"
            )
        yield rows.float().contiguous()


def _matrix_of(content: dict[str, Any], file: Path) -> tuple[str, torch.Tensor]:
    alone = False  # whether what is left is the classifier's
    while wrapper := next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None):
        content, alone = content[wrapper], wrapper in ("state_dict_softmax_fc", "head")
    found = {
        name: tensor
        for name, tensor in content.items()
        if isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and _is_of_head(name, alone)
    }
    if len(found) != 1:
        raise ValueError(f"{file}: got {len(found)} class matrices {sorted(found)[:3]}, wanted one")
    return next(iter(found.items()))


def _is_of_head(name: str, alone: bool) -> bool:
    *before, last = name.removeprefix("module.").split(".")
    return last in MATRICES and (alone or not before or any(word in HEADS for word in before))
