"""The model card of a run: what the network is, how it is fed, what it was trained on, and what was measured of it.

Mitchell et al., "Model Cards for Model Reporting", FAccT 2019, in the Hugging Face Hub's form: a README.md whose head
is YAML.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.evaluation.embedding.trained import TrainedBackbone
from pipeline.evaluation.results import load
from pipeline.evaluation.scoring.rates import Rate
from pipeline.recipe.file import load_recipe
from pipeline.run.folder import RunFolder

_USE = """\
```python
import numpy as np, onnxruntime, PIL.Image

pixels = np.asarray(PIL.Image.open("face.png").convert("RGB"), np.float32)  # {height} high, {width} wide, aligned
images = ((pixels - 127.5) / 128).transpose(2, 0, 1)[None]
(embeddings,) = onnxruntime.InferenceSession("backbone.onnx").run(None, {{"images": images}})  # [1, {dimension}]
```

Two embeddings are compared by the cosine of their angle. `backbone.json` has the five points of the alignment.
"""

_LIMITS = """\
The rates hold for faces like those they were measured on. Nothing here says how they differ between groups of people:
to know, evaluate on your own people, by group, and choose a threshold there. A face is personal data: to collect, embed
or compare faces takes a legal ground, as a rule the consent of those who are shown.
"""


def model_card(run: Path, trained: TrainedBackbone, name: str, licence: str) -> str:
    """The card, Markdown.

    Args:
        run: the run's folder.
        trained: its network as it is published.
        name: of the model.
        licence: as the Hub's metadata has it: "apache-2.0", "other".
    """
    head = {"license": licence, "library_name": "onnx", "tags": ["face-recognition", "spherescale", trained.name]}
    height, width = trained.image_size
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {name}\n",
        f"{trained.name} embeds aligned faces, {height} × {width} pixels, as {trained.embedding_dim} numbers.\n",
        "## Use\n",
        _USE.format(height=height, width=width, dimension=trained.embedding_dim),
        "## Training\n",
        "".join(f"- {line}\n" for line in _training(run, trained)),
        "## Evaluation\n",
        _table(list(_results(run, trained.step))),
        "## Limits\n",
        _LIMITS,
    ]
    return "\n".join(parts)


def _training(run: Path, trained: TrainedBackbone) -> Iterator[str]:
    facts = _facts(run)
    if imported := facts.get("imported"):
        yield f"Weights that were trained elsewhere: {Path(imported['file']).name}, SHA-256 {imported['sha256'][:12]}."
        return
    recipe = load_recipe(RunFolder(run).recipe)
    margin = recipe.head.margin.model_dump(mode="json")
    keys = ", ".join(f"{key} {value}" for key, value in margin.items() if key != "name")
    yield f"Loss: {margin['name']}" + (f" ({keys})." if keys else ".")
    shards = facts.get("shards", {})
    if shards:
        yield f"Data: {shards['samples']:,} images of {shards['identities']:,} people, set {shards['digest'][:12]}."
    yield f"{trained.step:,} of {recipe.optimizer.steps:,} steps of {recipe.data.global_batch:,} images."
    yield f"Weights: SHA-256 {trained.weights_sha256[:12]}. `recipe.yaml` repeats the training."


def _results(run: Path, step: int) -> Iterator[tuple[str, ...]]:
    """A row for each verification set that this step was judged on."""
    for file in sorted(RunFolder(run).evaluations.glob(f"*/step-{step:08d}.json")):
        found = load(file).summary.verification
        hardest = found.tar[-1] if found.tar else None
        tar = f"{_rate(hardest.tar)} at FAR {hardest.far:g}" if hardest else "–"
        yield file.parent.name, f"{found.genuine + found.impostors:,}", _rate(found.accuracy), tar


def _table(rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return "Not evaluated at this step.\n"
    titles = ("set", "pairs", "accuracy (95% interval)", "true accept rate")
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rate(rate: Rate) -> str:
    return f"{100 * rate.value:.2f}% ({100 * rate.low:.2f}–{100 * rate.high:.2f})"


def _facts(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(RunFolder(run).facts.read_text())
    return facts
