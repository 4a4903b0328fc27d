"""The most similar rows of a classifier: identities whose rows point the same way may be one person under two names."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Reads the rows of a range of classes, [n, D].
Read = Callable[[range], torch.Tensor]


@torch.no_grad()
def nearest_rows(read: Read, classes: int, block: int = 8192) -> tuple[torch.Tensor, torch.Tensor]:
    """For each class the largest cosine of its row to another's [C], and whose that is [C].

    Exact: every pair is compared, a block against a block; held are two blocks of rows and block² cosines. It takes
    C² D multiply-adds, half of them left out because cos(a, b) = cos(b, a).

    Args:
        read: the rows, on whatever device.
        classes: C, at least 2.
        block: classes read at a time.
    """
    blocks = [range(start, min(start + block, classes)) for start in range(0, classes, block)]
    best, whose = torch.full((classes,), -2.0), torch.zeros(classes, dtype=torch.int64)

    def keep(of: range, among: range, cosine_nm: torch.Tensor) -> None:
        found = cosine_nm.max(dim=1)
        mine, here = slice(of.start, of.stop), found.values.float().cpu()
        better = here > best[mine]
        best[mine] = torch.where(better, here, best[mine])
        whose[mine] = torch.where(better, found.indices.cpu() + among.start, whose[mine])

    for number, one in enumerate(blocks):
        rows = torch.nn.functional.normalize(read(one), dim=1)
        for other in blocks[number:]:
            others = rows if other == one else torch.nn.functional.normalize(read(other), dim=1)
            cosine_nm = rows @ others.T
            if other == one:
                cosine_nm.fill_diagonal_(-2)
            keep(one, other, cosine_nm)
            if other != one:
                keep(other, one, cosine_nm.T)
    return best, whose


def pairs_above(best: torch.Tensor, whose: torch.Tensor, cosine: float) -> list[tuple[int, int, float]]:
    """(class, class, cosine) of nearest rows above a cosine, each pair once, the most similar first."""
    found = {}
    for one in torch.nonzero(best > cosine)[:, 0].tolist():
        other = int(whose[one])
        found[min(one, other), max(one, other)] = float(best[one])
    return sorted(((a, b, value) for (a, b), value in found.items()), key=lambda pair: (-pair[2], pair[:2]))
