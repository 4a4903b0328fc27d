"""A small backbone as training leaves it, for tests of what is made of it."""

import torch

from pipeline.backbones import BACKBONES
from pipeline.evaluation.embedding.trained import TrainedBackbone, digest_of


def make_trained(name: str, size: tuple[int, int]) -> TrainedBackbone:
    torch.manual_seed(0)
    module = BACKBONES[name](name=name, embedding_dim=24).build(size)
    for batch in torch.randn(3, 8, 3, *size):  # BatchNorm statistics of something other than nothing
        module(batch)
    return TrainedBackbone(module.eval(), name, 24, 70, size, digest_of(module.state_dict()))
