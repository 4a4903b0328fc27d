"""ViT against an independent float64 forward pass, the names that published weights have, and what it drops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.backbones.vit import SIZES, Block, ViT, ViTBackbone
from pipeline.evaluation.embedding.feeding import Given
from pipeline.evaluation.embedding.weights import for_our_pixels, read_published
from pipeline.optim.adamw import AdamW
from pipeline.optim.optimizer import parameter_groups

SIZE = (20, 29)  # 2 × 3 patches of 9, and pixels that fill none
WIDTH, DEPTH, PATCHES = 16, 3, 6


def tiny(drop_path: float = 0.0, mask_ratio: float = 0.0) -> ViT:
    """With no weight at a value at which it would not matter."""
    torch.manual_seed(0)
    network = ViT(WIDTH, DEPTH, 5, SIZE, 9, drop_path, mask_ratio).double().eval()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "var" in name else tensor.normal_(0.1, 0.3)
    return network


def vit_reference(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Inference by loops over patches and heads, reading arcface_torch's names."""
    embeddings = []
    for image in images:
        patches = [image[:, top : top + 9, left : left + 9] for top in (0, 9) for left in (0, 9, 18)]
        weight = state["patch_embed.proj.weight"].flatten(1)
        x = torch.stack([weight @ patch.flatten() + state["patch_embed.proj.bias"] for patch in patches])
        x = x + state["pos_embed"][0]
        for block in range(DEPTH):
            at = f"blocks.{block}"
            x = x + attention_reference(state, f"{at}.attn", layer_norm(state, f"{at}.norm1", x))
            hidden = layer_norm(state, f"{at}.norm2", x) @ state[f"{at}.mlp.fc1.weight"].T
            hidden = (hidden + state[f"{at}.mlp.fc1.bias"]).clamp(0, 6)
            x = x + hidden @ state[f"{at}.mlp.fc2.weight"].T + state[f"{at}.mlp.fc2.bias"]
        x = state["feature.0.weight"] @ layer_norm(state, "norm", x).flatten()
        x = state["feature.2.weight"] @ batch_norm(state, "feature.1", x)
        embeddings.append(batch_norm(state, "feature.3", x))
    return torch.stack(embeddings)


def attention_reference(state: dict[str, torch.Tensor], at: str, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (x @ state[f"{at}.qkv.weight"].T).chunk(3, dim=1)
    heads = []
    for head in range(8):
        part = slice(head * WIDTH // 8, (head + 1) * WIDTH // 8)
        scores = (q[:, part] @ k[:, part].T / (WIDTH // 8) ** 0.5).exp()
        heads.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
    return torch.cat(heads, dim=1) @ state[f"{at}.proj.weight"].T + state[f"{at}.proj.bias"]


def layer_norm(state: dict[str, torch.Tensor], at: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(1, keepdim=True)
    scale = (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * state[f"{at}.weight"] + state[f"{at}.bias"]


def batch_norm(state: dict[str, torch.Tensor], at: str, x: torch.Tensor) -> torch.Tensor:
    mean, var, weight, bias = (state[f"{at}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (var + 2e-5).sqrt() * weight + bias


def test_it_computes_what_arcface_torch_does() -> None:
    network = tiny(0.3, 0.3)
    images = torch.randn(3, 3, *SIZE, dtype=torch.float64)
    torch.testing.assert_close(network(images), vit_reference(network.state_dict(), images), rtol=1e-9, atol=1e-9)


def test_it_starts_as_arcface_torch_does() -> None:
    """Linear layers and positions of a deviation of 0.02, biases of 0; patches as torch's convolutions begin."""
    torch.manual_seed(0)
    for name, p in ViT(64, 2, 32, SIZE, 9, 0.0, 0.3).named_parameters():
        if p.dim() > 1 and "patch_embed" not in name:
            assert float(p.detach().std()) == pytest.approx(0.02, rel=0.25), name
        elif name.endswith(("proj.bias", "fc1.bias", "fc2.bias")) and "patch_embed" not in name:
            assert not p.any(), name


def arcface_torch_shapes(width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in that project's ``model.pt`` of a vision transformer, for images of 112 × 112."""
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, 144, width), "mask_token": (1, 1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 9, 9), "patch_embed.proj.bias": (width,)}
    layers = {"attn.proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in range(depth):
        at = f"blocks.{block}"
        shapes |= {f"{at}.{norm}.{kind}": (width,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes[f"{at}.attn.qkv.weight"] = (3 * width, width)
        shapes |= {f"{at}.{name}.weight": shape for name, shape in layers.items()}
        shapes |= {f"{at}.{name}.bias": shape[:1] for name, shape in layers.items()}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"feature.0.weight": (width, width * 144), "feature.2.weight": (512, width)}
    for layer, size in ((1, width), (3, 512)):
        shapes |= {f"feature.{layer}.{key}": (size,) for key in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"feature.{layer}.num_batches_tracked"] = ()
    return shapes


@pytest.mark.parametrize("name", SIZES)
def test_weights_of_arcface_torch_fit(name: str) -> None:
    with torch.device("meta"):
        network = ViTBackbone(name=name).build((112, 112))
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == arcface_torch_shapes(*SIZES[name])


def test_published_weights_are_read_and_fed_with_our_pixels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ViTBackbone(name="vit_t", embedding_dim=7).build((18, 18)).eval()
    torch.save({"module." + name: tensor for name, tensor in network.state_dict().items()}, tmp_path / "model.pt")
    published = read_published(tmp_path / "model.pt", "vit_t", Given(size=(18, 18)))
    ours = published.backbone.build((18, 18)).eval()
    ours.load_state_dict(for_our_pixels(published))
    pixels = torch.randint(0, 256, (2, 3, 18, 18)).float()
    theirs = network((pixels - 127.5) / 127.5)
    torch.testing.assert_close(ours((pixels - 127.5) / 128), theirs, rtol=1e-4, atol=1e-5)


def unnormalised(network: ViT) -> ViT:
    """In training, but for the last layers, whose batch norms mix the samples of a batch."""
    network.train()
    network.feature.eval()
    return network


def test_masked_patches_are_not_seen_and_all_others_are() -> None:
    network = unnormalised(tiny(mask_ratio=0.5))
    images = torch.randn(4, 3, *SIZE, dtype=torch.float64, requires_grad=True)
    network(images).square().sum().backward()
    assert images.grad is not None and network.mask_token.grad is not None
    seen = F.avg_pool2d(images.grad.abs().sum(1, keepdim=True), 9).flatten(1) > 0
    assert seen.sum(1).tolist() == [3] * 4
    assert len({tuple(row) for row in seen.tolist()}) > 1, "every sample has the same patches"
    network.eval()
    assert (torch.autograd.grad(network(images).square().sum(), images)[0][:, :, :18, :27] != 0).all()


def test_a_mask_token_stands_in_the_place_of_a_patch_that_is_not_seen() -> None:
    network = unnormalised(tiny(mask_ratio=0.8))  # a single patch is seen, and attends to itself alone
    taken: list[torch.Tensor] = []
    network.feature.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    network(torch.randn(5, 3, *SIZE, dtype=torch.float64))
    same = (taken[0].unflatten(1, (PATCHES, WIDTH)) == network.mask_token).all(2)
    assert same.sum(1).tolist() == [PATCHES - 1] * 5


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_drop_path_rises_to_the_rate_of_the_last_block(rate: float) -> None:
    rates = [[block.drop1.rate, block.drop2.rate] for block in tiny(rate).blocks if isinstance(block, Block)]
    assert rates == [[0, 0], [rate / 2, rate / 2], [rate, rate]]
    assert ViTBackbone(name="vit_s").drop_path == 0.05  # that project's "dp005"


def test_positions_do_not_decay() -> None:
    groups = parameter_groups(tiny(mask_ratio=0.1), AdamW(steps=1, learning_rate=0.1, norm_weight_decay=0.0))
    decays = {tuple(p.shape): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays[1, PATCHES, WIDTH] == decays[1, 1, WIDTH] == 0
    assert decays[3 * WIDTH, WIDTH] == 0.1


def test_without_masking_nothing_waits_for_the_gradient_of_the_mask_token() -> None:
    frozen = [name for name, p in tiny().named_parameters() if not p.requires_grad]
    assert frozen == ["mask_token"] and tiny().masking.count == 0, "and nothing is drawn"
    assert all(p.requires_grad for p in tiny(mask_ratio=0.1).parameters())


@pytest.mark.parametrize(
    ("size", "keys", "message"),
    [
        ((8, 112), {}, r"image_size: got \(8, 112\), wanted at least 9 × 9: one patch"),
        ((18, 9), {"mask_ratio": 0.6}, "mask_ratio: got 0.6 of 2 patches, wanted one that is seen"),
    ],
)
def test_what_leaves_no_patch_is_refused(size: tuple[int, int], keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTBackbone.model_validate({"name": "vit_t", **keys}).build(size)


def test_a_network_of_blocks_is_named_for_recomputation() -> None:
    with torch.device("meta"):
        network = ViTBackbone(name="vit_s").build((112, 112))
    blocks = ViTBackbone(name="vit_s").blocks(network)
    assert isinstance(network, ViT) and isinstance(network.blocks, nn.ModuleList)
    assert list(blocks) == list(network.blocks)
