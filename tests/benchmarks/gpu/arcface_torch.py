"""The peer: InsightFace's `arcface_torch` by its rules and in our words, for one GPU and all classes (sample rate 1).

What is as there: PartialFC_V2's head in float32 (its training script passes no half precision on), rows that start
from a normal of standard deviation 0.01, ArcFace with s = 64 and 0.5 radians, a softmax as an autograd function of its
own that keeps the probabilities and subtracts a dense one-hot; `iresnet50` in float16 but for its linear layer; one SGD
over both with momentum 0.9 and weight decay 5e-4; GradScaler with a growth interval of 100, gradients unscaled and
clipped to 5; `cudnn.benchmark`; the loss read every step.

What is left out is what costs it time: DistributedDataParallel (one GPU has nobody to average with), and reading: its
loop gets its images from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SCALE, ANGLE = 64.0, 0.5
BLOCKS = (3, 4, 14, 3)
MOMENTUM, WEIGHT_DECAY, LONGEST_GRADIENT, GROWTH_INTERVAL = 0.9, 5e-4, 5.0, 100


class _SoftmaxCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy; the logits become the probabilities, and those the gradient."""

    @staticmethod
    def forward(ctx: Any, logits_GC: torch.Tensor, labels_G: torch.Tensor) -> torch.Tensor:
        logits_GC.sub_(logits_GC.max(dim=1, keepdim=True).values)
        logits_GC.exp_()
        logits_GC.div_(logits_GC.sum(dim=1, keepdim=True))
        ctx.save_for_backward(logits_GC, labels_G)
        return logits_GC.gather(1, labels_G[:, None]).clamp_min_(1e-30).log_().mean() * -1

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        probabilities_GC, labels_G = ctx.saved_tensors
        one_hot_GC = torch.zeros_like(probabilities_GC).scatter_(1, labels_G[:, None], 1)
        probabilities_GC -= one_hot_GC
        probabilities_GC.div_(probabilities_GC.shape[0])
        return probabilities_GC * grad.item(), None


class Head(nn.Module):
    """All rows on one GPU, all logits at once."""

    def __init__(self, classes: int, embedding_dim: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, embedding_dim, device=device).normal_(0, 0.01))

    def forward(self, x_GD: torch.Tensor, labels_G: torch.Tensor) -> torch.Tensor:
        """Loss of embeddings [G, D] and labels [G]."""
        logits_GC = F.linear(F.normalize(x_GD.float()), F.normalize(self.weight)).clamp(-1, 1)
        with torch.no_grad():  # the angle goes through the values alone
            logits_GC.arccos_()
            logits_GC[torch.arange(len(labels_G), device=labels_G.device), labels_G] += ANGLE
            logits_GC.cos_()
        return _SoftmaxCrossEntropy.apply(logits_GC * SCALE, labels_G)


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.short: nn.Module = nn.Identity()
        if stride != 1:
            self.short = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(out)) + self.short(x)


class IResNet50(nn.Module):
    """Its `iresnet50` with `fp16=True`: convolutions in float16 under autocast, the linear layer in float32, NCHW."""

    def __init__(self, embedding_dim: int, image_size: tuple[int, int], blocks: tuple[int, ...] = BLOCKS) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        layers: list[nn.Module] = []
        before = 64
        for channels, count in zip((64, 128, 256, 512), blocks, strict=True):
            layers += [_Block(before if i == 0 else channels, channels, 2 if i == 0 else 1) for i in range(count)]
            before = channels
        self.layers = nn.Sequential(*layers)
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * -(-image_size[0] // 16) * -(-image_size[1] // 16), embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, D] of images [B, 3, H, W]."""
        with torch.autocast(images.device.type, torch.float16):
            x = self.bn2(self.layers(self.stem(images))).flatten(1)
        return self.features(self.fc(x.float()))


def head_step(head: Head, x_GD: torch.Tensor, labels_G: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Loss, gradients and update of the head alone."""
    sgd = torch.optim.SGD([head.weight], lr=0.1, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def step() -> torch.Tensor:
        loss = head(x_GD.clone().requires_grad_(), labels_G)
        loss.backward()
        sgd.step()
        sgd.zero_grad()
        return loss.detach()

    return step


def training_step(
    backbone: nn.Module, images: torch.Tensor, loss_of: Callable[[torch.Tensor], torch.Tensor], head: Head | None = None
) -> Callable[[], float]:
    """Its loop's body on one batch: forward, scaled backward, unscale, clip, update, read the loss."""
    torch.backends.cudnn.benchmark = True
    parameters = [p for p in backbone.parameters() if p.requires_grad] + (list(head.parameters()) if head else [])
    sgd = torch.optim.SGD(parameters, lr=0.02, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(images.device.type, growth_interval=GROWTH_INTERVAL)

    def step() -> float:
        loss = loss_of(backbone(images))
        scaler.scale(loss).backward()
        scaler.unscale_(sgd)
        nn.utils.clip_grad_norm_(backbone.parameters(), LONGEST_GRADIENT)
        scaler.step(sgd)
        scaler.update()
        sgd.zero_grad()
        return loss.item()

    return step
