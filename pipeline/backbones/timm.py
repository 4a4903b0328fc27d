"""timm's networks by name (Wightman, PyTorch Image Models), with their last layer as the embedding: an extra."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from pydantic import Field
from torch import nn

from pipeline.backbones.backbone import BACKBONES, Backbone
from pipeline.backbones.batch_norm import batch_norms
from pipeline.backbones.draws import DropPath

TORCHS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@BACKBONES.add("timm/*")
class TimmBackbone(Backbone):
    """A network of timm's, named as there: timm/convnext_tiny. Initial weights are timm's random ones."""

    drop_path: float = Field(0.0, ge=0, lt=1)
    """timm's drop_path_rate, of networks that have one: drawn by sample, so the same on any number of ranks."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """The network with a last layer of D numbers.

        Raises:
            ValueError: if timm is not installed or has no such network, if the network does not take images of this
                size or a drop path, and if its batch norms cannot be synchronised.
        """
        try:
            import timm  # noqa: PLC0415 - an extra
        except ImportError as missing:
            raise ValueError(f"name: got {self.name}, wanted pip install -e '.[timm]': {missing}") from None
        model = self.name.partition("/")[2]
        if not timm.is_model(model):
            raise ValueError(f"name: got {self.name}, wanted a network of timm {timm.__version__}")
        keys: dict[str, Any] = {"num_classes": self.embedding_dim, "pretrained": False}
        if self.drop_path:
            keys["drop_path_rate"] = self.drop_path
        if timm.get_pretrained_cfg(model).fixed_input_size:
            keys["img_size"] = image_size
        try:
            network = timm.create_model(model, **keys)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"name: got {self.name} of images {image_size}: {error}") from None
        _draw_by_sample(network, timm.layers.DropPath)
        if self.batch_norm == "synchronised":
            self._check_norms(network)
        if hasattr(network, "no_weight_decay"):
            # Some name parameters that only their relatives have.
            names = set(network.no_weight_decay()) & dict(network.named_parameters()).keys()
            network.no_weight_decay = lambda: names
        return network

    def blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """What its lists named `blocks` hold.

        Raises:
            ValueError: if it has none.
        """
        found = _lists_of_blocks(network)
        if not found:
            raise ValueError(f"activation_checkpointing: got true, wanted false: {self.name} names no blocks")
        return list(chain.from_iterable(found))

    def _check_norms(self, network: nn.Module) -> None:
        """Of torch's own classes alone it is known what they compute."""
        for norm in batch_norms(network):
            if type(norm) not in TORCHS:
                raise ValueError(f"batch_norm: got synchronised, wanted local: {self.name} has {type(norm).__name__}")


def _draw_by_sample(network: nn.Module, theirs: type[nn.Module]) -> None:
    """Put our `DropPath` in the place of every one of timm's."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, theirs):
                rate: Any = child.drop_prob
                setattr(module, name, DropPath(rate or 0.0))


def _lists_of_blocks(network: nn.Module) -> list[Any]:
    """The outermost sequences whose name is `blocks`."""
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        inside = any(name.startswith(outer + ".") for outer in found)
        if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.Sequential | nn.ModuleList) and not inside:
            found[name] = module
    return list(found.values())
