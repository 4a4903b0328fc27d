"""Parts of a network that stay as they are in training: the early stages of one that was trained before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Let the modules of these names stay as they are: no gradients, and in evaluation mode whatever comes.

    So their batch norms use the statistics that they have, and keep them.

    Raises:
        ValueError: for a name that is no module's, or if nothing is left that learns.
    """
    modules = dict(network.named_modules())
    for name in names:
        if not name or name not in modules:
            near = ", ".join(child for child, _ in network.named_children())
            raise ValueError(f"frozen: got {name!r}, wanted names of modules: {near}, or of one inside them")
        modules[name].requires_grad_(False)
        modules[name].eval()
        # `Module.train` calls this for its children.
        modules[name].train = partial(_stay, modules[name])
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"frozen: got {', '.join(names)}, wanted something left that learns")


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - torch's signature
    """``module.train`` of a frozen module."""
    return module
