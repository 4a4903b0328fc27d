"""Rows that belong to one rank, in a module: moved, copied, saved and loaded with it, and seen by nothing around it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from pipeline.optim.rows import Rows


class OwnRows(nn.Module):
    """A module with rows of this rank's own, which are no parameters of it.

    What walks the modules of a model takes their parameters for replicas: DDP sends rank 0's to all and averages their
    gradients, ``fully_shard`` cuts them. Here every rank has other rows. So these hang on the module without being
    registered, and an optimizer is given ``weight_SD`` by name. All else is what a module does: ``to`` and the like,
    ``deepcopy``, ``state_dict``, ``load_state_dict``, ``to_empty``.

    Args:
        rows: of `classes`.
        classes: the numbers of this rank's classes.
        num_classes: of all ranks.

    Attributes:
        rows, classes, num_classes: as given.
        step: steps that were ended, which the state has too.
    """

    rows: Rows

    def __init__(self, rows: Rows, classes: range, num_classes: int) -> None:
        super().__init__()
        object.__setattr__(self, "rows", rows)  # nn.Module's own would register it
        self.classes, self.num_classes, self.step = classes, num_classes, 0

    @property
    def weight_SD(self) -> nn.Parameter:
        """This rank's rows [S, D]."""
        return self.rows.weight_SD

    @property
    def slots(self) -> dict[str, torch.Tensor]:
        """What the optimizer keeps of the rows, by name: [S, D] or [S], live."""
        return self.rows.slots

    def moved(self) -> None:
        """The tensors are others now, or elsewhere: what was made for those before is of no use."""

    def shared(self) -> Iterable[object]:
        """What a copy has in common with the original."""
        return ()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> OwnRows:
        self.rows._apply(fn, recurse)
        self.moved()
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnRows:
        memo.update({id(thing): thing for thing in self.shared()})
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copied.moved()
        return copied

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "classes"] = torch.tensor([self.classes.start, self.classes.stop, self.num_classes])
        destination[prefix + "step"] = torch.tensor(self.step)
        self.rows.state_dict(destination=destination, prefix=f"{prefix}rows.", keep_vars=keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        of_rank = [key for key in ("classes", "step") if prefix + key in state_dict]
        missing_keys += [prefix + key for key in ("classes", "step") if key not in of_rank]
        if "classes" in of_rank:
            start, stop, num_classes = state_dict[prefix + "classes"].tolist()
            if (range(start, stop), num_classes) != (self.classes, self.num_classes):
                error_msgs.append(
                    f"{prefix}classes: got {start} to {stop - 1} of {num_classes}, wanted {self.classes.start} to "
                    f"{self.classes.stop - 1} of {self.num_classes}: pipeline.head.of_classes makes them of the states "
                    "of all ranks"
                )
                return
        if "step" in of_rank:
            self.step = int(state_dict[prefix + "step"])
        known = {name for name, _ in self.named_children()} | {"rows", "classes", "step"}
        own = [key for key in state_dict if key.startswith(prefix)]
        unexpected_keys += [key for key in own if key[len(prefix) :].partition(".")[0] not in known and strict]
        of_rows = (state_dict, f"{prefix}rows.", local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        self.rows._load_from_state_dict(*of_rows)
        self.rows.loaded()
        self.moved()
