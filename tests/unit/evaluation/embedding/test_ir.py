"""The weights of an IR network, renamed, give an IResNet that computes the same."""

from __future__ import annotations

import pytest
import torch

from pipeline.backbones.iresnet import IResNetBackbone
from pipeline.evaluation.embedding.ir import as_iresnet, is_ir
from tests.unit.evaluation.embedding.ir_network import IR

SIZE = (32, 48)


def scattered(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights in float64, none of which is what a network begins with."""
    draw = torch.Generator().manual_seed(0)
    for name, tensor in network.double().state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            values = torch.rand(tensor.shape, generator=draw, dtype=torch.float64)
            tensor.copy_(values + 0.5 if "var" in name else values - 0.3)
    return network.state_dict()


@pytest.mark.parametrize(("theirs", "ours"), [(18, 18), (50, 50)])
def test_it_computes_the_same(theirs: int, ours: int) -> None:
    torch.manual_seed(0)
    network = IR(theirs, 6, SIZE)
    weights = scattered(network)
    assert is_ir(weights)
    iresnet = IResNetBackbone(name=f"iresnet{ours}", embedding_dim=6).build(SIZE).double()
    iresnet.load_state_dict(as_iresnet(weights))
    images = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        wanted, found = network.eval()(images), iresnet.eval()(images)
    # The scale that undoes a batch norm's epsilon is a float32.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))


def test_another_network_is_not_taken_for_one() -> None:
    assert not is_ir(IResNetBackbone(name="iresnet18", embedding_dim=6).build(SIZE).state_dict())
    names = as_iresnet(IR(101, 6, SIZE).state_dict()).keys()
    assert names == IResNetBackbone(name="iresnet100", embedding_dim=6).build(SIZE).state_dict().keys()
