"""Evaluation against its floors: embedding against the bare network, search against one full matrix product.

Contestants run in one process, round after round; the median of each counts. Peak memory is measured in a process of
its own for each.
"""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.evaluation.embedding.source import How, Network, image_files
from pipeline.evaluation.scoring.rates import verify
from pipeline.evaluation.scoring.search import blocks_of, nearest
from pipeline.evaluation.scoring.verification import ScoredPairs
from tests.benchmarks.results import median_seconds, write

ROOT = Path(__file__).parents[2]
IMAGES, BATCH, ROUNDS = 512, 64, 5
PROBES, GALLERY, WIDTH, K = 3530, 65_536, 1024, 10


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("faces")
    noise = np.random.default_rng(0)
    names = [f"{i:05d}.jpg" for i in range(IMAGES)]
    for name in names:
        shapes = Image.fromarray(noise.integers(0, 256, (14, 12, 3), dtype=np.uint8)).resize((96, 112))
        shapes.save(folder / name, "JPEG", quality=90)
    return folder, names


def test_embedding_speed(faces: tuple[Path, list[str]]) -> None:
    """The same network on one batch in memory is the floor; a loop over Pillow is what one would write instead.

    All with channels innermost, which is fastest on a CPU and which Pillow's pixels already are.
    """
    folder, names = faces
    backbone = SphereFaceBackbone(name="sphereface4", embedding_dim=512).build((112, 96)).eval()
    network = Network("sphereface4", "", 0, backbone, (112, 96))
    batch = torch.randn(BATCH, 3, 112, 96).to(memory_format=torch.channels_last)

    def two_passes(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([backbone(images), backbone(images.flip(3))], dim=1)

    def with_pillow() -> None:
        for start in range(0, IMAGES, BATCH):
            encoded = [(folder / name).read_bytes() for name in names[start : start + BATCH]]
            pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded])
            two_passes(torch.from_numpy(pixels).permute(0, 3, 1, 2).float().sub(127.5).div(128))

    seconds = median_seconds(
        {
            "bare network": lambda: [two_passes(batch) for _ in range(IMAGES // BATCH)],
            "a network's features": lambda: list(network.features(image_files(folder, names), How(BATCH, threads=2))),
            "Pillow loop": with_pillow,
        },
        ROUNDS,
    )
    rates = {name: IMAGES / value for name, value in seconds.items()}
    shares = {name: rate / rates["bare network"] for name, rate in rates.items()}
    write("embedding", {"images_per_second": rates, "share_of_bare_network": shares})


def test_search_speed() -> None:
    """One full matrix product with `topk` is what one would write instead, where it fits."""
    generator = np.random.default_rng(0)
    probes = generator.standard_normal((PROBES, WIDTH), np.float32)
    gallery = generator.standard_normal((GALLERY, WIDTH), np.float32)
    tensors = torch.from_numpy(probes), torch.from_numpy(gallery)

    def full() -> None:
        unit = [tensor / tensor.norm(dim=1, keepdim=True) for tensor in tensors]
        (unit[0] @ unit[1].T).topk(K, dim=1)

    seconds = median_seconds(
        {
            "bare products": lambda: [tensors[0] @ block.T for block in tensors[1].split(8192)],
            "full matrix, topk": full,
            "nearest": lambda: nearest(probes, blocks_of(gallery), K),
            "nearest, highest for FAR 1e-6": lambda: nearest(probes, blocks_of(gallery), K, highest=PROBES + 1),
        },
        3,
    )
    gigaflops = {name: 2e-9 * PROBES * GALLERY * WIDTH / value for name, value in seconds.items()}
    write("search", {"probes": PROBES, "gallery": GALLERY, "width": WIDTH, "gflops": gigaflops})


STREAM = """
import sys, time
from pathlib import Path
import numpy as np
from pipeline.evaluation.scoring.search import nearest

def peak():  # getrusage would inherit the peak of the process that started this one
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    return int(line.split()[1])

probes, gallery, width = map(int, sys.argv[1:])
generator = np.random.default_rng(0)
rows = generator.standard_normal((8192, width), np.float32)
queries = generator.standard_normal((probes, width), np.float32)
before, start = peak(), time.perf_counter()
blocks = (rows[: min(8192, gallery - first)] for first in range(0, gallery, 8192))
found = nearest(queries, blocks, 10, highest=probes + 1)
assert found.compared == probes * gallery
print(time.perf_counter() - start, peak(), before)
"""


def test_memory_does_not_grow_with_the_gallery() -> None:
    """MegaFace's probes and, last, its million; the process, imports included, must stay below 2 GiB throughout."""
    result = {}
    for gallery in (16_384, 262_144, 1_000_000):
        arguments = [sys.executable, "-c", STREAM, str(PROBES), str(gallery), str(WIDTH)]
        printed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        seconds, peak, before = map(float, printed.split())
        gflops = 2e-9 * PROBES * gallery * WIDTH / seconds
        result[str(gallery)] = {"gflops": gflops, "peak_gib": peak / 2**20, "before_gib": before / 2**20}
        assert peak < 2 * 2**20
    write("search_memory", result)


def test_bootstrap_seconds() -> None:
    """LFW's size: 6,000 pairs, 1,000 resamples with every threshold chosen again."""
    generator = np.random.default_rng(0)
    a, b = generator.integers(4000, size=(2, 6000))
    b = np.where(np.arange(6000) % 2, a, (a + 1) % 4000)
    scores = generator.normal(2.0 * (a == b), 1)
    pairs = ScoredPairs.of(scores, a == b, np.arange(6000) // 600, identity_a=a, identity_b=b)
    seconds = median_seconds({"verify": lambda: verify(pairs, (1e-1, 1e-2, 1e-3), 1000)}, 3)
    write("bootstrap", {"pairs": 6000, "resamples": 1000, "seconds": seconds})
