"""A model card: what a network is, what it was trained on, what it reaches and what is not known.

Mitchell et al., "Model cards for model reporting", FAT* 2019.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.evaluation.reports.cells import NONE, points
from pipeline.evaluation.results import Summary
from pipeline.evaluation.scoring.rates import Rate
from pipeline.export.loss import Judged
from pipeline.run.folder import RunFolder
from pipeline.run.history import read_history

USE = """\
Embeds an aligned face; two faces are compared by the cosine of their embeddings. Where to put the threshold depends on
what a false match and a false non-match cost where it is used: choose it on faces from there. The network was judged on
the sets below and on nothing else. Not stated, and to be added by whoever publishes it: licence, who took the
photographs of the training set and whether the people in it agreed, and uses that are ruled out."""


def model_card(told: Mapping[str, Any], run: Path, reached: Mapping[str, Summary], losses: Mapping[str, Judged]) -> str:
    """The card in Markdown, from the description of the network, its run's folder and what it reached."""
    parts = [
        f"# {told['backbone']} of {told['run']}, step {told['step']:,}",
        USE,
        "## Input and output",
        _input(told),
        "## Training",
        _training(run),
        "## Evaluation",
        _evaluation(reached),
        _groups(reached),
        _precisions(told, losses),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def with_hub_head(card: str, backbone: str, licence: str) -> str:
    """The card as the README.md of a repository of the Hugging Face Hub, which begins with metadata in YAML."""
    head = {"license": licence, "library_name": "onnx", "tags": ["face-recognition", "spherescale", backbone]}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{card}"


def _input(told: Mapping[str, Any]) -> str:
    given, output, alignment = told["input"], told["output"], told["alignment"]
    normalisation = given["normalisation"]
    lines = [
        f"- `{given['name']}`: {given['dtype']} {given['layout']}, {given['height']} × {given['width']},"
        f" {given['channels']}, (pixel - {normalisation['mean']:g}) × {normalisation['scale']:g}",
        f"- `{output['name']}`: {output['dtype']}, {output['dimension']} numbers; {output['comparison']}",
    ]
    if alignment:
        places = ", ".join(f"({x:g}, {y:g})" for x, y in alignment["points_xy"])
        lines.append(f"- alignment: {', '.join(alignment['order'])} at {places}; {alignment['note']}")
    lines.append(f"- weights: SHA-256 `{told['weights_sha256']}`")
    return "\n".join(lines)


def _training(run: Path) -> str:
    folder = RunFolder(run)
    lines = []
    if folder.facts.is_file():
        facts = json.loads(folder.facts.read_text(encoding="utf-8"))
        if imported := facts.get("imported"):
            return f"Elsewhere: weights of {Path(imported['file']).name}, SHA-256 `{imported['sha256'][:12]}`."
        shards = facts.get("shards", {})
        if {"samples", "identities"} <= shards.keys():
            lines.append(f"{shards['samples']:,} images of {shards['identities']:,} people.")
        lines.append(f"On {facts.get('ranks')} × {facts.get('device')}, started {facts.get('started')}.")
    lines += _changes(run)
    if folder.recipe.is_file():
        lines.append(f"\n```yaml\n{folder.recipe.read_text(encoding='utf-8').strip()}\n```")
    return "\n".join(lines) or "Not recorded."


def _changes(run: Path) -> list[str]:
    """At which steps the recipe, or where it was trained, became another; nothing if it never did."""
    changed = [line for line in read_history(run) if line.get("changes")]
    if not changed:
        return []
    steps = (f"- at step {line.get('step', 0):,}: {', '.join(line['changes'])}" for line in changed)
    return ["\nThe recipe below is that of the last start. It had changed:\n", *steps]


def _evaluation(reached: Mapping[str, Summary]) -> str:
    if not reached:
        return "None of these weights in the run's folder."
    lines = ["| set | pairs | people | accuracy (95% interval) | TAR at FAR |", "| --- | ---: | ---: | --- | --- |"]
    for name, summary in reached.items():
        result = summary.verification
        tars = "; ".join(f"{_rate(entry.tar)} at {entry.far:g}" for entry in result.tar)
        pairs = result.genuine + result.impostors
        lines.append(f"| {name} | {pairs:,} | {result.identities:,} | {_rate(result.accuracy)} | {tars} |")
    return "\n".join(lines)


def _groups(reached: Mapping[str, Summary]) -> str:
    lines = []
    for name, summary in reached.items():
        for group in summary.groups:
            for errors in group.errors:
                rates = f"{_rate(errors.fmr)} | {_rate(errors.fnmr)}"
                lines.append(f"| {name}, FAR {errors.far:g} | {group.name} | {rates} |")
    if not lines:
        return "Errors by group of people were not measured."
    return "\n".join(["| set | group | FMR | FNMR |", "| --- | --- | --- | --- |", *lines])


def _precisions(told: Mapping[str, Any], losses: Mapping[str, Judged]) -> str:
    if not losses:
        return ""
    lines = [
        f"Precisions, judged on {told['precisions']['set']}:",
        "",
        "| file | MB | accuracy | above the first, points |",
    ]
    lines.append("| --- | ---: | --- | --- |")
    for name, loss in losses.items():
        accuracy = f"{loss.accuracy.mean:.2%} ({loss.accuracy.low:.1%} to {loss.accuracy.high:.1%})"
        lines.append(f"| {name} | {loss.size_bytes / 1e6:.1f} | {accuracy} | {points(loss.gain)} |")
    return "\n".join(lines)


def _rate(rate: Rate | None) -> str:
    return NONE if rate is None else f"{rate.value:.2%} ({rate.low:.1%} to {rate.high:.1%})"
