"""Small synthetic "faces" for tests: every identity has its own colours, so that a network can learn them."""

from __future__ import annotations

import io
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]

RECIPE = """
data: {{shards: {shards}, global_batch: 12, decode_threads: 1}}
backbone: {{name: sphereface4, embedding_dim: 8}}
optimizer: {{steps: 4, learning_rate: 0.02}}
"""


def write_faces(folder: Path, identities: int, images: int, height: int = 32, width: int = 32, seed: int = 0) -> Path:
    """`identities` folders of `images` JPEGs: a smooth pattern of the identity plus a little noise of the image."""
    generator = np.random.default_rng(seed)
    for identity in range(identities):
        pattern = generator.integers(30, 226, (4, 4, 3))
        home = folder / f"person{identity:03d}"
        home.mkdir(parents=True)
        for image in range(images):
            noisy = np.clip(pattern + generator.integers(-25, 26, pattern.shape), 0, 255).astype(np.uint8)
            face = Image.fromarray(noisy).resize((width, height), Image.Resampling.BICUBIC)
            face.save(home / f"{image:04d}.jpg", quality=95)
    return folder


def write_pairs(faces: Path) -> Path:
    """Every pair of the images in folders that `write_faces` made, in two folds; the file lies beside them."""
    shots = sorted(path.relative_to(faces).as_posix() for path in faces.glob("*/*"))
    lines = [f"{i % 2}\t{a}\t{b}\t{int(a[:9] == b[:9])}" for i, (a, b) in enumerate(combinations(shots, 2))]
    file = faces.with_name("pairs.tsv")
    file.write_text("\n".join(["fold\tpath_a\tpath_b\tsame", *lines, ""]))
    return file


def write_noisy_faces(
    folder: Path, identities: int, images: int, seed: int = 0, height: int = 112, width: int = 96
) -> Path:
    """`identities` folders of `images` JPEGs, of 112x96 about 5 KB each as real faces are: smooth shapes with noise."""
    generator = np.random.default_rng(seed)
    pool = [_noisy_jpeg(generator, height, width) for _ in range(min(500, identities * images))]
    for identity in range(identities):
        home = folder / f"id{identity:04d}"
        home.mkdir(parents=True)
        for image in range(images):
            (home / f"{image:03d}.jpg").write_bytes(pool[(identity * images + image) % len(pool)])
    return folder


def _noisy_jpeg(generator: np.random.Generator, height: int, width: int) -> bytes:
    small = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    shapes = Image.fromarray(small).resize((width, height))
    pixels = np.asarray(shapes, np.int16) + generator.integers(-20, 21, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_shards(folder: Path, identities: int = 7, images: int = 6, **size: int) -> Path:
    """Shards of such faces, made by the stage itself; the faces lie beside them."""
    faces = write_faces(folder / "faces", identities, images, **size)
    command: list[str | Path] = [sys.executable, ROOT / "stages" / "shard.py", faces, folder / "shards"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder / "shards"


def write_recipe(folder: Path) -> Path:
    """A recipe of four steps of a small network on such shards, which lie beside it."""
    file = folder / "night.yaml"
    file.write_text(RECIPE.format(shards=write_shards(folder)))
    return file
